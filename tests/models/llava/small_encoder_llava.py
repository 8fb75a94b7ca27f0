"""Small random LLaVA models on encoders of foveate, with their processors."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPImageProcessor, LlamaConfig

from foveate.models.llava import FoveateLlavaConfig, FoveateLlavaForConditionalGeneration, FoveateLlavaProcessor
from foveate.models.llava.processing import encoder_fields
from foveate.models.llava_uhd import byte_tokenizer
from tests.models.encoders.small_encoders import SIDE, small_config
from tests.models.llava.small_llava import TEXT


def llava(name: str, connector: str = "mlp", **changes: Any) -> tuple[Any, FoveateLlavaProcessor]:
    """A model and a processor with the same weights every time."""
    vision = small_config(name, **changes)
    config = FoveateLlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT),
        image_token_index=259,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        connector_type=connector,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FoveateLlavaForConditionalGeneration(config).eval()
    side = {"height": SIDE, "width": SIDE}
    processor = FoveateLlavaProcessor(
        CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False),
        byte_tokenizer(),
        vision_feature_select_strategy="full",
        connector_type=connector,
        **encoder_fields(vision),
    )
    return model, processor

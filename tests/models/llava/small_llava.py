"""Small random LLaVA models with any connector, their processor and pictures."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, SiglipVisionConfig

from foveate.models.llava import FoveateLlavaConfig, FoveateLlavaForConditionalGeneration, FoveateLlavaProcessor
from foveate.models.llava_uhd import byte_tokenizer

#: Side of an image in pixels and of a patch; 6 x 6 patches.
SIDE, PATCH, GRID = 48, 8, 6
#: A large spread of initial weights, so that the outputs of small random models depend on every input.
SPREAD = 0.3
TEXT = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": SPREAD,
    "pad_token_id": 256,
    "bos_token_id": None,
    "eos_token_id": 258,
}


def vision_config(encoder: Literal["clip", "siglip"] = "clip") -> Any:
    shape: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "patch_size": PATCH,
        "initializer_range": SPREAD,
        "initializer_factor": 1.0,
    }
    return CLIPVisionConfig(**shape, projection_dim=24) if encoder == "clip" else SiglipVisionConfig(**shape)


def small_config(connector: str = "mlp", encoder: Literal["clip", "siglip"] = "clip", **options: Any) -> Any:
    return FoveateLlavaConfig(
        vision_config=vision_config(encoder),
        text_config=LlamaConfig(**TEXT),
        image_token_index=259,
        vision_feature_select_strategy="default" if encoder == "clip" else "full",
        connector_type=connector,
        connector_options=options,
    )


def small_llava(connector: str = "mlp", encoder: Literal["clip", "siglip"] = "clip", **options: Any) -> Any:
    """A model with the same weights every time, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FoveateLlavaForConditionalGeneration(small_config(connector, encoder, **options)).eval()


def small_processor(
    connector: str = "mlp", encoder: Literal["clip", "siglip"] = "clip", **options: Any
) -> FoveateLlavaProcessor:
    side = {"height": SIDE, "width": SIDE}
    return FoveateLlavaProcessor(
        CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False),
        byte_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default" if encoder == "clip" else "full",
        num_additional_image_tokens=int(encoder == "clip"),
        connector_type=connector,
        connector_options=options,
    )


def pictures(count: int = 3) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (40, 30 + 10 * i, 3), np.uint8)) for i in range(count)]


def small_batch(processor: Any) -> Any:
    """Two prompts of different lengths, with two images and one."""
    first, second, third = pictures()
    text = ["<image> and <image>: compare", "<image>?"]
    return processor(images=[[first, second], [third]], text=text, return_tensors="pt", padding=True)

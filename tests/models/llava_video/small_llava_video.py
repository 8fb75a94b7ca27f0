"""Small random LLaVA models for clips, their processor, and clips."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import CLIPImageProcessor, LlamaConfig, SiglipTextConfig

from foveate.models.llava_uhd import byte_tokenizer
from foveate.models.llava_video import (
    FoveateLlavaVideoConfig,
    FoveateLlavaVideoForConditionalGeneration,
    FoveateLlavaVideoProcessor,
)
from tests.models.llava.small_llava import PATCH, SIDE, TEXT, pictures, vision_config
from tests.models.video_connectors.small_options import JOINT

IMAGE_ID, VIDEO_ID = 259, 260


def words_config() -> SiglipTextConfig:
    """A small text encoder of the width of the vision tower; its words are bytes."""
    return SiglipTextConfig(
        vocab_size=264,
        hidden_size=48,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=3,
        projection_size=48,
        bos_token_id=None,
        eos_token_id=None,
        max_position_embeddings=64,
    )


def small_config(connector: str = "average", vision: Any = None, text: Any = None, **options: Any) -> Any:
    joint = connector in JOINT
    vision = vision_config("siglip") if joint and vision is None else vision
    return FoveateLlavaVideoConfig(
        vision_config=vision_config() if vision is None else vision,
        text_config=LlamaConfig(**TEXT | {"vocab_size": 264}) if text is None else text,
        image_token_index=IMAGE_ID,
        video_token_id=VIDEO_ID,
        vision_feature_select_strategy="default" if vision is None else "full",
        connector_type=connector,
        connector_options=options,
        instruction_config=words_config() if joint else None,
    )


def small_llava_video(connector: str = "average", vision: Any = None, text: Any = None, **options: Any) -> Any:
    """A model with the same weights every time, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = small_config(connector, vision, text, **options)
        model = FoveateLlavaVideoForConditionalGeneration(config).eval()
    with torch.no_grad():  # trained models never answer with a placeholder
        model.lm_head.weight[IMAGE_ID:] = 0
    return model


def open_gates(model: Any) -> Any:
    """Let readers of the visual memory read, as trained ones do; those of a new model add nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "memory_readers." in name and name.endswith((".gate", ".gamma")):
                parameter.fill_(0.7)
    return model


def video_tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    return tokenizer


def small_processor(connector: str = "average", **options: Any) -> FoveateLlavaVideoProcessor:
    side = {"height": SIDE, "width": SIDE}
    return FoveateLlavaVideoProcessor(
        CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False),
        video_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        connector_type=connector,
        connector_options=options,
    )


def clips(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.integers(0, 255, (length, 40, 56, 3), np.uint8) for length in lengths]


def small_batch(processor: Any, **fields: Any) -> Any:
    """Two prompts of different lengths: two clips and an image, and one clip."""
    text = ["<video> before <video>, and <image>: compare", "<video>?"]
    lengths = (4, 3, 4)
    times = [[0.5 * place for place in range(length)] for length in lengths]
    return processor(
        images=[[pictures()[0]], []],
        videos=clips(*lengths),
        video_timestamps=times,
        text=text,
        return_tensors="pt",
        padding=True,
        **fields,
    )

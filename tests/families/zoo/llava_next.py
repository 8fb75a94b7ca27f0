"""LLaVA-NeXT and LLaVA-OneVision, whose rasters of more than two tiles are made smaller."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
)

from foveate.families import family_of
from tests.families.zoo import IMAGE, SPREAD, VIDEO, Rows, conversation, image_seeds, llama, pixels

TOWER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 56,
    "patch_size": 14,
    "initializer_range": SPREAD,
    "initializer_factor": 1.0,
}
#: Tiles have 4 x 4 patches; images are cut into one to six.
PINPOINTS = [[56, 56], [56, 112], [112, 56], [112, 112], [112, 168]]


def _next() -> LlavaNextForConditionalGeneration:
    tower = CLIPVisionConfig(**TOWER, projection_dim=24)
    config = LlavaNextConfig(
        vision_config=tower,
        text_config=LlamaConfig(**llama()),
        image_token_id=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    return LlavaNextForConditionalGeneration(config)


def _onevision() -> LlavaOnevisionForConditionalGeneration:
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=LlamaConfig(**llama()),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
    )
    return LlavaOnevisionForConditionalGeneration(config)


MODELS = {"llava-next": _next, "llava-onevision": _onevision}
FAMILY: dict[str, str] = {}


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Images of (height, width) times 14 pixels; LLaVA-OneVision cuts those that are alone in their prompt.

    Clips of (frames, height, width) have frames of 2 x 2 tokens, whatever their size; all of a batch have as many.
    """
    family: Any = family_of(model)
    items = image_seeds(rows, seed)
    images = [(own, (size[0], size[1])) for own, size in items if len(size) == 2]
    clips = [(own, size[0]) for own, size in items if len(size) == 3]
    sizes = torch.tensor([(14 * height, 14 * width) for _, (height, width) in images]).view(-1, 2)
    call: dict[str, Any] = {"image_sizes": sizes}
    if family.name == "llava-onevision":
        call["batch_num_images"] = torch.tensor([sum(len(size) == 2 for size in row) for row in rows])
    tiles = family._tiles(model.model, call)
    blank = [torch.zeros(count, 16, 1) for count in tiles]
    packed = family._pack(model.model, call, blank, torch.zeros(1)) if images else []
    counts = iter([len(own) for own in packed])

    def tokens_of(size: tuple[int, ...]) -> list[int]:
        return [IMAGE] * next(counts) if len(size) == 2 else [VIDEO] * (4 * size[0] + 1)

    inputs = conversation(rows, tokens_of, seed, side)
    if clips:
        inputs["pixel_values_videos"] = torch.stack([pixels(own, frames, 3, 56, 56) for own, frames in clips])
    if images:
        padded = torch.zeros(len(images), max(tiles), 3, 56, 56)
        for place, ((own, _), count) in enumerate(zip(images, tiles, strict=True)):
            padded[place, :count] = pixels(own, count, 3, 56, 56)
        inputs |= {"pixel_values": padded, **call}
    return inputs

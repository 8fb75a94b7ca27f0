"""LLaVA for clips with average pooling; an image is a clip of one frame."""

from __future__ import annotations

from typing import Any

import torch

from foveate.models.llava_video import FoveateLlavaVideoConfig, FoveateLlavaVideoForConditionalGeneration
from foveate.testing.small_model import SIDE, TOKENS, llava
from tests.families.zoo import IMAGE, SPREAD, VIDEO, Rows, conversation, image_seeds, pixels

#: Frames of a clip.
FRAMES = 2


def small() -> Any:
    """The small LLaVA with patches of half the side, so that the connector leaves as many tokens of a frame."""
    fields = llava().config.to_dict()
    fields["vision_config"]["patch_size"] //= 2
    config = FoveateLlavaVideoConfig(**fields | {"model_type": "foveate_llava_video", "video_token_id": VIDEO})
    model = FoveateLlavaVideoForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.projector.linear_1.weight, std=SPREAD)
    return model


MODELS = {"foveate-llava-video": small}
FAMILY: dict[str, str] = {}


def prompts(model: Any, rows: Rows, side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Every image, and every frame of a clip (a size with a third number), has 4 x 4 tokens."""

    def written(size: tuple[int, ...]) -> list[int]:
        return [VIDEO] * (FRAMES * TOKENS) if len(size) == 3 else [IMAGE] * TOKENS

    inputs = conversation(rows, written, seed, side)
    seeds = image_seeds(rows, seed)
    images = [pixels(own, 3, SIDE, SIDE) for own, size in seeds if len(size) == 2]
    clips = [pixels(own, FRAMES, 3, SIDE, SIDE) for own, size in seeds if len(size) == 3]
    if images:
        inputs["pixel_values"] = torch.stack(images)
    if clips:
        inputs["pixel_values_videos"] = torch.stack(clips)
    return inputs

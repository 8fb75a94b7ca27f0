"""Released models in their real sizes with random weights, on which cost does not depend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLImageProcessor,
)

from foveate.benchmark.competitors import QWEN2_7B, Geometry

#: Ids of the placeholders of images and clips.
IMAGE, VIDEO = 151655, 151656
#: Side in pixels of the frames of a clip, and the seconds between them.
FRAME_SIDE, INTERVAL = 224, 0.5

#: Text parts by name.
TEXTS: dict[str, dict[str, Any]] = {"qwen2-0.5b": dict(Geometry().text), "qwen2-7b": dict(QWEN2_7B)}

_CLIP_SIDE = 336
_TILES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


@dataclass(frozen=True)
class Shape:
    """Real size of a model, and the budgets at which it is measured.

    Args:
        name: Of the shape.
        build: Makes the model from the configuration of its text part and the number of blocks of its encoder; None:
            all of them.
        preprocess: Makes the encoder's inputs from images, as the model's image processor does.
        side: Side of the square image in pixels.
        tokens: Tokens that the language model reads of it.
        budgets: As plans write them.
        clip: Makes the encoder's inputs from the frames of a clip, for models with clips.
    """

    name: str
    build: Callable[[dict[str, Any], int | None], nn.Module]
    preprocess: Callable[[list[Image.Image]], dict[str, Any]]
    side: int
    tokens: int
    budgets: tuple[str, ...]
    clip: Callable[[list[Image.Image]], dict[str, Any]] | None = None

    def picture(self) -> Image.Image:
        """Return an image of noise, always the same one."""
        noise = np.random.default_rng(0).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
        return Image.fromarray(noise)

    def inputs(self, picture: Image.Image, text: int, batch: int) -> dict[str, Any]:
        """Create the inputs of `batch` prompts with one image each, followed by `text` text tokens."""
        start, image = torch.arange(10, 14), torch.full((self.tokens,), IMAGE)
        ids = torch.cat([start, image, torch.arange(20, 20 + text)]).expand(batch, -1).contiguous()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.preprocess([picture] * batch)}
        if "image_grid_thw" in inputs:  # Qwen's positions are made from the kinds of the tokens
            inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        return inputs

    def frames(self, count: int) -> list[Image.Image]:
        """Return a clip of noise, always the same one: its lower half moves to the left, a patch per frame."""
        noise = np.random.default_rng(0).integers(0, 256, (FRAME_SIDE, FRAME_SIDE, 3), dtype=np.uint8)
        half = FRAME_SIDE // 2
        clip = []
        for _ in range(count):
            noise = np.concatenate([noise[:half], np.roll(noise[half:], -14, axis=1)])
            clip.append(Image.fromarray(noise))
        return clip

    def clip_inputs(self, clip: list[Image.Image], text: int, batch: int) -> dict[str, Any]:
        """Create the inputs of `batch` prompts with one clip each, followed by `text` text tokens."""
        assert self.clip is not None  # settings name no other model with frames
        encoded = self.clip(clip)
        (count, rows, columns), *_ = encoded["video_grid_thw"].tolist()
        start, video = torch.arange(10, 14), torch.full((count * (rows // 2) * (columns // 2),), VIDEO)
        ids = torch.cat([start, video, torch.arange(20, 20 + text)]).expand(batch, -1).contiguous()
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": 2 * (ids == VIDEO).int(),
            "pixel_values_videos": encoded["pixel_values_videos"].repeat(batch, 1),
            "video_grid_thw": encoded["video_grid_thw"].repeat(batch, 1),
            "second_per_grid_ts": torch.full((batch,), 2 * INTERVAL),
        }


def _clip(blocks: int | None) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24 if blocks is None else blocks,
        num_attention_heads=16,
        image_size=_CLIP_SIDE,
        patch_size=14,
        projection_dim=768,
    )


def _clip_sizes() -> dict[str, Any]:
    return {"size": {"shortest_edge": _CLIP_SIDE}, "crop_size": {"height": _CLIP_SIDE, "width": _CLIP_SIDE}}


def _llava(text: dict[str, Any], blocks: int | None) -> nn.Module:
    config = LlavaConfig(vision_config=_clip(blocks), text_config=Qwen2Config(**text))
    config.image_token_id = IMAGE
    return LlavaForConditionalGeneration(config)


def _llava_view(pictures: list[Image.Image]) -> dict[str, Any]:
    return dict(CLIPImageProcessor(**_clip_sizes())(images=pictures, return_tensors="pt"))


def _llava_next(text: dict[str, Any], blocks: int | None) -> nn.Module:
    config = LlavaNextConfig(vision_config=_clip(blocks), text_config=Qwen2Config(**text), image_grid_pinpoints=_TILES)
    config.image_token_id = IMAGE
    return LlavaNextForConditionalGeneration(config)


def _llava_next_view(pictures: list[Image.Image]) -> dict[str, Any]:
    processor: Any = LlavaNextImageProcessor(**_clip_sizes(), image_grid_pinpoints=_TILES)
    return dict(processor(images=[[picture] for picture in pictures], return_tensors="pt"))


def _qwen(text: dict[str, Any], blocks: int | None) -> nn.Module:
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    if text["hidden_size"] // text["num_attention_heads"] == 64:
        rope["mrope_section"] = [8, 12, 12]
    # The width is that of the released towers; the default of transformers is the width of the text.
    vision: dict[str, Any] = {"hidden_size": 1280, "out_hidden_size": text["hidden_size"]}
    if blocks is not None:  # every eighth block attends to the whole image, and so does the last one
        vision |= {"depth": blocks, "fullatt_block_indexes": [*range(7, blocks - 1, 8), blocks - 1]}
    config = Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=IMAGE,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen_view(pictures: list[Image.Image]) -> dict[str, Any]:
    size = {"shortest_edge": 3136, "longest_edge": 12845056}  # as released
    return dict(Qwen2VLImageProcessor(patch_size=14, size=size)(images=pictures, return_tensors="pt"))


def _qwen_clip(frames: list[Image.Image]) -> dict[str, Any]:
    """Patches of two frames each, the last one twice where their number is odd."""
    images = _qwen_view(frames + frames[-1:] * (len(frames) % 2))
    (_, rows, columns), *_ = images["image_grid_thw"].tolist()
    patches = images["pixel_values"].view(-1, 2, rows * columns, 3, 2, 14 * 14)  # of pairs of frames, each given twice
    pairs = torch.stack([patches[:, 0, :, :, 0], patches[:, 1, :, :, 1]], dim=3)
    grid = torch.tensor([[len(pairs), rows, columns]])
    return {"pixel_values_videos": pairs.flatten(0, 1).flatten(1), "video_grid_thw": grid}


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llava-1.5", _llava, _llava_view, _CLIP_SIDE, 576, ("64", "128", "192")),
        # A thumbnail and four tiles, and a newline after every row of 48 tokens.
        Shape("llava-next", _llava_next, _llava_next_view, 672, 576 + 48 * 49, ("160", "320", "640")),
        # The multiple of 28 next to 1024 pixels.
        Shape("qwen2.5-vl", _qwen, _qwen_view, 1008, 36 * 36, ("10%", "25%", "50%"), _qwen_clip),
    )
}

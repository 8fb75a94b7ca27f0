"""LLaVA for clips with a video connector of foveate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from foveate.core.tokens import EncoderSpec, encoder_grid
from foveate.families.family import Family, ImageLayout, frame_crops, grid_crop
from foveate.families.llava_connector import check_outside_encoder

if TYPE_CHECKING:
    from foveate.core.plan import Plan


class LlavaVideo(Family):
    """LLaVA for clips: plans act on the tokens after the video connector, and measure nothing before it.

    The frames of a clip are its rasters after the connector; tokens that stand for the whole clip are separators, which
    every plan keeps.
    """

    name: ClassVar[str] = "foveate-llava-video"
    title: ClassVar[str] = "foveate LLaVA for clips"
    model_types: ClassVar[tuple[str, ...]] = ("foveate_llava_video",)
    cls_tokens: ClassVar[tuple[bool, ...]] = (False,)
    measures_encoder: ClassVar[bool] = False

    def blocks(self, core: Any) -> list[nn.Module]:
        """None: the encoder is not measured."""
        return []

    def tower(self, core: Any) -> EncoderSpec:
        """The encoder, whose patches the connector merges over space and time."""
        blocks = core.config.vision_config.num_hidden_layers
        return EncoderSpec(blocks, False, 1, blocks - 1, spatial=core.multi_modal_projector.spatial)

    def check(self, core: Any, plan: Plan) -> None:
        """See `Family.check`."""
        connector = core.multi_modal_projector
        check_outside_encoder(plan, self.tower(core), f"the connector {connector.name} merges patches of many frames")

    def layouts(self, core: Any, modality: str, call: Mapping[str, Any], output: Any) -> list[ImageLayout]:
        """Rasters of every clip or image, and tokens that stand for all of it."""
        connector, vision = core.multi_modal_projector, core.config.vision_config
        if modality == "image":
            pixels = call["pixel_values"]
            lengths = [connector.image_frames] * len(pixels)
        else:
            pixels, counts = call["pixel_values_videos"], call.get("frame_counts")
            lengths = [pixels.shape[1]] * len(pixels) if counts is None else [int(count) for count in counts]
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        grid = encoder_grid(vision, *size)
        layouts = []
        times = call.get("video_timestamps") if modality == "video" else None
        for number, (length, tokens) in enumerate(zip(lengths, output.pooler_output, strict=True)):
            shape, device = connector.output_shape(length, grid), tokens.device
            if connector.spatial:
                crops = frame_crops(*shape[:3], device)
            else:
                crops = grid_crop(1, shape.size - shape.extra, device)
            separators = None
            if shape.extra:
                separators = torch.arange(shape.size, device=device) >= shape.size - shape.extra
            seconds = None
            if times is not None and connector.spatial:  # rasters stand for equal parts of the clip
                seconds = F.adaptive_avg_pool1d(times[number, :length].float()[None], shape.frames)[0].to(device)
            layouts.append(ImageLayout(shape.size, crops, separators, size, seconds))
        return layouts

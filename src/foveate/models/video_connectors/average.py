"""Average pooling over space and time before a two-layer projector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.configured import whole_number
from foveate.models.video_connectors.connector import ClipShape, ConnectorOptions, Instruction, VideoConnector
from foveate.models.video_connectors.mlp import MLP


@dataclass(frozen=True)
class AverageOptions(ConnectorOptions):
    """Options of `Average`.

    Args:
        scale: Patches per token in each direction; rows and columns that it does not divide are rounded up.
        frames_per_token: Frames that are averaged; numbers of frames that it does not divide are rounded up.
        frames: Remaining frames of every clip, in place of `frames_per_token`; shorter clips keep theirs.
    """

    scale: int = 2
    frames_per_token: int = 1
    frames: int | None = None

    def __post_init__(self) -> None:
        whole_number("scale", self.scale)
        whole_number("frames_per_token", self.frames_per_token)
        if self.frames is not None:
            whole_number("frames", self.frames)
            if self.frames_per_token != 1:
                raise FoveateError("give frames or frames_per_token, not both.")


class Average(VideoConnector[AverageOptions]):
    """Averages neighbouring features over space and time, then applies the two-layer projector of LLaVA.

    A control, not a paper. Bins are those of adaptive average pooling in three dimensions: bin i of n along a side of
    length R is the mean of the places floor(i R / n) to ceil((i + 1) R / n).
    """

    name: ClassVar[str] = "average"
    title: ClassVar[str] = "Average pooling over space and time (control)"
    options_class: ClassVar = AverageOptions

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: object) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        self.projector = MLP(vision_hidden_size, text_hidden_size)

    def shape(self, frames: int, grid: Grid, budget: int | None) -> ClipShape:
        """See `VideoConnector.shape`."""
        options = self.options
        pooled = -(-frames // options.frames_per_token) if options.frames is None else min(frames, options.frames)
        return ClipShape(pooled, -(-grid.rows // options.scale), -(-grid.columns // options.scale))

    def connect(
        self, features: Tensor, grid: Grid, shape: ClipShape, timestamps: Tensor | None, text: Instruction | None
    ) -> Tensor:
        """See `VideoConnector.connect`."""
        volume = features.unflatten(1, grid).permute(3, 0, 1, 2)
        return self.projector(F.adaptive_avg_pool3d(volume, shape[:3]).flatten(1).T)

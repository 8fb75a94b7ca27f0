"""PVC's connector: pixel unshuffle and an MLP that is conditioned on the time of the frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.configured import whole_number
from foveate.models.connectors.pixel_unshuffle import squares
from foveate.models.encoders.temporal_pvc.timesteps import AdaptiveLayerNorm, TimestepEmbedding, relative_times
from foveate.models.video_connectors.connector import ClipShape, ConnectorOptions, Instruction, VideoConnector
from foveate.models.video_connectors.mlp import MLP


@dataclass(frozen=True)
class TemporalPVCOptions(ConnectorOptions):
    """Options of `TemporalPVC`.

    Args:
        scale: Patches per token in each direction: 4 makes 64 tokens of the 32 x 32 patches of 448 pixels.
        image_frames: Equal frames that an image is repeated to.
        time_scale: The time of the last frame of a clip; that of the first is 0. As in the encoder.
    """

    scale: int = 4
    image_frames: int = 4
    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        whole_number("scale", self.scale)
        whole_number("image_frames", self.image_frames)
        if self.time_scale <= 0:
            raise FoveateError(f"time_scale must be above 0, not {self.time_scale}.")


class TemporalPVC(VideoConnector[TemporalPVCOptions]):
    """Makes few tokens of every frame, of squares of patches and of the time of the frame.

        z_i = concatenated features of square i of scale x scale patches, row by row
        token_i = W_2 gelu(W_1 AdaLN(z_i, t))        AdaLN(z, t) = LN(z) (1 + gamma(TE(t))) + beta(TE(t))

    PVC: Progressive Visual Token Compression for Unified Image and Video Processing in Large Vision-Language Models
    (Yang et al., arXiv 2412.09613), with the encoder `temporal_pvc`. An image is a clip of 4 equal frames; a tile of
    448 pixels has 4 x 64 tokens, and a frame of a clip 64.

    From the paper; the authors' model code is part of their checkpoint alone and was not read. Our choices: the order
    of the features of a square, an embedding of time of its own, and gamma and beta that begin at zero.
    """

    name: ClassVar[str] = "temporal_pvc"
    title: ClassVar[str] = (
        "PVC: Progressive Visual Token Compression for Unified Image and Video Processing in Large Vision-Language "
        "Models"
    )
    paper: ClassVar[str] = "arXiv 2412.09613"
    reads_timestamps: ClassVar[bool] = True
    options_class: ClassVar = TemporalPVCOptions

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        width = self.options.scale**2 * vision_hidden_size
        self.timesteps = TimestepEmbedding(vision_hidden_size)
        self.norm = AdaptiveLayerNorm(width, vision_hidden_size, eps=1e-5)
        self.projector = MLP(width, text_hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """See `ConfiguredModule.reset_parameters`."""
        self.norm.reset_parameters(0.0)

    @property
    def image_frames(self) -> int:
        """See `VideoConnector.image_frames`."""
        return self.options.image_frames

    def shape(self, frames: int, grid: Grid, budget: int | None) -> ClipShape:
        """See `VideoConnector.shape`.

        Raises:
            FoveateError: Squares do not fill the grid.
        """
        scale = self.options.scale
        if grid.rows % scale or grid.columns % scale:
            raise FoveateError(
                f"the connector {self.name} needs rows and columns that are multiples of {scale}, and these frames "
                f"have {grid.rows} x {grid.columns} patches."
            )
        return ClipShape(frames, grid.rows // scale, grid.columns // scale)

    def connect(
        self, features: Tensor, grid: Grid, shape: ClipShape, timestamps: Tensor | None, text: Instruction | None
    ) -> Tensor:
        """See `VideoConnector.connect`."""
        times = self.options.time_scale * relative_times([len(features)], timestamps, features.device)
        tokens = squares(features, grid, self.options.scale).flatten(2)
        return self.projector(self.norm(tokens, self.timesteps(times))).flatten(0, 1)

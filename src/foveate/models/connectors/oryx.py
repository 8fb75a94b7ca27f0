"""Oryx: compression by 1, 4 or 16 on request, by attention of every pooled feature to its own square."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.mlp import MLP, MLPOptions
from foveate.models.connectors.pixel_unshuffle import squares

#: Patches per token in each direction: images, short videos and long videos in the paper.
SCALES = (1, 2, 4)
#: Width of queries and keys.
ATTENTION_WIDTH = 256


@dataclass(frozen=True)
class OryxOptions(MLPOptions):
    """Options of `Oryx`.

    Args:
        scale: Patches per token in each direction where no budget is given: 1, 2 or 4.
        halve: Halve the sum of both features, so that a constant map stays as it is, and scale 1 changes nothing. The
            authors' weights are trained without.
    """

    scale: int = 1
    halve: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.scale) is not int or self.scale not in SCALES:
            raise FoveateError(f"scale must be 1, 2 or 4, not {self.scale!r}.")
        if not isinstance(self.halve, bool):
            raise FoveateError(f"halve must be true or false, not {self.halve!r}.")


class Oryx(MLP[OryxOptions]):
    """Adds to the mean of every s x s square of features what it attends to in the square; then a two-layer connector.

        l = mean of a square                               x (R, C, D) -> l (R / s, C / s, D)
        a = softmax((W_q l)(W_k x)^T / sqrt(256))          one head, the s^2 features of the square
        token = MLP(l + sum a x)                           values are the features themselves

    Oryx MLLM: On-Demand Spatial-Temporal Understanding at Arbitrary Resolution (Liu et al., arXiv 2409.12961). One set
    of weights has s = 1 for images, 2 for short and 4 for long videos: 1, 4 and 16 times fewer tokens. All three are
    allowed for any image whose rows and columns s divides. For s = 1 the softmax has one element, so that the input of
    the MLP is exactly 2 x, which the authors' weights expect (`halve`).

    This is the compressor with its MLP. The vision tower of native resolution is the encoder `oryx_vit`, and the second
    view and the tokens for the beginning, the end and new lines are the layout `OryxLayout`. A whole checkpoint of the
    authors, of Qwen2 or Yi, is read by `from_pretrained`; clips have no layout here.
    """

    name: ClassVar[str] = "oryx"
    title: ClassVar[str] = "Oryx MLLM: On-Demand Spatial-Temporal Understanding at Arbitrary Resolution"
    paper: ClassVar[str] = "arXiv 2409.12961"
    nested: ClassVar[bool] = True
    length_schedule: ClassVar[Literal["all", "sampled"] | None] = "sampled"
    options_class: ClassVar = OryxOptions
    released_types: ClassVar[tuple[str, ...]] = ("simple_mlp_twoview",)
    released_prefix: ClassVar[str] = "(?:mm_projector|vision_resampler)"
    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        r"proj\.0\.": "linear_1.",
        r"proj\.2\.": "linear_2.",
        r"vlm_query_projector\.": "query.",
        r"vlm_key_projector\.": "key.",
    }
    released_vectors: ClassVar[tuple[str, ...]] = ("image_begin", "image_newline", "image_sep", "image_end")

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        self.query = nn.Linear(vision_hidden_size, ATTENTION_WIDTH)
        self.key = nn.Linear(vision_hidden_size, ATTENTION_WIDTH)

    @classmethod
    def released_options(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `Connector.released_options`: the MLP without the compressor is another connector."""
        return {} if config.get("mm_resampler_type") == "dynamic_compressor" else None

    @property
    def multiple(self) -> int:
        """See `Connector.multiple`."""
        return self.options.scale

    def reduced(self, grid: Grid, budget: int | None) -> Grid:
        """See `Connector.reduced`.

        Raises:
            FoveateError: No scale that divides rows and columns gives so many tokens.
        """
        if budget is None:
            return Grid(grid.rows // self.options.scale, grid.columns // self.options.scale)
        possible = {output.size: output for output in output_grids(grid)}
        if budget not in possible:
            raise FoveateError(
                f"the connector oryx cannot make {budget} tokens of {grid.rows} x {grid.columns} patches; possible are "
                f"{', '.join(map(str, possible))}."
            )
        return possible[budget]

    def training_lengths(self, grid: Grid) -> tuple[int, ...]:
        """Numbers of tokens that the paper trains, in ascending order: those of all scales that divide the grid."""
        return tuple(output.size for output in output_grids(grid))

    def connect(self, features: Tensor, grid: Grid, output: Grid, text: Tensor | None) -> Tensor:
        """See `Connector.connect`."""
        return self.project(self.compress(features, grid, grid.rows // output.rows))

    def compress(self, features: Tensor, grid: Grid, scale: int) -> Tensor:
        """Compress features `(B, N, D)` to `(B, N / scale^2, D)`, both row-major."""
        values = squares(features, grid, scale)  # (B, n, s^2, D)
        pooled = values.mean(dim=2)
        query, keys = self.query(pooled).unsqueeze(2), self.key(values)
        scores = query @ keys.transpose(-1, -2) / ATTENTION_WIDTH**0.5  # (B, n, 1, s^2)
        attended = (scores.softmax(dim=-1) @ values).squeeze(2)
        return (pooled + attended) * (0.5 if self.options.halve else 1.0)


def output_grids(grid: Grid) -> list[Grid]:
    """Grids of the scales that divide rows and columns, the smallest first."""
    scales = [scale for scale in reversed(SCALES) if grid.rows % scale == grid.columns % scale == 0]
    return [Grid(grid.rows // scale, grid.columns // scale) for scale in scales]

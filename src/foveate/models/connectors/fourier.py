"""Fourier-VLM: a low-pass filter of the features before the two-layer connector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.methods.shared.low_pass import check_ratio, grid_of_count, grid_of_ratio, low_pass
from foveate.models.connectors.mlp import MLP, MLPOptions

#: Shares of the frequencies of each axis that the released models keep.
PAPER_RATIOS = (1 / 4, 1 / 3, 1 / 2, 2 / 3)


@dataclass(frozen=True)
class FourierOptions(MLPOptions):
    """Options of `Fourier`.

    Args:
        ratio: Share of the frequencies of each axis that is kept where no budget is given; n rows become int(n *
            ratio), at least one. The paper has 2/3, 1/2, 1/3 and 1/4 (256, 144, 64 and 36 tokens of 576).
        rescale: Keep the mean of the features. The authors' weights are trained without.
    """

    ratio: float = 0.5
    rescale: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio(self.ratio)
        if not isinstance(self.rescale, bool):
            raise FoveateError(f"rescale must be true or false, not {self.rescale!r}.")


class Fourier(MLP[FourierOptions]):
    """Keeps the lowest frequencies of the features, at a smaller size, then applies the two-layer connector.

        C = DCT(x)                       x (R, C, D), orthonormal DCT-II over rows and columns of each channel
        y = inverse DCT(C[:r, :c])       of size r x c; in float32
        tokens = MLP(y)

    Fourier-VLM: Compressing Vision Tokens in the Frequency Domain (Wang et al., arXiv 2508.06038; its third version is
    called Fourier Compressor). The filter has no weights. In the authors' code, a constant map x becomes x * sqrt(R C /
    (r c)): 24 x 24 features of 12 x 12 tokens are twice as large, and the released weights expect that (`rescale`). The
    ratio is rounded down as in the authors' code for Qwen2-VL.

    One set of weights gives any length, although each of the released ones is trained for one alone. Any product r c is
    possible that keeps the proportions of the image up to a factor of two.

    The authors' checkpoints are those of LLaVA-1.5 by their names, and no field says that the features are filtered:

        config = FoveateLlavaConfig.from_pretrained(folder, connector_type="fourier", connector_options={"ratio": 0.5})
        FoveateLlavaForConditionalGeneration.from_pretrained(folder, config=config)
    """

    name: ClassVar[str] = "fourier"
    title: ClassVar[str] = "Fourier-VLM: Compressing Vision Tokens in the Frequency Domain for Large VLMs"
    paper: ClassVar[str] = "arXiv 2508.06038"
    nested: ClassVar[bool] = True
    length_schedule: ClassVar[Literal["all", "sampled"] | None] = "sampled"
    options_class: ClassVar = FourierOptions
    released_types: ClassVar[tuple[str, ...]] = ("mlp2x_gelu",)

    @classmethod
    def released_options(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `Connector.released_options`: a checkpoint of the authors does not say that it is one."""
        return None

    def reduced(self, grid: Grid, budget: int | None) -> Grid:
        """See `Connector.reduced`.

        Raises:
            FoveateError: No raster with about the proportions of the image has so many tokens.
        """
        return grid_of_ratio(grid, self.options.ratio) if budget is None else grid_of_count(grid, budget)

    def training_lengths(self, grid: Grid) -> tuple[int, ...]:
        """Numbers of tokens at the ratios of the paper, in ascending order; its models are trained at one each."""
        return tuple(sorted({grid_of_ratio(grid, ratio).size for ratio in PAPER_RATIOS}))

    def connect(self, features: Tensor, grid: Grid, output: Grid, text: Tensor | None) -> Tensor:
        """See `Connector.connect`."""
        return self.project(low_pass(features, grid, output, self.options.rescale))

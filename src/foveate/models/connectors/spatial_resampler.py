"""Spatially constrained resampler of LLaVA-UHD: every query attends to its own cell of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from foveate.core.tokens import Grid
from foveate.models.connectors.resampler import QueryResampler, ResamplerOptions
from foveate.models.connectors.tokenpacker import SquareAttention

#: Rows and columns of samples in a cell, by the proportions of the image; of equally near ones the first.
SAMPLES = (Grid(2, 4), Grid(2, 3), Grid(3, 4), Grid(3, 3), Grid(4, 2), Grid(3, 2), Grid(4, 3))


@dataclass(frozen=True)
class SpatialResamplerOptions(ResamplerOptions):
    """Options of `SpatialResampler`.

    Args:
        num_queries: Learned queries, one per token; a square number.
        num_heads: Attention heads; they divide the width of the tokens. None: one per 128 of the width.
    """

    num_queries: int = 144


class SpatialResampler(QueryResampler[SpatialResamplerOptions]):
    """Makes 12 x 12 tokens of an image or slice of any size: query (i, j) attends to samples of cell (i, j) alone.

        v = LN(W x),  k = v + p'         as in `Resampler`, with p of a 12 x 12 grid
        token_ij = LN(W_o MHA(LN(query_ij) + p_ij, samples of k, of v in cell ij)) P

    A cell is R / 12 rows x C / 12 columns of the features (R, C), which need not be whole numbers. It has 3 x 3
    samples, or 2 x 4, 2 x 3, 3 x 4 and their transposes, whichever is nearest to C / R: means of bilinear
    interpolations, as in RoI align (`roi_weights`).

    It belongs to the later code of LLaVA-UHD (Xu et al., arXiv 2403.11703), whose paper has the `Resampler`. There, as
    here, half a position is not taken off before interpolation (`aligned=False`): a cell reads up to one position
    beyond its lower and right border, and the last position counts more than the first. Of an image with fewer than 12
    rows or columns, cells are one row or column, overlap, and samples beyond the image are zeros. Places of samples are
    rounded to the precision of the features in that code, and are exact here.
    """

    name: ClassVar[str] = "spatial_resampler"
    title: ClassVar[str] = "LLaVA-UHD: an LMM Perceiving Any Aspect Ratio and High-Resolution Images"
    paper: ClassVar[str] = "arXiv 2403.11703"
    options_class: ClassVar = SpatialResamplerOptions
    released_types: ClassVar[tuple[str, ...]] = ("adapt_spatial_resampler", "adapt_spatial_resampler_v1")

    def reduced(self, grid: Grid, budget: int | None) -> Grid:
        """See `Connector.reduced`: a square, whatever the proportions of the image."""
        side = math.isqrt(self.options.num_queries)
        return Grid(side, side)

    def build_attention(self, width: int, num_heads: int) -> nn.Module:
        """Attention of every query to its own samples."""
        return SquareAttention(width, num_heads)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, grid: Grid) -> Tensor:
        """See `QueryResampler.attend`."""
        cells = math.isqrt(len(queries))
        return self.attention(
            queries.expand(len(values), -1, -1), cell_samples(keys, grid, cells), cell_samples(values, grid, cells)
        )


def samples_of(grid: Grid) -> Grid:
    """Rows and columns of samples in a cell of features of this grid."""
    ratio = math.log(grid.columns / grid.rows)
    return min(SAMPLES, key=lambda samples: abs(ratio - math.log(samples.columns / samples.rows)))


def cell_samples(features: Tensor, grid: Grid, cells: int) -> Tensor:
    """Sample cells x cells equal cells of features `(B, N, D)` of `grid`: `(B, cells^2, samples, D)`, row-major."""
    samples = samples_of(grid)
    rows = roi_weights(grid.rows, cells, samples.rows).to(features)
    columns = roi_weights(grid.columns, cells, samples.columns).to(features)
    raster = features.unflatten(1, grid)  # (B, R, C, D)
    by_row = torch.einsum("iar,brcd->biacd", rows, raster)
    sampled = torch.einsum("jsc,biacd->bijasd", columns, by_row)
    return sampled.flatten(3, 4).flatten(1, 2)


def roi_weights(length: int, cells: int, samples: int) -> Tensor:
    """Weights `(cells, samples, length)` of RoI align along one axis, where cells divide it evenly.

    RoI align (He et al., arXiv 1703.06870) interpolates bilinearly at points of a cell and averages them, which are
    products over both axes: with b = length / cells, but at least 1, sample s of cell i is the mean over
    m = ceil(b / samples) points at i length / cells + (s + (t + 0.5) / m) b / samples, t < m. A point y lies between
    the positions floor(y) and floor(y) + 1, and is the last position from there to `length`; beyond, it counts as
    zeros.
    """
    width = max(length / cells, 1.0)
    count = max(-(-length // (cells * samples)), 1)
    start = torch.arange(cells, dtype=torch.float64).view(-1, 1, 1) * length / cells
    place = torch.arange(samples, dtype=torch.float64).view(-1, 1) + (torch.arange(count) + 0.5) / count
    points = start + place * width / samples  # (cells, samples, count)
    low = points.floor().long().clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    share = (points - low).clamp(max=1.0)
    weights = torch.zeros(*points.shape, length, dtype=torch.float64)
    within = (points <= length).double()
    weights.scatter_add_(-1, low.unsqueeze(-1), (within * (1 - share)).unsqueeze(-1))
    weights.scatter_add_(-1, high.unsqueeze(-1), (within * share).unsqueeze(-1))
    return weights.mean(dim=2)

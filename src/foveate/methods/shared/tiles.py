"""How a thumbnail and the tiles of the same image correspond."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.pre_llm import divide
from foveate.core.tokens import Crop


def centres(crop: Crop) -> tuple[Tensor, Tensor]:
    """The x and y (n,) of the middles of a crop's cells, row-major, as fractions of the image."""
    left, upper, right, lower = crop.box
    device = crop.index.device
    x = (
        left
        + (right - left)
        * (torch.arange(crop.grid.columns, dtype=torch.float32, device=device) + 0.5)
        / crop.grid.columns
    )
    y = (
        upper
        + (lower - upper) * (torch.arange(crop.grid.rows, dtype=torch.float32, device=device) + 0.5) / crop.grid.rows
    )
    return x.repeat(crop.grid.rows), y.repeat_interleave(crop.grid.columns)


def shown_by(tiles: Sequence[Crop], thumbnail: Crop) -> Tensor:
    """(tiles, n) bool: the cells of the thumbnail whose middle a tile shows."""
    x, y = centres(thumbnail)
    boxes = torch.tensor([tile.box for tile in tiles], dtype=x.dtype, device=x.device)
    left, upper, right, lower = boxes[:, :, None].unbind(dim=1)
    return (left <= x) & (x < right) & (upper <= y) & (y < lower)


def layout(tiles: Sequence[Crop]) -> tuple[int, int]:
    """Rows and columns in which tiles are laid out."""
    return len({round(tile.box[1], 6) for tile in tiles}), len({round(tile.box[0], 6) for tile in tiles})


def on_grid(scores: Tensor, crop: Crop) -> Tensor:
    """(rows, columns) scores (N,) of an image at the cells of a crop; missing ones have the mean of the others."""
    present = crop.index >= 0
    values = scores[crop.index.clamp(min=0)]
    return torch.where(present, values, values[present].mean()).view(crop.grid)


def resampled(values: Tensor, thumbnail: Crop, tile: Crop) -> Tensor:
    """(n,) a map of the thumbnail (rows, columns), interpolated bilinearly at the middles of a tile's cells."""
    x, y = centres(tile)
    left, upper, right, lower = thumbnail.box
    points = torch.stack([(x - left) / (right - left), (y - upper) / (lower - upper)], dim=-1) * 2 - 1
    samples = F.grid_sample(
        values[None, None], points[None, None].to(values.dtype), padding_mode="border", align_corners=False
    )
    return samples.flatten()


def apportion(count: int, weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """`count` divided in proportion to `weights`, none getting more than its size; largest remainders round up.

    What exceeds a size goes to the others in proportion to their weights, or to their remaining sizes where all weights
    are zero. The shares sum to min(count, sum(sizes)).
    """
    remaining = count = min(count, sum(sizes))
    exact = [0.0] * len(sizes)
    waiting = [i for i, size in enumerate(sizes) if size and weights[i] > 0]
    while waiting:
        total = sum(weights[i] for i in waiting)
        full = [i for i in waiting if remaining * weights[i] >= sizes[i] * total]
        for i in full or waiting:
            exact[i] = sizes[i] if full else remaining * weights[i] / total
        remaining = remaining - sum(sizes[i] for i in full) if full else 0
        waiting = [i for i in waiting if i not in full] if full else []
    shares = [int(share) for share in exact]
    order = sorted(range(len(sizes)), key=lambda i: (shares[i] - exact[i], i))
    for i in order[: count - remaining - sum(shares)]:
        shares[i] += 1
    if remaining:
        extra = divide(remaining, [size - share for size, share in zip(sizes, shares, strict=True)])
        shares = [share + added for share, added in zip(shares, extra, strict=True)]
    return shares

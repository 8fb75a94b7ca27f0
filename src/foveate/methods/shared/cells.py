"""Division of a raster of tokens into any number of compact cells of equal size."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.tokens import Crop


def cells(crop: Crop, count: int) -> tuple[Tensor, Tensor]:
    """Divide the tokens of a crop into exactly `count` cells whose sizes differ by one at most.

    The rows are cut into about sqrt(count * rows / columns) bands, so that cells are as wide as they are high. One path
    runs through all tokens, column by column through a band, to the right in the first band, back in the next; token p
    of m on it lies in cell p * count // m. So every token is in one cell whatever `count` is and whatever tokens are
    missing, and where bands and columns divide evenly the cells are the rectangles of average pooling.

    Args:
        crop: Its m present tokens are divided.
        count: From 1 to m.

    Returns:
        (count,) places, among the present tokens, of the token nearest to the middle of every cell, ascending; (m,) for
        every present token the row of its cell in them.
    """
    place = (crop.index >= 0).nonzero().flatten()
    size = len(place)
    row, column = place // crop.grid.columns, place % crop.grid.columns
    row, column = row - row.min(), column - column.min()
    height, width = row.max() + 1, column.max() + 1
    bands = (count * height.double() / width).sqrt().round().long().clamp(min=1).minimum(height)
    band = row * bands // height
    along = torch.where(band % 2 == 0, column, width - 1 - column)
    path = ((band * width + along) * height + row).argsort()
    cell = torch.empty_like(path)
    cell[path] = torch.arange(size, device=path.device) * count // size

    sizes = cell.bincount(minlength=count)
    where = torch.stack([row, column], dim=1).float()
    middle = where.new_zeros(count, 2).index_add_(0, cell, where) / sizes[:, None]
    distance = (where - middle[cell]).square().sum(dim=1)
    nearest = distance.argsort(stable=True)
    nearest = nearest[cell[nearest].argsort(stable=True)]
    centres, order = nearest[sizes.cumsum(0) - sizes].sort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count, device=order.device)
    return centres, rank[cell]

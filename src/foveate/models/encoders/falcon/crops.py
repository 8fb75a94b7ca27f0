"""FALCON's crops: the grid that an image is cut into, and the position of every crop."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid, ranked


def crop_grid(height: int, width: int, side: int, max_crops: int = 16) -> Grid:
    """Rows and columns of crops that suit the shape of an image, and then its size.

    Of all grids of at most `max_crops` crops it is the one with the greatest 100 * shape IoU + IoU. IoU is that of the
    box of the image and the box of the grid in pixels, both from the same corner; for the shape IoU the image is scaled
    to the width of the grid, and its height floored to whole pixels, as in the authors' code.

    Args:
        height: Of the image in pixels.
        width: Of the image in pixels.
        side: Of a crop in pixels.
        max_crops: The most crops.

    Raises:
        FoveateError: A number is not above 0.
    """
    if min(height, width, side, max_crops) < 1:
        raise FoveateError(
            f"an image of {height} x {width} pixels cannot be cut into 1 to {max_crops} crops of {side} pixels."
        )
    # With equal scores the first one is chosen: fewer crops before more, fewer rows before more.
    counts = range(1, max_crops + 1)
    grids = [Grid(rows, count // rows) for count in counts for rows in range(1, count + 1) if count % rows == 0]
    boxes = torch.tensor(grids) * side
    # In float32 and whole pixels, as in the authors' code, so that near ties are decided alike.
    scaled = torch.stack([(height / width * boxes[:, 1]).long(), boxes[:, 1]], dim=1)
    score = 100 * _iou(boxes, scaled) + _iou(boxes, torch.tensor([[height, width]]))
    return grids[int(ranked(score, 1))]


def crop_positions(grid: Grid, max_crops: int = 16, overview: bool = True) -> Tensor:
    """Row and column `(crops, 2)` of every crop, row-major.

    Args:
        grid: See `crop_grid`.
        max_crops: As in the configuration of the encoder.
        overview: Begin with the whole image as one crop more, whose row and column are `max_crops`.
    """
    rows, columns = (torch.arange(side) for side in grid)
    positions = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.full((1, 2), max_crops), positions]) if overview else positions


def split_crops(pixels: Tensor, side: int) -> Tensor:
    """Cut an image `(C, rows * side, columns * side)` into crops `(rows * columns, C, side, side)`, row-major.

    Raises:
        FoveateError: The sides of the image are no multiples of `side`.
    """
    height, width = pixels.shape[-2:]
    if height % side or width % side:
        raise FoveateError(f"an image of {height} x {width} pixels is not divided by crops of {side} pixels.")
    crops = pixels.unflatten(1, (height // side, side)).unflatten(3, (width // side, side))
    return crops.permute(1, 3, 0, 2, 4).flatten(0, 1)


def _iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes `(n, 2)` from the same corner, with the authors' constant below the fraction."""
    common = torch.minimum(boxes, others).prod(dim=1)
    return common / (boxes.prod(dim=1) + others.prod(dim=1) - common + 1e-5)

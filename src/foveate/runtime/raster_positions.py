"""Positions of several axes (M-RoPE) for images whose raster became smaller."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.sequence import PlacedSelection

#: Time, row and column; some models get text positions before them.
AXES = 3


def shift_of_rasters(positions: Tensor, selections: Sequence[PlacedSelection], sample_ids: Tensor | None) -> Tensor:
    """(B, L) by how much the positions of each column come earlier, for smaller images before it.

    An image takes as many positions as the longer side of its raster has tokens; text after it goes on from there.

    Args:
        positions: (axes, B, L) of the full sequence.
        selections: What stays of every image.
        sample_ids: (B, L) the sample of each column; None: every row is one.
    """
    shift = torch.zeros(positions.shape[1:], dtype=positions.dtype, device=positions.device)
    for image in selections:
        if image.selection.raster is None or not len(image.columns):
            continue
        rows_and_columns = positions[-AXES:, image.row, image.columns][1:]
        longer = (rows_and_columns.amax(dim=1) - rows_and_columns[:, 0]).max() + 1
        after = slice(int(image.columns[-1]) + 1, None)
        fewer = longer - max(image.selection.raster.grid)
        if sample_ids is not None:
            same = sample_ids[image.row, after] == sample_ids[image.row, image.columns[0]]
            fewer = fewer * same.to(shift)
        shift[image.row, after] += fewer
    return shift


def raster_positions(
    positions: Tensor, shift: Tensor, columns: Tensor, pruned: Tensor, selections: Sequence[PlacedSelection]
) -> Tensor:
    """Positions of the pruned sequence, in which every image has those of its smaller raster.

    Args:
        positions: (axes, B, L) of the full sequence.
        shift: (B, L) from `shift_of_rasters`, of this pass and of those before.
        columns: (B, P), see `foveate.core.sequence`.
        pruned: (axes, B, P), `positions` at the columns.
        selections: What stays of every image.

    Returns:
        (axes, B, P); a text axis before the others stays as it is.
    """
    result = pruned.clone()
    for image in selections:
        raster = image.selection.raster
        if raster is None:
            continue
        places = torch.searchsorted(columns[image.row].contiguous(), image.kept)
        first = positions[-AXES:, image.row, image.columns[0]]
        result[-2, image.row, places] = first[1] + raster.places // raster.grid.columns
        result[-1, image.row, places] = first[2] + raster.places % raster.grid.columns
    result[-AXES:] -= shift.gather(1, columns.clamp(min=0)) * (columns >= 0)
    return result

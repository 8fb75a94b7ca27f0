"""Connectors on packed images of different grids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.tokens import Grid
from foveate.models.connectors.connector import Connector


def connect_packed(
    connector: Connector,
    features: Tensor,
    grids: Tensor,
    budget: int | Sequence[int] | None = None,
    text: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Map packed features of images of any sizes; images of equal grids and budgets share one call.

    Args:
        connector: The connector.
        features: `(L, D)`, or `(L, K, D)` where it reads K layers; all images one after another, row-major.
        grids: `(n, 2)` rows and columns of every image.
        budget: Tokens of every image, or one number for each of them, for nested connectors.
        text: `(n, T, d)` for connectors that read text.

    Returns:
        The tokens `(tokens, d)` of every image, and their grids `(n, 2)`.

    Raises:
        FoveateError: The connector cannot map one of the grids.
    """
    sizes = [Grid(rows, columns) for rows, columns in grids.tolist()]
    counts = [grid.size for grid in sizes]
    if connector.per_token and budget is None:
        tokens, _ = connector(features[None], Grid(1, len(features)), None, text)
        return list(tokens[0].split(counts)), grids
    images = features.split(counts)
    budgets = [budget] * len(sizes) if budget is None or isinstance(budget, int) else budget
    places: defaultdict[tuple[Grid, int | None], list[int]] = defaultdict(list)
    for place, key in enumerate(zip(sizes, budgets, strict=True)):
        places[key].append(place)
    result: dict[int, Tensor] = {}
    outputs: dict[int, Grid] = {}
    for (grid, count), members in places.items():
        group = torch.stack([images[place] for place in members])
        tokens, output = connector(group, grid, count, None if text is None else text[members])
        result |= dict(zip(members, tokens, strict=True))
        outputs |= dict.fromkeys(members, output)
    order = range(len(sizes))
    return [result[place] for place in order], grids.new_tensor([outputs[place] for place in order])

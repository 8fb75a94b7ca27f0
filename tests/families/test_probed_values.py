"""What probes measure in towers that order and merge tokens in their own ways, against the models' eager attention."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest
import torch

from foveate.core.tokens import Need
from foveate.families import family_of
from tests.families.reference import HUBS, eager, measured, row
from tests.families.zoo import zoo

SIZES = ((3, 4), (2, 3), (4, 5), (3, 4))
#: For every token of rows x columns the places of its patches in the order of the encoder at a block.
Places = Callable[[int, int, int], list[list[int]]]


def groups(rows: int, columns: int, layer: int) -> list[list[int]]:
    """Four patches of a token stand together."""
    return [[4 * token + i for i in range(4)] for token in range(rows * columns)]


def windows_of(rows: int, columns: int, side: int) -> list[list[int]]:
    """Places of a raster by windows, row by row of windows."""
    return [
        [r * columns + c for r in range(top, min(top + side, rows)) for c in range(left, min(left + side, columns))]
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    ]


def windowed_groups(rows: int, columns: int, layer: int) -> list[list[int]]:
    """As `groups`, and tokens window by window, each of 2 x 2 tokens."""
    order = list(chain.from_iterable(windows_of(rows, columns, 2)))
    return [[4 * order.index(token) + i for i in range(4)] for token in range(rows * columns)]


def squares(*sides: int) -> Places:
    """Patches row-major; at block l, sides[l] x sides[l] of them are a token in the end."""

    def places(rows: int, columns: int, layer: int) -> list[list[int]]:
        side = sides[layer]
        return [
            [(r * side + i) * columns * side + c * side + j for i in range(side) for j in range(side)]
            for r in range(rows)
            for c in range(columns)
        ]

    return places


def windowed_squares(rows: int, columns: int, layer: int) -> list[list[int]]:
    """As `squares(4, 2, 1)`, and patches by windows of 3 x 3, whole ones first."""
    side = (4, 2, 1)[layer]
    order = list(chain.from_iterable(sorted(windows_of(rows * side, columns * side, 3), key=len, reverse=True)))
    return [[order.index(place) for place in token] for token in squares(4, 2, 1)(rows, columns, layer)]


ORDERS: dict[str, Places] = {
    "qwen2-vl": groups,
    "qwen2.5-vl": windowed_groups,
    "qwen3-vl": groups,
    "qwen3.5": groups,
    "glm-4v": groups,
    "mistral3": squares(2, 2, 2),
    "kimi-k2.5": squares(2, 2, 2),
    "gemma4": squares(2, 2, 2),
    "minicpm-v-4.6": squares(4, 2, 2),
    "llava-uhd": squares(4, 2, 1),
    "llava-uhd-windows": windowed_squares,
}


@pytest.mark.parametrize("kind", ["received", "hub_attention", "keys", "features"])
@pytest.mark.parametrize("name", ORDERS)
def test_values_are_those_of_the_patches_behind_each_token(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    specimen = zoo()[name]
    model = specimen.model()
    layers = range(len(family_of(model).blocks(family_of(model).core(model))))
    threshold = HUBS if kind == "hub_attention" else 0.0
    needs = [Need(kind, layer, threshold=threshold) for layer in layers]  # ty: ignore[invalid-argument-type]
    together = measured(model, specimen.prompts(model, [(size,) for size in SIZES]), needs, monkeypatch)
    for number, (size, found) in enumerate(zip(SIZES, together, strict=True)):
        alone = eager(model, row(specimen, (size,), number), monkeypatch)
        for need in needs:
            expected = torch.stack([alone[need][places].mean(dim=0) for places in ORDERS[name](*size, need.layer)])
            torch.testing.assert_close(found[need], expected, atol=1e-5, rtol=1e-4)

"""HiPrune against a loop from the paper and against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Crop, EncoderSpec, Grid, Need, VisualTokens
from foveate.methods.pre_llm.hiprune import HiPrune

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "hiprune.json").read_text())
TOWER = EncoderSpec(24, True, output_layer=-2)


def image(middle: list[float], deep: list[float], grid: tuple[int, int]) -> VisualTokens:
    measured = {Need("received", 8): torch.tensor(middle), Need("received", 22): torch.tensor(deep)}
    return VisualTokens.of_grid(torch.zeros(len(middle), 2), grid, measured=measured, tower=TOWER)


def by_the_paper(middle: list[float], deep: list[float], grid: tuple[int, int], count: int, alpha: float) -> list[int]:
    rows, columns = grid
    order = sorted(range(len(middle)), key=lambda i: (-middle[i], i))
    chosen = set()
    for i in order[: min(round(count * alpha / 5), count // 5)]:
        row, column = divmod(i, columns)
        for r, c in ((row, column), (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= r < rows and 0 <= c < columns:
                chosen.add(r * columns + c)
    for i in sorted(range(len(deep)), key=lambda i: (-deep[i], i)):
        if len(chosen) < count:
            chosen.add(i)
    return sorted(chosen)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("grid", [(4, 6), (7, 3), (1, 9), (8, 8)])
@pytest.mark.parametrize("ties", [False, True])
def test_equals_the_loop(grid: tuple[int, int], alpha: float, ties: bool) -> None:
    generator = torch.Generator().manual_seed(grid[0])
    size = grid[0] * grid[1]
    draw = torch.randint(0, 3 if ties else 10**6, (2, size), generator=generator).float()
    middle, deep = draw.tolist()
    for count in (1, 3, size // 2, size - 1):
        selection = HiPrune(alpha=alpha)(image(middle, deep, grid), count)
        selection.check(size)
        assert selection.indices.tolist() == by_the_paper(middle, deep, grid, count, alpha)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["grid"]))
def test_equals_the_authors_code(case: dict) -> None:
    method = HiPrune(alpha=case["alpha"], reference=True)
    selection = method(image(case["middle"], case["deep"], tuple(case["grid"])), case["count"])
    assert selection.indices.tolist() == case["kept"]


def test_neighbours_do_not_wrap_unless_asked() -> None:
    middle, deep = [0.0] * 16, [float(i) for i in range(16, 0, -1)]
    middle[8] = 1.0  # first of the third row
    assert HiPrune(alpha=1.0)(image(middle, deep, (4, 4)), 5).indices.tolist() == [0, 4, 8, 9, 12]
    assert HiPrune(alpha=1.0, reference=True)(image(middle, deep, (4, 4)), 5).indices.tolist() == [4, 7, 8, 9, 12]


def test_no_share_for_anchors_is_plain_ranking() -> None:
    deep = [3.0, 9.0, 1.0, 9.0, 5.0, 2.0]
    assert HiPrune(alpha=0)(image([0.0] * 6, deep, (2, 3)), 3).indices.tolist() == [1, 3, 4]


def test_padding_is_nobodys_neighbour() -> None:
    # A 3 x 3 grid without its centre: the anchor left of it must not reach the token right of it.
    crop = Crop(torch.tensor([0, 1, 2, 3, -1, 4, 5, 6, 7]), Grid(3, 3))
    middle, deep = torch.zeros(8), torch.tensor([0.0, 3, 0, 0, 1, 0, 0, 2])
    middle[3] = 1.0
    tokens = VisualTokens(
        torch.zeros(8, 2), (crop,), {Need("received", 8): middle, Need("received", 22): deep}, tower=TOWER
    )
    assert HiPrune(alpha=1.0)(tokens, 5).indices.tolist() == [0, 1, 3, 5, 7]


def test_layers_of_the_paper() -> None:
    assert HiPrune().needs(TOWER) == (Need("received", 8), Need("received", 22))
    assert HiPrune().needs(EncoderSpec(32, False)) == (Need("received", 15), Need("received", 31))
    assert HiPrune(layer=-1).needs(TOWER)[0] == Need("received", 23)


def test_bad_share() -> None:
    with pytest.raises(FoveateError, match=r"0 to 1, not 1\.5"):
        HiPrune(alpha=1.5)

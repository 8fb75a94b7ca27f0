"""HiRED against a loop from the paper and against numbers of the authors' code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Need, VisualTokens
from foveate.methods.pre_llm.fastervlm import FasterVLM
from foveate.methods.pre_llm.hired import HiRED
from foveate.methods.shared.tiles import apportion
from foveate.testing.visual_tokens import frames, measure, plain, tied, tiled

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "hired.json").read_text())
LATE, EARLY = Need("cls_attention", 22), Need("cls_attention", 0)


def greatest(scores: dict[int, float], count: int) -> list[int]:
    return sorted(scores, key=lambda i: (-scores[i], i))[:count]


def by_the_paper(tokens: VisualTokens, count: int, alpha: float) -> list[int]:
    """For images whose tiles divide the thumbnail evenly and that have no padding."""
    late, early = tokens.measured[LATE].tolist(), tokens.measured[EARLY].tolist()
    thumbnail, *tiles = tokens.crops
    size, side = len(thumbnail.index), thumbnail.grid.columns
    columns = len({tile.box[0] for tile in tiles})
    rows = len(tiles) // columns
    whole = max(min(int(count * alpha), size), count - size * len(tiles))
    marks = greatest({i: early[i] for i in range(size)}, int(size * (1 - alpha)))
    content = [0] * len(tiles)
    for i in marks:
        content[i // side // (side // rows) * columns + i % side // (side // columns)] += 1
    shares = apportion(count - whole, content, [size] * len(tiles))
    kept = greatest({i: late[i] for i in range(size)}, whole)
    for tile, share in zip(tiles, shares, strict=True):
        kept += greatest({i: late[i] for i in tile.index.tolist()}, share)
    return sorted(kept)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(("side", "layout"), [(4, (2, 2)), (6, (1, 3)), (6, (3, 2))])
@pytest.mark.parametrize("ties", [False, True])
def test_paper(side: int, layout: tuple[int, int], alpha: float, ties: bool):
    method = HiRED(alpha)
    tokens = measure(method, tiled(side, layout, (0, 0), newlines=False), seed=side)
    tokens = tied(tokens) if ties else tokens
    for count in (1, 7, 30, len(tokens) - 3):
        assert method(tokens, count).indices.tolist() == by_the_paper(tokens, count, alpha)


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_authors_code(case: dict):
    tokens = tiled(case["side"], tuple(case["layout"]), (0, 0), newlines=False)
    measured = dict.fromkeys((LATE, EARLY), torch.zeros(len(tokens)))
    for need, values in ((LATE, case["late"]), (EARLY, case["early"])):
        measured[need] = measured[need].clone()
        for crop, row in zip(tokens.crops, values, strict=True):
            measured[need][crop.index] = torch.tensor(row)
    expected = sorted(int(crop.index[i]) for crop, kept in zip(tokens.crops, case["kept"], strict=True) for i in kept)
    chosen = HiRED(case["alpha"], reference=True)(replace(tokens, measured=measured), case["count"])
    chosen.check(len(tokens))
    assert chosen.indices.tolist() == expected


def test_content_at_the_top_right_gives_that_tile_the_budget():
    """And the authors' strips give half of it to the tile at the top left."""
    tokens = tiled(4, (2, 2), (0, 0), newlines=False)
    early = torch.zeros(len(tokens))
    early[:16].view(4, 4)[:2, 2:] = 1
    tokens = replace(tokens, measured={EARLY: early, LATE: torch.rand(len(tokens))})
    for reference, expected in ((False, [0, 4, 0, 0]), (True, [2, 2, 0, 0])):
        chosen = set(HiRED(0.75, reference)(tokens, 16).indices.tolist())
        assert [len(chosen & set(tile.index.tolist())) for tile in tokens.crops[1:]] == expected


def test_padding_gets_no_budget():
    tokens = tiled(4, (2, 2), (3, 0))  # one row of every tile is left
    early = torch.zeros(len(tokens))
    early[:8] = 1
    tokens = replace(tokens, measured={EARLY: early, LATE: torch.rand(len(tokens))})
    chosen = HiRED()(tokens, 10).indices
    assert [int(torch.isin(tile.present, chosen).sum()) for tile in tokens.crops] == [5, 3, 2, 0, 0]


def test_other_images():
    tokens = measure(HiRED(), plain(5, 5))
    also = replace(tokens, measured={**tokens.measured, FasterVLM().needs(tokens.tower)[0]: tokens.get(LATE)})
    assert torch.equal(HiRED()(also, 7).indices, FasterVLM()(also, 7).indices)
    clip = measure(HiRED(), frames(3))
    chosen = HiRED()(clip, 9).indices
    assert [int(torch.isin(crop.index, chosen).sum()) for crop in clip.crops] == [3, 3, 3]


def test_bad_arguments():
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(FoveateError, match="0 to 1"):
            HiRED(alpha)


def test_apportion():
    assert apportion(10, [1, 1, 2], [9, 9, 9]) == [3, 2, 5]  # of equal remainders the first is served first
    assert apportion(10, [1, 1, 8], [9, 9, 4]) == [3, 3, 4]  # what is too much for one goes to the others
    assert apportion(10, [0, 0, 8], [9, 3, 4]) == [5, 1, 4]  # by remaining size where all weights are zero
    assert apportion(99, [1, 0, 0], [2, 3, 4]) == [2, 3, 4]
    assert apportion(5, [0, 0], [10, 0]) == [5, 0]

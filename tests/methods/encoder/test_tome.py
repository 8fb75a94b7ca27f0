"""ToMe: a slow loop from the paper, what the authors' code returned, and what must hold."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.bipartite import Tokens, key_bias, members
from foveate.core.errors import FoveateError
from foveate.core.in_encoder import spread
from foveate.methods.encoder.tome import ToMe

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "tome.json").read_text())


def loop(x, keys, r, cls):
    """One image, one block: section 3 of the paper by hand. Returns rows as (members, feature)."""
    count = len(keys)
    unit = [k / k.norm() if k.norm() > 0 else k for k in keys]
    pairs = []
    for a in range(0, count, 2):
        if cls and a == 0:
            continue
        scores = [float(unit[a] @ unit[b]) for b in range(1, count, 2)]
        best = max(range(len(scores)), key=lambda b: (scores[b], -b))
        pairs.append((scores[best], a, 2 * best + 1))
    pairs.sort(key=lambda pair: -pair[0])
    merges = {a: b for _, a, b in pairs[:r]}
    stay = [a for _, a, _ in pairs[r:]]
    if cls:
        stay = [0, *sorted(stay)]
    rows = [[a] for a in stay] + [[b, *(a for a in merges if merges[a] == b)] for b in range(1, count, 2)]
    return rows, torch.stack([x[row].mean(0) for row in rows])


@given(st.integers(2, 21), st.booleans(), st.booleans(), st.integers(0, 10**6), st.data())
def test_as_the_loop(count, cls, ties, seed, data):
    generator = torch.Generator().manual_seed(seed)
    r = data.draw(st.integers(0, (count - cls) // 2))
    x = torch.randn(2, count, 5, generator=generator)
    # Small integers in one dimension: cosines of exactly -1, 0 and 1, so that many are equal.
    keys = torch.randint(-1, 2, (2, count, 1), generator=generator).float() if ties else torch.randn_like(x)
    tokens = Tokens.start(x)
    if r:
        tokens = ToMe().step(r, cls)(tokens, keys)
    for image in range(2):
        rows, features = loop(x[image], keys[image], r, cls) if r else ([[i] for i in range(count)], x[image])
        torch.testing.assert_close(tokens.x[image], features)
        assert [len(row) for row in rows] == tokens.size[image, :, 0].tolist()
        for place, row in enumerate(rows):
            assert (tokens.source[image, row] == place).all()


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=range(len(GOLDEN["cases"])))
def test_as_the_authors(case):
    tokens = Tokens.start(torch.tensor(case["x"]))
    for keys, amount in zip(case["keys"], case["amounts"], strict=True):
        tokens = ToMe().step(amount, case["cls"])(tokens, torch.tensor(keys))
    assert tokens.source.tolist() == case["source"]
    assert tokens.size[..., 0].tolist() == case["size"]
    torch.testing.assert_close(tokens.x, torch.tensor(case["out"]), atol=1e-5, rtol=1e-5)


@given(st.integers(2, 200), st.integers(1, 12), st.booleans(), st.floats(-1, 1), st.data())
def test_a_budget_is_met_exactly(patches, blocks, cls, inflect, data):
    least = patches
    for _ in range(blocks):
        least -= least // 2
    count = data.draw(st.integers(least, patches))
    amounts = spread(patches - count, patches, blocks, cls, inflect)
    assert len(amounts) == blocks and sum(amounts) == patches - count
    rows = patches
    for amount in amounts:
        assert 0 <= amount <= rows // 2
        rows -= amount


def test_a_budget_is_spread_evenly():
    assert spread(576 - 72, 576, 24, True) == (21,) * 24  # DyMU's 72 of 576 in CLIP-L
    assert spread(729 - 192, 729, 27, False) == (20,) * 24 + (19,) * 3
    assert spread(10, 40, 4, False) == (3, 3, 2, 2)
    assert spread(12, 40, 3, False, -1) == (8, 4, 0)
    assert spread(12, 40, 3, False, 1) == (0, 4, 8)


def test_r_of_every_block():
    assert ToMe(r=8).amounts(576, 3, True, None) == (8, 8, 8)
    assert ToMe(r=8, inflect=-1).amounts(576, 5, True, None) == (16, 12, 8, 4, 0)
    assert ToMe(r=8).amounts(20, 4, True, None) == (8, 6, 3, 1)  # at most half of what a block has
    assert ToMe(r=8).steps(20, 4, cls=True, count=20) == (None,) * 4
    assert ToMe(r=0).steps(20, 4, cls=True) == (None,) * 4


def test_attention_to_merged_rows_is_that_to_their_members():
    query, key, value = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    group = torch.tensor([0, 1, 1, 2, 3, 3, 3, 4])
    size = group.bincount().float().view(1, 5, 1).expand(2, 5, 1)
    attend = torch.nn.functional.scaled_dot_product_attention
    short = attend(query, key, value, attn_mask=key_bias(size, query.dtype))
    torch.testing.assert_close(short, attend(query, key[:, :, group], value[:, :, group]))


def test_a_missing_row_is_not_attended_to():
    bias = key_bias(torch.tensor([[[2.0], [1.0], [0.0]]]))
    assert bias.shape == (1, 1, 1, 3)
    assert bias.flatten().tolist() == [pytest.approx(math.log(2)), 0.0, -math.inf]


def test_members_are_ascending_and_leave_cls_out():
    tokens = ToMe().step(3, True)(Tokens.start(torch.randn(1, 11, 4)), torch.randn(1, 11, 4))
    ((indices, assignment),) = members(tokens, cls=True)
    assert len(indices) == 7 and (indices.diff() > 0).all() and len(assignment) == 10
    for row, first in enumerate(indices.tolist()):
        assert (assignment == row).nonzero()[0].item() == first


def test_dtypes_stay():
    x = torch.randn(1, 9, 4, dtype=torch.bfloat16)
    tokens = ToMe().step(2, False)(Tokens.start(x), x)
    assert tokens.x.dtype == torch.bfloat16 and tokens.size.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToMe(r=-1), "0 or more"),
        (lambda: ToMe(inflect=2), "between -1 and 1"),
        (lambda: ToMe().steps(64, 4, cls=True), "needs a budget"),
        (lambda: ToMe().steps(64, 4, cls=True, count=0), "the least is 1"),
        (lambda: ToMe().steps(64, 2, cls=True, count=8), "leaves 16"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(FoveateError, match=message):
        make()

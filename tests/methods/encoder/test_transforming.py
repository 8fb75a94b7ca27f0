"""Token Transforming: no code is public, so the equations of its docstring by hand and what they promise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.bipartite import Tokens, match
from foveate.core.errors import FoveateError
from foveate.methods.encoder.tome import ToMe
from foveate.methods.encoder.transforming import TokenTransforming


def loop(x, size, keys, amount, cls, temperature):
    """Y = W X for one image, entry by entry."""
    count = len(keys)
    unit = keys / keys.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    score = match(keys[None], cls=cls).score[0].tolist()
    order = sorted(range(len(score)), key=lambda a: (-score[a], a))
    gone = sorted(2 * a for a in order[:amount])
    stay = [i for i in range(0, count, 2) if i not in gone] + list(range(1, count, 2))
    p = torch.zeros(len(stay), count)
    for row, m in enumerate(stay):
        p[row, m] = 1
    for n in gone:
        open_to = [row for row, m in enumerate(stay) if not (cls and m == 0)]
        weights = torch.stack([torch.exp((unit[n] @ unit[stay[row]] - 1) / temperature) for row in open_to])
        p[open_to, n] = weights / weights.sum()
    mass = p * size
    w = mass / mass.sum(1, keepdim=True)
    return w, w @ x, mass.sum(1)


@settings(max_examples=40)
@given(st.integers(4, 18), st.booleans(), st.integers(0, 10**6), st.data())
def test_as_the_loop(count, cls, seed, data):
    generator = torch.Generator().manual_seed(seed)
    amount = data.draw(st.integers(1, (count - cls) // 2))
    x, keys = torch.randn(2, count, 5, generator=generator), torch.randn(2, count, 3, generator=generator)
    size = torch.rand(2, count, 1, generator=generator) * 3 + 1
    tokens = TokenTransforming(0.2).step(amount, cls)(Tokens.start(x)._replace(size=size), keys)
    for image in range(2):
        w, y, mass = loop(x[image], size[image, :, 0], keys[image], amount, cls, 0.2)
        torch.testing.assert_close(w.sum(1), torch.ones(len(w)))
        torch.testing.assert_close(tokens.x[image], y, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tokens.size[image, :, 0], mass)
        torch.testing.assert_close((tokens.x * tokens.size)[image].sum(0), (x * size)[image].sum(0))
        assert (tokens.source[image] >= 0).all() and (tokens.source[image] < count - amount).all()
        assert len(tokens.source[image].unique()) == count - amount  # every row has a patch
        if cls:
            torch.testing.assert_close(tokens.x[image, 0], x[image, 0])


def test_cold_it_merges_as_tome_where_partners_are_nearest():
    # Pairs of equal keys, one token of each in A and one in B: both methods join the pairs.
    keys = torch.randn(1, 6, 4).repeat_interleave(2, dim=1)
    x = torch.randn(1, 12, 5)
    cold = TokenTransforming(1e-4).step(4, False)(Tokens.start(x), keys)
    hard = ToMe().step(4, False)(Tokens.start(x), keys)
    torch.testing.assert_close(cold.x.sort(1).values, hard.x.sort(1).values)
    assert sorted(cold.size.flatten().tolist()) == pytest.approx(sorted(hard.size.flatten().tolist()))


def test_equal_tokens_stay_equal():
    x = torch.randn(1, 1, 5).expand(1, 16, 5)
    tokens = TokenTransforming().step(8, False)(Tokens.start(x), x)
    torch.testing.assert_close(tokens.x, x[:, :8])
    assert tokens.size.sum().item() == pytest.approx(16)


def test_full_budget_does_nothing():
    assert TokenTransforming().steps(16, 3, cls=True, count=16) == (None,) * 3


def test_bad_input():
    with pytest.raises(FoveateError, match="above 0"):
        TokenTransforming(0)
    with pytest.raises(FoveateError, match="needs a budget"):
        TokenTransforming().steps(16, 3, cls=True)

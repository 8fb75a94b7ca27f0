"""The random control: every token with the same chance, and nothing but its seed decides."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from foveate.methods.decoder.random import RandomDecoder
from foveate.testing.layer_tokens import changed, layer_tokens


def by_hand(size: int, count: int, seed: int, layer: int, number: int) -> list[int]:
    """The first `count` places of a permutation drawn with the seed of the layer and the image."""
    own = torch.Generator().manual_seed(((seed * 1_009 + layer) * 1_000_003 + number) % 2**63)
    return sorted(torch.randperm(size, generator=own).tolist()[:count])


@pytest.mark.parametrize("seed", [0, 1, 2**62])
@pytest.mark.parametrize(("layer", "number"), [(1, 0), (1, 3), (5, 0)])
def test_equals_the_draw(seed: int, layer: int, number: int) -> None:
    tokens = replace(layer_tokens(20, layer=layer), number=number)
    selection = RandomDecoder(seed)(tokens, 7)
    selection.check(20)
    assert selection.indices.tolist() == by_hand(20, 7, seed, layer, number)


def test_every_set_of_tokens_has_the_same_chance() -> None:
    """Chi-squared over all 20 sets of 3 of 6, at a level of about one in a million."""
    draws, tokens = 4000, layer_tokens(6)
    counts = dict.fromkeys(combinations(range(6), 3), 0)
    for seed in range(draws):
        counts[tuple(RandomDecoder(seed)(tokens, 3).indices.tolist())] += 1
    expected = draws / math.comb(6, 3)
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 65.4  # 19 degrees of freedom


def test_hidden_states_decide_nothing_and_the_global_state_is_left_alone() -> None:
    tokens, before = layer_tokens(30), torch.get_rng_state()
    first = RandomDecoder()(tokens, 9).indices
    other = changed(tokens, features=tokens.features + 1, hidden=tokens.prompt.hidden * 2)
    assert torch.equal(RandomDecoder()(other, 9).indices, first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(RandomDecoder(1)(tokens, 9).indices, first)


def test_layers() -> None:
    """Where FastV acts."""
    assert RandomDecoder().layers(32) == (2,)
    assert RandomDecoder().layers(2) == (1,)

"""Random tokens: every token with the same chance, the draw of a seed always the same."""

from __future__ import annotations

from dataclasses import replace

import torch

from foveate.methods.pre_llm.random import Random
from foveate.testing.visual_tokens import plain, tiled


def test_a_seed_and_an_image_number_make_the_draw():
    tokens = plain(6, 6)
    first = Random()(tokens, 9).indices
    assert torch.equal(first, Random()(tokens, 9).indices)
    others = [
        Random(seed=1)(tokens, 9),
        Random()(replace(tokens, number=1), 9),
        Random(seed=1)(replace(tokens, number=1), 9),
    ]
    draws = {tuple(first.tolist()), *(tuple(other.indices.tolist()) for other in others)}
    assert len(draws) == 4


def test_every_token_has_the_same_chance():
    tokens = plain(2, 4)
    counts = torch.zeros(8)
    for seed in range(400):
        counts[Random(seed)(tokens, 2).indices] += 1
    assert counts.sum() == 800
    # 100 expected; the standard deviation is 8.7.
    assert counts.min() > 60 and counts.max() < 140


def test_tiles_are_one_urn_without_newlines():
    tokens = tiled(4, (2, 2), (1, 0))
    assert tokens.separators is not None
    draws = [Random(seed)(tokens, 20).indices for seed in range(20)]
    assert not any(bool(tokens.separators[draw].any()) for draw in draws)
    assert len({int((draw < 16).sum()) for draw in draws}) > 1  # what the thumbnail keeps is chance

"""Uniform: a lattice where it fits, close to one elsewhere."""

from __future__ import annotations

import pytest
import torch

from foveate.methods.pre_llm.pool import Pool
from foveate.methods.pre_llm.uniform import Uniform
from foveate.testing.visual_tokens import plain


def test_a_lattice_where_it_fits():
    chosen = Uniform()(plain(9, 12), 12).indices
    assert chosen.tolist() == [12 * row + column for row in (1, 4, 7) for column in (1, 4, 7, 10)]
    assert Uniform()(plain(1, 10), 5).indices.tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("rows", "columns", "count"), [(24, 24, 64), (24, 24, 128), (24, 24, 192), (10, 23, 37), (40, 7, 31)]
)
def test_no_part_of_the_image_is_far_from_a_kept_token(rows: int, columns: int, count: int):
    places = Uniform()(plain(rows, columns), count).indices
    at = torch.stack([places // columns, places % columns], dim=1).float()
    every = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    side = (rows * columns / count) ** 0.5
    assert float(torch.cdist(every, at).amin(dim=1).max()) <= 1.6 * side
    apart = torch.cdist(at, at).fill_diagonal_(torch.inf).amin(dim=1)
    if side >= 2:  # where more than one token in four stays, neighbours often touch
        assert float(apart.median()) >= 0.6 * side


def test_the_tokens_at_which_pool_stands():
    tokens = plain(7, 5)
    for count in range(1, 35):
        assert torch.equal(Uniform()(tokens, count).indices, Pool()(tokens, count).indices)

"""M3: nested average pooling after the two-layer connector."""

from itertools import pairwise

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import build_connector

PAPER = [576, 144, 36, 9, 1]


@pytest.fixture(scope="module")
def connector():
    torch.manual_seed(0)
    return build_connector("m3", 6, 10).eval()


@pytest.fixture(scope="module")
def features():
    return torch.randn(2, 576, 6, generator=torch.Generator().manual_seed(1))


def test_lengths_of_the_paper_equal_a_loop(connector, features):
    with torch.no_grad():
        full = connector.project(features).view(2, 24, 24, 10)
        for count in PAPER:
            tokens, output = connector(features, Grid(24, 24), count)
            assert output.size == count == tokens.shape[1]
            side = 24 // output.rows
            for place in range(0, count, 7):
                row, column = divmod(place, output.columns)
                square = full[:, side * row : side * (row + 1), side * column : side * (column + 1)]
                torch.testing.assert_close(tokens[:, place], square.mean(dim=(1, 2)))


def test_coarse_tokens_are_means_of_finer_ones(connector, features):
    with torch.no_grad():
        lengths = [connector(features, Grid(24, 24), count)[0] for count in PAPER]
        for finer, coarser in pairwise(lengths):
            fine, coarse = int(finer.shape[1] ** 0.5), int(coarser.shape[1] ** 0.5)
            side = fine // coarse
            mean = finer.view(2, coarse, side, coarse, side, 10).mean(dim=(2, 4)).flatten(1, 2)
            torch.testing.assert_close(mean, coarser)
        assert torch.equal(connector(features, Grid(24, 24))[0], lengths[0])


def test_without_a_budget_the_option_counts():
    connector = build_connector("m3", 6, 10, tokens=36)
    assert connector.output_grid(Grid(24, 24)) == Grid(6, 6)
    assert connector.output_grid(Grid(24, 24), 576) == Grid(24, 24)
    assert connector.output_grid(Grid(12, 12)) == Grid(6, 6)


def test_lengths_of_training(connector):
    assert connector.training_lengths(Grid(24, 24)) == tuple(reversed(PAPER))
    assert connector.training_lengths(Grid(6, 6)) == (1, 9, 36)
    assert connector.training_lengths(Grid(4, 6)) == (6, 24)


@pytest.mark.parametrize("count", [2, 35, 100, 288, 577, 0])
def test_counts_that_truncation_would_change_are_refused(connector, count):
    with pytest.raises(FoveateError, match=rf"cannot make {count} tokens of 24 x 24 patches; possible are 1, 4, 9, 16"):
        connector.output_grid(Grid(24, 24), count)


def test_grids_that_are_not_square(connector):
    with pytest.raises(FoveateError, match="3 tokens of 4 x 6 patches; possible are 6, 24"):
        connector.output_grid(Grid(4, 6), 3)
    assert connector.output_grid(Grid(4, 6), 6) == Grid(2, 3)

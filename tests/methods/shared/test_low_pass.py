"""The low-pass filter of a raster."""

import json
import math
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.methods.shared.low_pass import dct_matrix, grid_of_count, grid_of_ratio, low_pass
from tests.models.connectors.released_tokenpacker import wave

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "fourier.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['grid']}")
def test_equals_the_authors_code(case):
    grid, kept = Grid(*case["grid"]), Grid(*case["kept"])
    filtered = low_pass(wave(case["number"], (1, grid.size, 2), 1.0), grid, kept, rescale=False)
    torch.testing.assert_close(filtered[0], torch.tensor(case["tokens"]), atol=2e-6, rtol=1e-5)


def coefficient(values: list[list[float]], u: int, v: int) -> float:
    """One coefficient of the orthonormal two-dimensional DCT-II, by its definition."""
    rows, columns = len(values), len(values[0])
    total = sum(
        values[i][j] * math.cos(math.pi * (i + 0.5) * u / rows) * math.cos(math.pi * (j + 0.5) * v / columns)
        for i in range(rows)
        for j in range(columns)
    )
    return total * math.sqrt((1 if u == 0 else 2) / rows * (1 if v == 0 else 2) / columns)


def test_equals_a_loop_over_frequencies():
    grid, kept = Grid(5, 4), Grid(3, 2)
    features = torch.randn(grid.size, 2, generator=torch.Generator().manual_seed(0))
    filtered = low_pass(features, grid, kept, rescale=False)
    for channel in range(2):
        before, after = (x[:, channel].view(g).tolist() for x, g in ((features, grid), (filtered, kept)))
        for u in range(kept.rows):
            for v in range(kept.columns):
                assert coefficient(after, u, v) == pytest.approx(coefficient(before, u, v), abs=1e-5)


def test_every_frequency_kept_is_the_identity():
    features = torch.randn(2, 5 * 7, 3)
    torch.testing.assert_close(low_pass(features, Grid(5, 7), Grid(5, 7), rescale=False), features)


def test_the_mean_is_kept_or_multiplied():
    """24 x 24 to 12 x 12 doubles a constant map where it is not rescaled."""
    constant = torch.full((576, 2), 1.5)
    for kept, factor in ((Grid(12, 12), 2.0), (Grid(8, 6), math.sqrt(576 / 48)), (Grid(1, 1), 24.0)):
        torch.testing.assert_close(low_pass(constant, Grid(24, 24), kept, False), factor * constant[: kept.size])
        torch.testing.assert_close(low_pass(constant, Grid(24, 24), kept, True), constant[: kept.size])


def test_energy_is_that_of_the_kept_coefficients():
    grid, kept = Grid(6, 5), Grid(4, 3)
    features = torch.randn(grid.size, 1, dtype=torch.float64)
    rows, columns = (torch.from_numpy(dct_matrix(size)) for size in grid)
    coefficients = rows @ features.view(grid) @ columns.T
    energy = low_pass(features, grid, kept, rescale=False).square().sum()
    torch.testing.assert_close(energy, coefficients[: kept.rows, : kept.columns].square().sum())
    torch.testing.assert_close(coefficients.square().sum(), features.square().sum())


def test_half_precision_is_filtered_in_float32_also_under_autocast():
    features = torch.randn(1, 24 * 24, 4)
    expected = low_pass(features, Grid(24, 24), Grid(6, 6), rescale=False)
    short = low_pass(features.bfloat16(), Grid(24, 24), Grid(6, 6), rescale=False)
    exact = low_pass(features.bfloat16().float(), Grid(24, 24), Grid(6, 6), rescale=False)
    assert torch.equal(short, exact.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(low_pass(features, Grid(24, 24), Grid(6, 6), rescale=False), expected)


def test_a_filter_made_in_inference_mode_has_gradients_later():
    with torch.inference_mode():
        low_pass(torch.randn(9 * 9, 1), Grid(9, 9), Grid(4, 4), rescale=True)
    features = torch.randn(9 * 9, 1, requires_grad=True)
    low_pass(features, Grid(9, 9), Grid(4, 4), rescale=True).square().sum().backward()
    assert features.grad is not None and bool(features.grad.ne(0).all())


def test_ratios_round_down():
    assert [grid_of_ratio(Grid(24, 24), ratio).rows for ratio in (2 / 3, 1 / 2, 1 / 3, 1 / 4)] == [16, 12, 8, 6]
    assert all(grid_of_ratio(Grid(n, n), 2 / 3) == ((2 * n) // 3, (2 * n) // 3) for n in range(2, 400))
    assert grid_of_ratio(Grid(24, 1), 0.3333) == Grid(7, 1)


def test_counts_keep_the_proportions():
    assert grid_of_count(Grid(24, 24), 144) == Grid(12, 12)
    assert grid_of_count(Grid(24, 24), 132) == Grid(11, 12)
    assert grid_of_count(Grid(6, 12), 18) == Grid(3, 6)
    assert grid_of_count(Grid(12, 6), 18) == Grid(6, 3)
    for count in (0, -4, 7, 37, 575):
        with pytest.raises(FoveateError, match=rf"cannot make {count} tokens of 6 x 6 patches; .* 1, 4, 9, 16, 25, 36"):
            grid_of_count(Grid(6, 6), count)

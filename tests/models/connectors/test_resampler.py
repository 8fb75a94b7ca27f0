"""The resamplers of LLaVA-UHD: the authors' numbers, loops over queries and cells, and RoI align point by point."""

import json
import math
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import build_connector, connector_named
from foveate.models.connectors.positions import grid_positions, resized_positions
from foveate.models.connectors.spatial_resampler import cell_samples, roi_weights, samples_of
from tests.models.connectors.released_resampler import HEADS, SIDE, TEXT_WIDTH, WIDTH, features, weights
from tests.models.connectors.test_tokenpacker import from_released

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "resampler.json").read_text(encoding="utf-8"))
NAMES = ("resampler", "spatial_resampler")


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda x: f"{x['connector']}-{x['rows']}x{x['columns']}")
def test_equals_the_authors_code(case):
    """The numbers are those of `Resampler` and `AdaptSpatialResampler` of thunlp/LLaVA-UHD, in float32.

    `Resampler` is that of the first commits, `AdaptSpatialResampler` that of the branch LLaVA-UHD-v1, both with a grid
    of 4 x 4 queries, 4 heads, and the weights and features of `released_resampler`.
    """
    connector = build_connector(case["connector"], WIDTH, TEXT_WIDTH, num_queries=SIDE**2, num_heads=HEADS).eval()
    released = weights() | {"pos_embed": torch.tensor(GOLDEN["positions"])}
    connector.load_state_dict(from_released(connector_named(case["connector"]), released))
    grid = Grid(case["rows"], case["columns"])
    with torch.no_grad():
        tokens, _ = connector(features(case["case"], *grid), grid)
    torch.testing.assert_close(tokens[0], torch.tensor(case["tokens"]), atol=2e-5, rtol=1e-4)


def test_positions_are_those_of_the_authors():
    torch.testing.assert_close(
        grid_positions(Grid(SIDE, SIDE), TEXT_WIDTH), torch.tensor(GOLDEN["positions"]), atol=1e-6, rtol=0
    )


@pytest.fixture(params=NAMES)
def small(request):
    torch.manual_seed(0)
    connector = build_connector(request.param, WIDTH, TEXT_WIDTH, num_queries=9, num_heads=4).eval()
    for parameter in connector.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return connector, torch.randn(2, 6 * 8, WIDTH)


def point(raster: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """Bilinear interpolation of (R, C, D) at one point, with the last position repeated beyond it."""
    value, weights = torch.zeros(raster.shape[-1]), []
    for place, length in ((y, raster.shape[0]), (x, raster.shape[1])):
        low = min(math.floor(place), length - 1)
        share = 0.0 if low == length - 1 else place - low
        weights.append([(low, 1 - share), (min(low + 1, length - 1), share)])
    for row, row_share in weights[0]:
        for column, column_share in weights[1]:
            value += row_share * column_share * raster[row, column]
    return value


def cell_of(raster: torch.Tensor, cells: int, i: int, j: int) -> list[torch.Tensor]:
    """Samples of cell (i, j) of cells x cells, one after the other."""
    high, wide = raster.shape[0] / cells, raster.shape[1] / cells
    samples = samples_of(Grid(*raster.shape[:2]))
    per_row, per_column = math.ceil(high / samples.rows), math.ceil(wide / samples.columns)
    taken = []
    for row in range(samples.rows):
        for column in range(samples.columns):
            points = [
                point(
                    raster,
                    i * high + (row + (s + 0.5) / per_row) * high / samples.rows,
                    j * wide + (column + (t + 0.5) / per_column) * wide / samples.columns,
                )
                for s in range(per_row)
                for t in range(per_column)
            ]
            taken.append(torch.stack(points).mean(0))
    return taken


def test_equals_a_loop_over_queries_and_heads(small):
    connector, x = small
    grid, attention = Grid(6, 8), connector.attention
    with torch.no_grad():
        tokens, _ = connector(x, grid)
        places = resized_positions(connector.positions, grid)
        for image in range(2):
            values = connector.input_norm(connector.input(x[image]))
            keys = values + places
            for number in range(9):
                own_keys, own_values = keys, values
                if connector.spatial:
                    cell = divmod(number, 3)
                    own_keys = torch.stack(cell_of(keys.view(6, 8, -1), 3, *cell))
                    own_values = torch.stack(cell_of(values.view(6, 8, -1), 3, *cell))
                query = attention.q_proj(connector.query_norm(connector.queries[number]) + connector.positions[number])
                k, v, heads = attention.k_proj(own_keys), attention.v_proj(own_values), []
                for head in range(4):
                    part = slice(4 * head, 4 * (head + 1))
                    heads.append((k[:, part] @ query[part] / 2).softmax(0) @ v[:, part])
                mixed = attention.out_proj(torch.cat(heads))
                expected = connector.output_norm(mixed) @ connector.projection
                torch.testing.assert_close(tokens[image, number], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grid", [Grid(24, 24), Grid(17, 31), Grid(29, 13)])
def test_cells_are_those_of_roi_align(grid):
    x = torch.randn(1, grid.size, 3)
    samples = cell_samples(x, grid, 12)
    for i, j in ((0, 0), (3, 11), (11, 4), (11, 11)):
        expected = torch.stack(cell_of(x[0].view(*grid, 3), 12, i, j))
        torch.testing.assert_close(samples[0, 12 * i + j], expected, atol=1e-5, rtol=1e-4)


def test_cells_equal_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    for grid in (Grid(24, 24), Grid(19, 30), Grid(7, 50), Grid(5, 5)):
        x = torch.randn(1, grid.size, 3)
        high, wide = grid.rows / 12, grid.columns / 12
        boxes = [[0, j * wide, i * high, (j + 1) * wide, (i + 1) * high] for i in range(12) for j in range(12)]
        raster = x.view(1, *grid, 3).permute(0, 3, 1, 2)
        expected = ops.roi_align(raster, torch.tensor(boxes), tuple(samples_of(grid)), aligned=False)
        torch.testing.assert_close(
            cell_samples(x, grid, 12)[0], expected.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4
        )


def test_weights_of_an_axis_are_means():
    for length in (12, 24, 31, 40):
        torch.testing.assert_close(roi_weights(length, 12, 3).sum(-1), torch.ones(12, 3, dtype=torch.float64))


def test_features_well_inside_a_cell_change_its_token_alone():
    torch.manual_seed(0)
    connector = build_connector("spatial_resampler", 8, 16, num_heads=2).eval()
    x = torch.randn(1, 36 * 36, 8)
    changed = x.clone()
    changed[0, (3 * 5 + 1) * 36 + 3 * 7 + 1] = 0  # the middle of cell (5, 7): 3 x 3 positions each
    with torch.no_grad():
        before, after = connector(x, Grid(36, 36))[0], connector(changed, Grid(36, 36))[0]
    assert (before - after).abs().amax(-1).gt(1e-5).nonzero().tolist() == [[0, 12 * 5 + 7]]


def test_samples_follow_the_proportions():
    for rows, columns, expected in (
        (24, 24, (3, 3)), (20, 27, (3, 4)), (19, 29, (2, 3)), (16, 36, (2, 4)), (27, 20, (4, 3)), (36, 16, (4, 2)),
        (10, 57, (2, 4)),
    ):  # fmt: skip
        assert samples_of(Grid(rows, columns)) == expected


def test_tokens_of_the_paper_and_of_the_code():
    assert build_connector("resampler", 1024, 512).output_grid(Grid(24, 24)) == Grid(1, 64)
    assert build_connector("spatial_resampler", 64, 512).output_grid(Grid(29, 19)) == Grid(12, 12)
    assert build_connector("resampler", 16, 512).attention.num_heads == 4  # heads of width 128
    same = build_connector("resampler", 16, 16)
    assert same.input(torch.ones(1, 16)).equal(torch.ones(1, 16)) and "input.weight" not in same.state_dict()


def test_bad_options():
    for options, message in (
        ({"num_queries": 8}, "num_queries must be a square number"),
        ({"num_heads": 0}, "num_heads must be a whole number from 1 on"),
        ({"num_heads": 3}, "a multiple of 4 and of the 3 heads of resampler, not 16"),
    ):
        with pytest.raises(FoveateError, match=message):
            build_connector("resampler", 12, 16, **options)

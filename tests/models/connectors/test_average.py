"""Average pooling before the two-layer connector."""

import math

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import build_connector


@pytest.mark.parametrize(
    ("options", "grid", "output"),
    [
        ({"scale": 2}, Grid(4, 6), Grid(2, 3)),
        ({"scale": 2}, Grid(5, 7), Grid(3, 4)),
        ({"size": [2, 3]}, Grid(5, 7), Grid(2, 3)),
        ({"scale": 1}, Grid(2, 3), Grid(2, 3)),
    ],
)
def test_equals_a_loop_over_bins(options, grid, output):
    torch.manual_seed(0)
    connector = build_connector("average", 6, 10, **options)
    features = torch.randn(2, grid.size, 6)
    tokens, found = connector(features, grid)
    assert found == output
    for image in range(2):
        raster = features[image].view(grid.rows, grid.columns, 6)
        for i in range(output.rows):
            for j in range(output.columns):
                rows = range(i * grid.rows // output.rows, math.ceil((i + 1) * grid.rows / output.rows))
                columns = range(j * grid.columns // output.columns, math.ceil((j + 1) * grid.columns / output.columns))
                mean = sum(raster[r, c] for r in rows for c in columns) / (len(rows) * len(columns))
                expected = connector.linear_2(torch.nn.functional.gelu(connector.linear_1(mean)))
                torch.testing.assert_close(tokens[image, i * output.columns + j], expected)


def test_impossible_sizes():
    connector = build_connector("average", 6, 10, size=[4, 4])
    with pytest.raises(FoveateError, match=r"cannot make 4 x 4 tokens of 3 x 9 patches"):
        connector(torch.zeros(1, 27, 6), Grid(3, 9))
    for size in ([4], 4, [0, 2], [2.0, 2]):
        with pytest.raises(FoveateError, match="size must be"):
            build_connector("average", 6, 10, size=size)

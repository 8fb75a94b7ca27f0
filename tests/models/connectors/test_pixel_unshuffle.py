"""Pixel unshuffle before the two-layer connector."""

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import build_connector


def test_equals_a_loop_over_squares():
    torch.manual_seed(0)
    connector = build_connector("pixel_unshuffle", 5, 10, scale=3)
    features = torch.randn(2, 6 * 9, 5)
    tokens, output = connector(features, Grid(6, 9))
    assert output == Grid(2, 3)
    for image in range(2):
        raster = features[image].view(6, 9, 5)
        for i in range(2):
            for j in range(3):
                square = torch.cat([raster[3 * i + r, 3 * j + c] for r in range(3) for c in range(3)])
                expected = connector.linear_2(torch.nn.functional.gelu(connector.linear_1(square)))
                torch.testing.assert_close(tokens[image, 3 * i + j], expected)


def test_impossible_grids_and_scales():
    connector = build_connector("pixel_unshuffle", 5, 10, scale=4)
    with pytest.raises(FoveateError, match="multiples of 4, and this image has 6 x 8 patches"):
        connector(torch.zeros(1, 48, 5), Grid(6, 8))
    for scale in (0, 2.0, True, "2"):
        with pytest.raises(FoveateError, match="scale must be a whole number from 1 on"):
            build_connector("pixel_unshuffle", 5, 10, scale=scale)

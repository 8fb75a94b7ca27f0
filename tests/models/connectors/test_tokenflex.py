"""TokenFLEX: the authors' numbers, and a loop over bins."""

import json
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import build_connector
from tests.models.connectors.released_tokenflex import TEXT_WIDTH, WIDTH, features, weights

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "tokenflex.json").read_text(encoding="utf-8"))
NAMES = {"layernorm": "norm", "f1": "gate", "f2": "up", "g": "down"}


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['side']}-{case['tokens']}")
def test_equals_the_authors_code(case):
    connector = build_connector("tokenflex", WIDTH, TEXT_WIDTH, pooling="resized").eval()
    released = [(name.split("."), weight) for name, weight in weights().items()]
    connector.load_state_dict({f"{NAMES[layer]}.{kind}": weight for (_, layer, kind), weight in released})
    grid = Grid(case["side"], case["side"])
    with torch.no_grad():
        tokens, _ = connector(features(case["case"], case["side"]), grid, case["tokens"])
    torch.testing.assert_close(tokens, torch.tensor(case["output"]), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def connector():
    torch.manual_seed(0)
    return build_connector("tokenflex", 8, 6).eval()


@pytest.mark.parametrize(("grid", "side"), [((27, 27), 8), ((5, 7), 3), ((6, 6), 6)])
def test_equals_a_loop_over_bins(connector, grid, side):
    features = torch.randn(2, grid[0] * grid[1], 8)
    raster = features.view(2, *grid, 8)
    with torch.no_grad():
        tokens, output = connector(features, Grid(*grid), side**2)
        assert output == Grid(side, side)
        for i in range(side):
            for j in range(side):
                rows, columns = ((n * k // side, -(-(n + 1) * k // side)) for n, k in ((i, grid[0]), (j, grid[1])))
                mean = connector.norm(raster[:, slice(*rows), slice(*columns)].mean(dim=(1, 2)))
                gate, up = connector.gate(mean), connector.up(mean)
                expected = connector.down(gate * torch.sigmoid(gate) * up)
                torch.testing.assert_close(tokens[:, i * side + j], expected, atol=1e-5, rtol=1e-4)


def test_poolings_agree_where_the_grid_is_divided(connector):
    other = build_connector("tokenflex", 8, 6, pooling="resized")
    other.load_state_dict(connector.state_dict())
    features = torch.randn(1, 24 * 24, 8)
    for count, same in ((64, True), (144, True), (256, False)):
        tokens = [made(features, Grid(24, 24), count)[0] for made in (connector, other)]
        assert torch.allclose(*tokens, atol=1e-5) == same


def test_an_image_of_equal_features_has_equal_tokens(connector):
    features = torch.randn(1, 1, 8).expand(1, 27 * 27, 8)
    expected = connector(features[:, :1], Grid(1, 1), 1)[0]
    for count in (64, 144, 256):
        tokens, _ = connector(features, Grid(27, 27), count)
        torch.testing.assert_close(tokens, expected.expand_as(tokens), atol=1e-5, rtol=1e-4)


def test_lengths(connector):
    assert connector.output_grid(Grid(27, 27)) == Grid(16, 16)
    assert connector.training_lengths(Grid(27, 27)) == (64, 144, 256)
    assert connector.training_lengths(Grid(13, 40)) == (64, 144)
    assert connector.training_lengths(Grid(6, 6)) == ()
    for grid, count in ((Grid(24, 24), 50), (Grid(24, 24), 0), (Grid(6, 9), 49)):
        with pytest.raises(FoveateError, match=rf"square numbers from 1 to {min(grid) ** 2}"):
            connector.output_grid(grid, count)


def test_bad_options():
    for options, message in (
        ({"tokens": 8}, "tokens must be a square number, not 8"),
        ({"lengths": []}, "lengths must be a list of numbers"),
        ({"lengths": [4, 5]}, "each of lengths must be a square number, not 5"),
        ({"lengths": [9, 4]}, "different numbers in ascending order"),
        ({"pooling": "max"}, "no pooling 'max'; possible are adaptive, resized"),
        ({"expansion": 0}, "expansion must be a whole number"),
    ):
        with pytest.raises(FoveateError, match=message):
            build_connector("tokenflex", 8, 6, **options)

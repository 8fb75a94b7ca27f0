"""The compressor of Oryx."""

import json
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import build_connector
from tests.models.connectors.released_tokenpacker import wave

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "oryx.json").read_text(encoding="utf-8"))
#: Layers here by the authors' names.
WEIGHTS = {
    "vision_resampler.vlm_query_projector": "query",
    "vision_resampler.vlm_key_projector": "key",
    "mm_projector.proj.0": "linear_1",
    "mm_projector.proj.2": "linear_2",
}


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"scale-{case['scale']}")
def test_equals_the_authors_code(case):
    connector = build_connector("oryx", 16, 6, scale=case["scale"]).eval()
    names = [f"{layer}.{part}" for layer in WEIGHTS.values() for part in ("weight", "bias")]
    shapes = {name: weight.shape for name, weight in connector.state_dict().items()}
    connector.load_state_dict({name: wave(number, shapes[name], 0.3) for number, name in enumerate(names, 1)})
    with torch.no_grad():
        tokens, output = connector(wave(20, (1, 32, 16), 1.0), Grid(4, 8))
    assert output.size == 32 // case["scale"] ** 2
    torch.testing.assert_close(tokens[0], torch.tensor(case["tokens"]), atol=2e-5, rtol=1e-4)


@pytest.fixture
def small():
    torch.manual_seed(0)
    connector = build_connector("oryx", 6, 10).eval()
    torch.nn.init.normal_(connector.query.weight)
    torch.nn.init.normal_(connector.key.weight)
    return connector, torch.randn(2, 8 * 12, 6)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_equals_a_loop_over_squares(small, scale):
    connector, features = small
    grid = Grid(8, 12)
    with torch.no_grad():
        compressed = connector.compress(features, grid, scale)
        for image in range(2):
            for place in range(0, compressed.shape[1], 5):
                row, column = divmod(place, grid.columns // scale)
                cells = [(scale * row + i) * 12 + scale * column + j for i in range(scale) for j in range(scale)]
                square = torch.stack([features[image, cell] for cell in cells])
                mean = square.mean(dim=0)
                scores = torch.stack([connector.query(mean) @ connector.key(one) for one in square]) / 16
                expected = mean + sum(a * one for a, one in zip(scores.softmax(0), square, strict=True))
                torch.testing.assert_close(compressed[image, place], expected, atol=1e-5, rtol=1e-4)


def test_scale_one_doubles_every_feature_exactly(small):
    connector, features = small
    with torch.no_grad():
        assert torch.equal(connector.compress(features, Grid(8, 12), 1), 2 * features)
        assert torch.equal(connector(features, Grid(8, 12))[0], connector.project(2 * features))


def test_a_constant_map_is_doubled_or_stays(small):
    connector, features = small
    halved = build_connector("oryx", 6, 10, halve=True)
    halved.load_state_dict(connector.state_dict())
    constant = features[:, :1].expand(-1, 96, -1)
    for scale in (1, 2, 4):
        count = 96 // scale**2
        torch.testing.assert_close(connector.compress(constant, Grid(8, 12), scale), 2 * constant[:, :count])
        torch.testing.assert_close(halved.compress(constant, Grid(8, 12), scale), constant[:, :count])


def test_a_token_depends_on_its_own_square_alone(small):
    connector, features = small
    features.requires_grad_()
    connector.compress(features, Grid(8, 12), 4)[0, 4].sum().backward()  # row 1, column 1 of 2 x 3
    changed = features.grad[0].abs().sum(-1).view(8, 12).ne(0)
    assert bool(changed[4:8, 4:8].all())
    assert int(changed.sum()) == 16 and not bool(features.grad[1].any())


def test_lengths(small):
    connector, features = small
    assert [connector.output_grid(Grid(8, 12), count) for count in (96, 24, 6)] == [(8, 12), (4, 6), (2, 3)]
    assert connector.training_lengths(Grid(6, 10)) == (15, 60)
    with pytest.raises(FoveateError, match="oryx cannot make 4 tokens of 6 x 6 patches; possible are 9, 36"):
        connector.output_grid(Grid(6, 6), 4)
    quarter = build_connector("oryx", 6, 10, scale=2)
    quarter.load_state_dict(connector.state_dict())
    assert torch.equal(connector(features, Grid(8, 12), 24)[0], quarter(features, Grid(8, 12))[0])
    with pytest.raises(FoveateError, match="multiples of 2"):
        quarter.output_grid(Grid(5, 6))


def test_bad_options():
    for scale in (3, 0, True, "2"):
        with pytest.raises(FoveateError, match="scale must be 1, 2 or 4"):
            build_connector("oryx", 6, 10, scale=scale)
    with pytest.raises(FoveateError, match="halve must be true or false"):
        build_connector("oryx", 6, 10, halve="no")

"""MQT: the authors' numbers, a loop over queries and heads, and prefixes of the queries."""

import json
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import build_connector
from foveate.models.connectors.mqt import MQT
from foveate.models.connectors.positions import grid_positions, resized_positions
from tests.models.connectors.released_mqt import HEADS, SIDE, TEXT_WIDTH, WIDTH, features, weights
from tests.models.connectors.test_tokenpacker import from_released

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "mqt.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['rows']}x{case['columns']}-{case['tokens']}")
def test_equals_the_authors_code(case):
    connector = build_connector("mqt", WIDTH, TEXT_WIDTH, num_queries=SIDE**2, num_heads=HEADS).eval()
    released = weights() | {"pos_embed": torch.tensor(GOLDEN["positions"])}
    connector.load_state_dict(from_released(MQT, released))
    with torch.no_grad():
        grid = Grid(case["rows"], case["columns"])
        tokens, output = connector(features(case["case"], *grid), grid, case["tokens"])
    assert output == Grid(1, case["tokens"])
    torch.testing.assert_close(tokens, torch.tensor(case["output"]), atol=1e-5, rtol=1e-5)


def test_positions_are_those_of_the_authors_in_half_precision():
    torch.testing.assert_close(
        grid_positions(Grid(SIDE, SIDE), WIDTH), torch.tensor(GOLDEN["positions"]), atol=1e-3, rtol=1e-3
    )


@pytest.fixture
def small():
    torch.manual_seed(0)
    connector = build_connector("mqt", 16, 10, num_queries=16, num_heads=4).eval()
    for parameter in connector.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return connector, torch.randn(2, 5 * 6, 16)


@pytest.mark.parametrize("features_in_keys", [False, True])
def test_equals_a_loop_over_queries_and_heads(small, features_in_keys):
    connector, features = small
    other = build_connector("mqt", 16, 10, num_queries=16, num_heads=4, features_in_keys=features_in_keys)
    other.load_state_dict(connector.state_dict())
    with torch.no_grad():
        tokens, _ = other(features, Grid(5, 6), 7)
        places = resized_positions(other.positions, Grid(5, 6))
        attention = other.attention
        for image in range(2):
            keys = places + features[image] if features_in_keys else places
            keys, values = attention.k_proj(other.key_norm(keys)), attention.v_proj(other.value_norm(features[image]))
            for number in range(7):
                query = attention.q_proj(other.query_norm(other.queries[number] + other.positions[number]))
                heads = []
                for head in range(4):
                    part = slice(4 * head, 4 * (head + 1))
                    share = (keys[:, part] @ query[part] / 4**0.5).softmax(0)
                    heads.append(share @ values[:, part])
                expected = attention.out_proj(torch.cat(heads)) @ other.projection
                torch.testing.assert_close(tokens[image, number], expected, atol=1e-5, rtol=1e-4)


def test_any_number_of_tokens_is_a_prefix(small):
    connector, features = small
    with torch.no_grad():
        full, _ = connector(features, Grid(5, 6))
        for count in range(1, 17):
            tokens, output = connector(features, Grid(5, 6), count)
            assert output == Grid(1, count)
            torch.testing.assert_close(tokens, full[:, :count], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("features_in_keys", [False, True])
def test_weights_of_the_attention_depend_on_the_image_with_features_in_keys_alone(small, features_in_keys):
    """If they do not, a token is a linear function of the normalized features: that of a mean is the mean of both."""
    connector, features = small
    other = build_connector("mqt", 16, 10, num_queries=16, num_heads=4, features_in_keys=features_in_keys)
    other.load_state_dict(connector.state_dict())
    with torch.no_grad():
        other.value_norm = torch.nn.Identity()
        tokens, _ = other(features, Grid(5, 6))
        middle, _ = other(features.mean(0, keepdim=True), Grid(5, 6))
    linear = torch.allclose(middle[0], tokens.mean(0), atol=1e-4)
    assert linear != features_in_keys


def test_positions_of_another_grid_are_interpolated_and_of_its_own_are_the_same():
    positions = grid_positions(Grid(4, 4), 16)
    assert torch.equal(resized_positions(positions, Grid(4, 4)), positions)
    first = positions.view(4, 4, 16)
    assert torch.equal(first[0, :, 8:], first[0, :1, 8:].expand(4, -1))  # in a row, the second half is the same
    assert torch.equal(first[:, 0, :8], first[:1, 0, :8].expand(4, -1))  # in a column, the first half is
    wide = resized_positions(positions, Grid(4, 7)).view(4, 7, 16)
    torch.testing.assert_close(wide[0, :, 8:], first[0, :1, 8:].expand(7, -1))
    assert not torch.allclose(wide[0, 0, :8], wide[0, 6, :8], atol=1e-2)


def test_lengths():
    connector = build_connector("mqt", 16, 10)
    assert connector.training_lengths(Grid(24, 24)) == tuple(range(2, 257, 2))
    assert connector.output_grid(Grid(5, 9)) == Grid(1, 256)
    assert build_connector("mqt", 16, 10, tokens=16).output_grid(Grid(24, 24)) == Grid(1, 16)
    with pytest.raises(FoveateError, match="mqt cannot make 257 tokens; possible are 1 to 256"):
        connector.output_grid(Grid(24, 24), 257)


def test_released_options():
    assert MQT.released_options({"num_visual_tokens": "second_stage"}) == {}
    assert MQT.released_options({"num_visual_tokens": 64}) == MQT.released_options({"num_visual_tokens": "64"})
    assert MQT.released_options({"num_visual_tokens": None}) == {}


def test_bad_options():
    for options, message in (
        ({"num_queries": 8}, "num_queries must be a square number"),
        ({"num_queries": 0}, "num_queries must be a whole number from 1 on"),
        ({"features_in_keys": 1}, "features_in_keys must be true or false"),
        ({"num_queries": 4, "tokens": 5}, "tokens must be at most the 4 queries, not 5"),
        ({"num_heads": 3}, "a multiple of 4 and of the 3 heads of mqt, not 16"),
    ):
        with pytest.raises(FoveateError, match=message):
            build_connector("mqt", 16, 10, **options)

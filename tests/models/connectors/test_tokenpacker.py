"""TokenPacker."""

import json
import re
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import Connector, build_connector
from foveate.models.connectors.tokenpacker import SquareAttention, TokenPacker, downsample
from tests.models.connectors.released_tokenpacker import GRID, LEVELS, TEXT_WIDTH, WIDTH, features, weights

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "tokenpacker.json").read_text(encoding="utf-8"))


def from_released(connector: type[Connector], state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The authors' weights of a connector under the names here."""
    renamed = {}
    for name, weight in state.items():
        ((source, target),) = [key for key in connector.released_keys.items() if re.match(key[0], name)]
        if isinstance(target, str):
            renamed[re.sub(f"^{source}", target, name)] = weight
        else:
            renamed |= dict(zip(target, weight.chunk(len(target)), strict=True))
    return renamed


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"scale-{case['scale']}")
def test_equals_the_authors_code(case):
    connector = build_connector("tokenpacker", WIDTH, TEXT_WIDTH, scale=case["scale"]).eval()
    connector.load_state_dict(from_released(TokenPacker, weights()))
    single, multi = features(case["case"])
    levels = torch.cat([multi.unflatten(-1, (LEVELS, WIDTH)), single.unsqueeze(2)], dim=2)
    with torch.no_grad():
        tokens, _ = connector(levels, Grid(GRID, GRID))
    torch.testing.assert_close(tokens, torch.tensor(case["tokens"]), atol=2e-5, rtol=1e-4)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return build_connector("tokenpacker", 16, 10, scale=2).eval(), torch.randn(2, 4 * 6, 5, 16)


def test_equals_a_loop_over_squares_and_heads(small):
    connector, features = small
    with torch.no_grad():
        tokens, output = connector(features, Grid(4, 6))
        assert output == Grid(2, 3)
        attention, width = connector.attention, 16 // 8
        query = connector.query_norm(connector.query(downsample(features[:, :, -1], Grid(4, 6), output)))
        key = connector.key_norm(connector.key(features[:, :, :-1].flatten(2))).view(2, 4, 6, 16)
        value = connector.value_norm(connector.value(features[:, :, :-1].flatten(2))).view(2, 4, 6, 16)
        for image in range(2):
            for i in range(2):
                for j in range(3):
                    q = attention.q_proj(query[image, 3 * i + j])
                    square = [(2 * i + r, 2 * j + c) for r in range(2) for c in range(2)]
                    keys = torch.stack([attention.k_proj(key[image, r, c]) for r, c in square])
                    values = torch.stack([attention.v_proj(value[image, r, c]) for r, c in square])
                    heads = []
                    for head in range(8):
                        part = slice(width * head, width * (head + 1))
                        share = (keys[:, part] @ q[part] / width**0.5).softmax(0)
                        heads.append(share @ values[:, part])
                    expected = connector.output(attention.out_proj(torch.cat(heads)))
                    torch.testing.assert_close(tokens[image, 3 * i + j], expected, atol=1e-5, rtol=1e-4)


def test_downsampling_by_two_is_the_mean_of_a_square():
    """Bilinear with align_corners=False samples the middle of a 2 x 2 square."""
    features = torch.randn(1, 4 * 6, 3)
    expected = features.view(2, 2, 3, 2, 3).mean(dim=(1, 3)).view(1, 6, 3)
    torch.testing.assert_close(downsample(features, Grid(4, 6), Grid(2, 3)), expected)


def test_one_patch_of_the_levels_changes_one_token(small):
    connector, features = small
    changed = features.clone()
    changed[0, 2 * 6 + 3, :-1] += 1.0  # row 2, column 3: token (1, 1)
    with torch.no_grad():
        before, after = connector(features, Grid(4, 6))[0], connector(changed, Grid(4, 6))[0]
    different = (before - after).abs().amax(-1) > 1e-6
    assert different.nonzero().tolist() == [[0, 1 * 3 + 1]]


def test_the_query_acts_through_attention_weights_alone(small):
    connector, features = small
    features[:, :, :-1] = features[:, :1, :-1]  # all patches of an image have the same keys and values
    changed = features.clone()
    changed[:, :, -1] = torch.randn_like(changed[:, :, -1])
    with torch.no_grad():
        torch.testing.assert_close(connector(features, Grid(4, 6))[0], connector(changed, Grid(4, 6))[0])


def test_with_squares_of_one_patch_attention_is_its_value():
    torch.manual_seed(0)
    attention = SquareAttention(8, 2)
    query, keys, values = torch.randn(2, 5, 8), torch.randn(2, 5, 1, 8), torch.randn(2, 5, 1, 8)
    torch.testing.assert_close(attention(query, keys, values), attention.out_proj(attention.v_proj(values[:, :, 0])))


def test_layers_of_the_paper_and_of_other_encoders():
    connector = build_connector("tokenpacker", 16, 10)
    assert connector.feature_layers(24) == (12, 16, 22, 23, -2)
    assert connector.feature_layers(27) == (14, 18, 25, 26, -2)
    assert build_connector("tokenpacker", 16, 10, layers=[1, -1]).feature_layers(4) == (1, -1, -2)


def test_bad_options():
    with pytest.raises(FoveateError, match="8 heads of tokenpacker do not divide the width 12"):
        build_connector("tokenpacker", 12, 10)
    for options in ({"layers": []}, {"layers": ["a"]}, {"query_layer": 1.5}, {"layers": 3}):
        with pytest.raises(FoveateError, match="must be indices of hidden states"):
            build_connector("tokenpacker", 16, 10, **options)

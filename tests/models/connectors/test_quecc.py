"""QueCC."""

import json
import re
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import build_connector
from foveate.models.connectors.quecc import QueCC
from tests.models.connectors.released_quecc import GRID, LEVELS, TEXT_WIDTH, WIDTH, features, question, weights

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "quecc.json").read_text(encoding="utf-8"))


def from_released(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The authors' weights under the names here."""
    renamed = {}
    for name, weight in state.items():
        ((source, target),) = [key for key in QueCC.released_keys.items() if re.match(key[0], name)]
        if isinstance(target, str):
            renamed[re.sub(f"^{source}", target, name)] = weight
        else:
            renamed |= dict(zip(target, weight.chunk(len(target)), strict=True))
    return renamed


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"scale-{case['scale']}")
def test_equals_the_authors_code(case):
    connector = build_connector("quecc", WIDTH, TEXT_WIDTH, scale=case["scale"]).eval()
    connector.load_state_dict(from_released(weights(case["scale"])))
    single, multi = features(case["case"])
    levels = torch.cat([multi.unflatten(-1, (LEVELS, WIDTH)), single.unsqueeze(2)], dim=2)
    with torch.no_grad():
        tokens, _ = connector(levels, Grid(GRID, GRID), text=question(case["case"]))
    torch.testing.assert_close(tokens, torch.tensor(case["tokens"]), atol=2e-5, rtol=1e-4)


@pytest.fixture
def small():
    """A connector, features of two images of 4 x 6 patches, and two questions."""
    torch.manual_seed(0)
    connector = build_connector("quecc", 16, 10, scale=2).eval()
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.normal_(std=0.3)
    return connector, torch.randn(2, 4 * 6, 5, 16), torch.randn(2, 1, 10)


def test_equals_a_loop_over_squares_and_heads(small):
    connector, features, text = small
    with torch.no_grad():
        tokens, output = connector(features, Grid(4, 6), text=text)
        assert output == Grid(2, 3)
        attention, width = connector.attention, 16 // 8
        for image in range(2):
            known = connector.text_norm(connector.text(text[image, 0]))
            patches = features[image].view(4, 6, 5, 16)
            for i in range(2):
                for j in range(3):
                    square = [(2 * i + r, 2 * j + c) for r in range(2) for c in range(2)]
                    query = connector.downsample.bias.clone()
                    for r, c in square:
                        part = connector.query_norm(connector.query(patches[r, c, -1] + known))
                        query += connector.downsample.weight[:, 0, r - 2 * i, c - 2 * j] * part
                    levels = [patches[r, c, :-1].flatten() for r, c in square]
                    keys = torch.stack([attention.k_proj(connector.key_norm(connector.key(y))) for y in levels])
                    values = torch.stack([attention.v_proj(connector.value_norm(connector.value(y))) for y in levels])
                    heads = []
                    for head in range(8):
                        part = slice(width * head, width * (head + 1))
                        share = (keys[:, part] @ attention.q_proj(query)[part] / width**0.5).softmax(0)
                        heads.append(share @ values[:, part])
                    expected = connector.project(attention.out_proj(torch.cat(heads)))
                    torch.testing.assert_close(tokens[image, 3 * i + j], expected, atol=1e-5, rtol=1e-4)


def test_without_weights_of_the_text_tokens_do_not_depend_on_it(small):
    connector, features, text = small
    with torch.no_grad():
        before = connector(features, Grid(4, 6), text=text)[0]
        assert not torch.allclose(before, connector(features, Grid(4, 6), text=-text)[0], atol=1e-3)
        connector.text.weight.zero_()
        outputs = [connector(features, Grid(4, 6), text=one)[0] for one in (text, -text)]
    torch.testing.assert_close(*outputs)


def test_one_patch_of_the_levels_changes_one_token(small):
    connector, features, text = small
    changed = features.clone()
    changed[0, 2 * 6 + 3, :-1] += 1.0  # row 2, column 3: token (1, 1)
    with torch.no_grad():
        before, after = (connector(x, Grid(4, 6), text=text)[0] for x in (features, changed))
    different = (before - after).abs().amax(-1) > 1e-6
    assert different.nonzero().tolist() == [[0, 1 * 3 + 1]]


def test_a_square_of_all_patches_gives_one_token_of_each():
    torch.manual_seed(0)
    connector = build_connector("quecc", 16, 10, scale=24).eval()
    features = torch.randn(1, 576, 5, 16, requires_grad=True)
    tokens, output = connector(features, Grid(24, 24), text=torch.randn(1, 1, 10))
    assert output == Grid(1, 1)
    tokens.square().sum().backward()
    assert features.grad is not None and bool(features.grad.ne(0).flatten(2).any(-1).all())


def test_of_several_states_the_last_one_is_read(small):
    connector, features, text = small
    several = torch.cat([torch.randn(2, 3, 10), text], dim=1)
    with torch.no_grad():
        outputs = [connector(features, Grid(4, 6), text=one)[0] for one in (text, several)]
    torch.testing.assert_close(*outputs)


def test_sizes_of_the_paper():
    grids = {scale: build_connector("quecc", 8, 4, scale=scale).output_grid(Grid(24, 24)) for scale in (4, 6, 12, 24)}
    assert {scale: grid.size for scale, grid in grids.items()} == {4: 36, 6: 16, 12: 4, 24: 1}
    assert QueCC.without_weights().feature_layers(24) == (12, 16, 22, 23, -2)


def test_bad_options():
    with pytest.raises(FoveateError, match="8 heads of quecc do not divide the width 12"):
        build_connector("quecc", 12, 10)
    with pytest.raises(FoveateError, match="must be indices of hidden states"):
        build_connector("quecc", 16, 10, layers=[])
    with pytest.raises(FoveateError, match="squares of 4 patches in steps of 2 are not supported"):
        QueCC.released_options({"mm_vision_token_compression_type": "quecc", "mm_vision_token_compression_stride": 2})

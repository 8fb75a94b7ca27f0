"""The compression of LLaVA-Mini; its pre-fusion is tested with the model."""

from __future__ import annotations

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import build_connector
from foveate.models.connectors.llava_mini import LlavaMini
from foveate.models.connectors.positions import grid_positions, resized_positions


@pytest.fixture
def small():
    """A connector of 2 x 2 tokens, and features of two images of 4 x 6 patches."""
    torch.manual_seed(0)
    connector = build_connector("llava_mini", 16, 10, size=2).eval()
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.normal_(std=0.5)
    return connector, torch.randn(2, 4 * 6, 16)


def test_equals_a_loop_over_queries_and_heads(small):
    connector, features = small
    attention, width = connector.attention, 16 // 8
    with torch.no_grad():
        tokens, output = connector(features, Grid(4, 6))
        assert output == Grid(1, 4)
        table = grid_positions(Grid(2, 2), 16)
        places = resized_positions(table, Grid(4, 6))
        for image in range(2):
            normed = connector.feature_norm(features[image])
            keys, values = attention.k_proj(normed + places), attention.v_proj(normed)
            for number in range(4):
                query = attention.q_proj(connector.query_norm(connector.queries[number]) + table[number])
                heads = []
                for head in range(8):
                    part = slice(width * head, width * (head + 1))
                    share = (keys[:, part] @ query[part] / width**0.5).softmax(0)
                    heads.append(share @ values[:, part])
                expected = connector.project(attention.out_proj(torch.cat(heads)))
                torch.testing.assert_close(tokens[image, number], expected, atol=1e-5, rtol=1e-4)


def test_the_table_of_positions():
    """Half of the channels encode the column, the other half the row; frequencies fall from 1 to 1/100."""
    table = grid_positions(Grid(2, 3), 8)
    for row in range(2):
        for column in range(3):
            expected = []
            for place in (column, row):
                expected += [torch.sin(torch.tensor(place * f)) for f in (1.0, 0.01)]
                expected += [torch.cos(torch.tensor(place * f)) for f in (1.0, 0.01)]
            torch.testing.assert_close(table[3 * row + column], torch.stack(expected))


def test_one_token_does_not_depend_on_the_order_of_patches(small):
    connector = build_connector("llava_mini", 16, 10).eval()
    features = small[1]
    with torch.no_grad():
        tokens, output = connector(features, Grid(4, 6))
        mixed, _ = connector(features[:, torch.randperm(24)], Grid(4, 6))
    assert output == Grid(1, 1)
    torch.testing.assert_close(mixed, tokens)


def test_bad_options():
    with pytest.raises(FoveateError, match="must be a multiple of 4 and of the 8 heads"):
        build_connector("llava_mini", 12, 10)
    with pytest.raises(FoveateError, match="prefusion_layers must be a whole number from 0"):
        LlavaMini.without_weights(prefusion_layers=-1)

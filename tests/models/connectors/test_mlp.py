"""The two-layer connector."""

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import MLPConnector


@pytest.mark.parametrize("bias", [True, False])
def test_equals_its_formula(bias):
    torch.manual_seed(0)
    connector = MLPConnector(6, 10, bias=bias)
    tokens = torch.randn(5, 6)
    first, second = connector.linear_1, connector.linear_2
    hidden = tokens @ first.weight.T + (first.bias if bias else 0)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))  # the exact GELU
    expected = hidden @ second.weight.T + (second.bias if bias else 0)
    result, grid = connector(tokens[None], Grid(1, 5))
    assert torch.allclose(result[0], expected, atol=1e-6)
    assert grid == Grid(1, 5)
    assert (connector.linear_1.bias is None) is (not bias)


def test_acts_on_each_token_alone():
    torch.manual_seed(0)
    connector = MLPConnector(6, 10, activation="relu")
    tokens = torch.randn(7, 6)
    one_by_one = torch.cat([connector(token[None, None], Grid(1, 1))[0][0] for token in tokens])
    assert torch.allclose(connector(tokens[None], Grid(7, 1))[0][0], one_by_one, atol=1e-6)


def test_an_activation_that_does_not_exist():
    with pytest.raises(FoveateError, match=r"no activation 'gelux'; possible are .*gelu.*silu"):
        MLPConnector(6, 10, activation="gelux")

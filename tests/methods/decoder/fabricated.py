"""Visual tokens before a decoder layer from numbers of authors' code, and attention number by number."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from foveate.core.attention import Attention
from foveate.core.in_decoder import LayerTokens
from foveate.testing.layer_tokens import changed, layer_tokens
from tests.families.zoo import zoo


def of_case(case: dict) -> LayerTokens:
    """The tokens of a case of numbers of some authors' code; all layers have the same queries and keys."""
    query, key, hidden = (torch.tensor(case[name]) for name in ("query", "key", "hidden"))
    tokens = layer_tokens(len(hidden) - case["before"] - case["after"], case["before"], case["after"])
    asked = Attention(query, key, query.shape[-1] ** -0.5)
    entered = torch.tensor(case.get("entered", case["hidden"]))
    return changed(tokens, features=hidden[tokens.indices], hidden=hidden, entered=entered, ask=lambda _: asked)


def in_any_order(rows: Tensor) -> Tensor:
    """Rows by their first number."""
    return rows[rows[:, 0].argsort()]


def rows_by_hand(attention: Attention) -> list[list[list[float]]]:
    """Attention [head][row][column] of all new tokens, number by number."""
    heads, length, _ = attention.query.shape
    share = heads // len(attention.key)
    found = []
    for head in range(heads):
        rows = []
        for row in range(length):
            logits = [float(attention.query[head, row] @ key) for key in attention.key[head // share][: row + 1]]
            weights = torch.tensor([attention.scaling * value for value in logits]).exp()
            rows.append([float(w / weights.sum()) for w in weights] + [0.0] * (length - row - 1))
        found.append(rows)
    return found


def deep_llava(layers: int) -> Any:
    """The LLaVA of the zoo, with a language model of so many layers."""
    config = copy.deepcopy(zoo()["llava"].model().config)
    config.text_config.num_hidden_layers = layers
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlavaForConditionalGeneration(config).eval()

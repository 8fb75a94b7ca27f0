"""Visual tokens before a decoder layer from numbers of authors' code, and attention number by number."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from foveate.core.in_decoder import Attention, LayerTokens
from foveate.testing.layer_tokens import layer_tokens


def of_case(case: dict) -> LayerTokens:
    """The tokens of a case of numbers of some authors' code; all layers have the same queries and keys."""
    query, key, hidden = (torch.tensor(case[name]) for name in ("query", "key", "hidden"))
    tokens = layer_tokens(len(hidden) - case["before"] - case["after"], case["before"], case["after"])
    asked = Attention(query, key, query.shape[-1] ** -0.5)
    entered = torch.tensor(case.get("entered", case["hidden"]))
    return replace(tokens, features=hidden[tokens.places], sequence=hidden, entered=entered, ask=lambda _: asked)


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
            seen = [float(attention.query[head, row] @ key) for key in attention.key[head // share][: row + 1]]
            weights = torch.tensor([attention.scaling * value for value in seen]).exp()
            rows.append([float(w / weights.sum()) for w in weights] + [0.0] * (length - row - 1))
        found.append(rows)
    return found

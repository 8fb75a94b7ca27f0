"""Attention in blocks against the softmax written out, number by number."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from foveate.core import attention
from foveate.core.attention import Attention, attention_logits, attention_weights, may_attend, repeat_kv, row_blocks
from foveate.core.in_attention import AttentionInputs

HEADS, SHARED, LENGTH, PAST, DEPTH = 4, 2, 7, 3, 5


def states(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(HEADS, LENGTH, DEPTH, generator=generator)
    return query, torch.randn(SHARED, PAST + LENGTH, DEPTH, generator=generator)


def by_hand(query: Tensor, key: Tensor, allowed: Callable[[int, int], bool]) -> list[list[list[float]]]:
    """Attention [head][row][column]."""
    matrices = []
    for head, rows in enumerate(query.tolist()):
        keys = key[head // (len(query) // len(key))].tolist()
        matrix = []
        for row, one in enumerate(rows):
            weights = [
                math.exp(0.5 * sum(q * k for q, k in zip(one, other, strict=True))) if allowed(row, column) else 0.0
                for column, other in enumerate(keys)
            ]
            matrix.append([weight / sum(weights) for weight in weights])
        matrices.append(matrix)
    return matrices


def cases() -> list[tuple[Tensor | None, Tensor | None, Callable[[int, int], bool]]]:
    key_mask = torch.ones(PAST + LENGTH, dtype=torch.bool)
    key_mask[:2] = False
    pairs = torch.rand(LENGTH, PAST + LENGTH, generator=torch.Generator().manual_seed(1)) < 0.5
    pairs[:, 4] = True
    return [
        (None, None, lambda row, column: column <= row + PAST),
        (key_mask, None, lambda row, column: 2 <= column <= row + PAST),
        (None, pairs, lambda row, column: bool(pairs[row, column])),
    ]


@pytest.mark.parametrize("block", [1, 2 * HEADS * (PAST + LENGTH), 2**23])
@pytest.mark.parametrize(("key_mask", "allowed", "pair"), cases(), ids=["causal", "padding", "pairs"])
def test_attention_equals_the_loop(
    key_mask: Tensor | None,
    allowed: Tensor | None,
    pair: Callable[[int, int], bool],
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    query, key = states()
    asked, matrices = Attention(query, key, 0.5, key_mask, allowed), by_hand(query, key, pair)
    rows, places = torch.tensor([1, 3, 4, 6]), torch.tensor([0, 2, 5])
    expected = torch.tensor([[matrices[head][row] for row in rows] for head in range(HEADS)])
    torch.testing.assert_close(asked.rows(rows), expected)
    paid = [
        [sum(matrices[head][row][PAST + place] for head in range(HEADS)) / HEADS for place in places] for row in rows
    ]
    torch.testing.assert_close(asked.attention_from(rows, places), torch.tensor(paid))
    received = [sum(row[column] for row in paid) / len(rows) for column in range(len(places))]
    torch.testing.assert_close(asked.attention_received(rows, places), torch.tensor(received))
    assert asked.visible(rows).tolist() == [sum(pair(row, column) for column in range(PAST + LENGTH)) for row in rows]


@pytest.mark.parametrize("block", [1, 2 * HEADS * (PAST + LENGTH), 2**23])
def test_attention_inside_a_layer_equals_the_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    query, key = states(1)
    allowed = torch.ones(LENGTH, PAST + LENGTH, dtype=torch.bool).tril(PAST)
    allowed[2] = False
    kinds = torch.zeros(PAST + LENGTH, dtype=torch.bool)
    inputs = AttentionInputs(query, key, 0.5, allowed, kinds, ~kinds, 0, 1)
    rows = torch.arange(LENGTH)
    matrices = by_hand(query, key, lambda row, column: row == 2 or column <= row + PAST)
    mean = torch.tensor(matrices).mean(dim=0)
    mean[2] = 0  # it may attend to nothing
    torch.testing.assert_close(inputs.rows(rows), mean)
    columns = torch.tensor([0, 4, 9])
    torch.testing.assert_close(inputs.attention_received(rows, columns), mean[:, columns].sum(dim=0))


def test_no_block_is_larger_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    size = HEADS * (PAST + LENGTH)
    monkeypatch.setattr(attention, "BLOCK", 3 * size)
    blocks = list(Attention(*states(), 0.5).blocks(torch.arange(LENGTH)))
    assert [rows.tolist() for rows, _ in blocks] == [[0, 1, 2], [3, 4, 5], [6]]
    assert max(weights.numel() for _, weights in blocks) == 3 * size
    assert [len(rows) for rows in row_blocks(torch.arange(3), 10**9)] == [1, 1, 1]


def test_no_rows_pay_nothing() -> None:
    asked, nothing = Attention(*states(), 0.5), torch.zeros(0, dtype=torch.int64)
    assert asked.attention_from(nothing, torch.arange(2)).shape == (0, 2)
    assert asked.attention_received(nothing, torch.arange(2)).tolist() == [0, 0]


def test_added_masks_are_as_those_of_pairs() -> None:
    query, key = states()
    allowed = torch.rand(LENGTH, PAST + LENGTH, generator=torch.Generator().manual_seed(2)) < 0.5
    allowed[:, 0] = True
    added = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    assert torch.equal(attention_weights(query, key, 0.5, allowed), attention_weights(query, key, 0.5, added))
    for mask in (allowed, added, allowed.long()):
        assert torch.equal(may_attend(mask), allowed)


def test_shared_keys_are_those_of_neighbouring_heads() -> None:
    query, key = states()
    repeated = repeat_kv(key, HEADS)
    assert [torch.equal(repeated[head], key[head // 2]) for head in range(HEADS)] == [True] * HEADS
    assert repeat_kv(key, SHARED) is key
    assert torch.equal(attention_logits(query, key, 0.5), attention_logits(query, repeated, 0.5))

"""A layer of a cache whose heads remember different numbers of tokens."""

from __future__ import annotations

import torch

from foveate.methods.kv_cache.ragged import RaggedLayer


def filled() -> tuple[RaggedLayer, dict[int, list[int]], torch.Tensor, torch.Tensor]:
    """Heads 0 and 2 keep three of six tokens, head 1 keeps all; then two tokens follow."""
    keys, values = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 8, 4)
    layer = RaggedLayer(3)
    layer.append(keys[:, :, :6], values[:, :, :6])
    whole = layer.groups[0]
    short = whole.of([0, 2]).keep(torch.tensor([[0, 2, 5], [1, 3, 4]]).expand(2, 2, 3))
    layer.groups = [short, whole.of([1])]
    layer.append(keys[:, :, 6:], values[:, :, 6:])
    return layer, {0: [0, 2, 5, 6, 7], 1: list(range(8)), 2: [1, 3, 4, 6, 7]}, keys, values


def test_attention_of_ragged_heads_is_that_of_each_head_alone() -> None:
    layer, kept, keys, values = filled()
    queries = torch.randn(2, 3, 5, 4)
    read = layer.attend(queries)
    assert layer.lengths == [5, 8, 5]
    for row in range(2):
        for head in range(3):
            logits = queries[row, head] @ keys[row, head, kept[head]].T / 2
            torch.testing.assert_close(read[row, head], logits.softmax(dim=1) @ values[row, head, kept[head]])


def test_positions_are_those_that_stayed() -> None:
    layer, kept, _, _ = filled()
    for group in layer.groups:
        for row, head in enumerate(group.heads):
            assert group.token_indices()[0, row].tolist() == kept[head]


def test_bytes_are_those_of_what_lies_there() -> None:
    layer, _, _, _ = filled()
    # Keys and values of 2 sequences, 4 channels of 4 bytes; a position of 4 bytes where tokens are missing.
    assert layer.nbytes == 2 * (5 + 8 + 5) * 2 * 4 * 4 + 2 * (5 + 5) * 4
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for group in layer.groups
        for tensor in (group.keys, group.values, group.positions)
        if tensor is not None
    }
    assert sum(storages.values()) == layer.nbytes  # nothing longer is held behind a view
    layer.clear()
    assert layer.nbytes == 0 and layer.lengths == [0, 0, 0]

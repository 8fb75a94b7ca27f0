"""Packed numbers, and a layer of a cache that is made of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from foveate.core.packing import BITS, pack, unpack
from foveate.kv_cache import MixedLayer


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 7, 8, 13])
def test_what_is_packed_comes_back_and_is_as_small_as_it_can_be(bits: int, count: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 2, count), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, 2, -(-count * bits // 8))
    assert torch.equal(unpack(packed, bits, count), codes)


def test_bytes_by_hand() -> None:
    assert pack(torch.tensor([1, 2, 3, 0, 1], dtype=torch.uint8), 2).tolist() == [0b011101, 0b10]
    assert pack(torch.tensor([10, 5], dtype=torch.uint8), 4).tolist() == [0x5A]


def states(
    batch: int = 2, heads: int = 3, count: int = 20, dimension: int = 16, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, heads, count, dimension, generator=generator) for _ in range(2))  # ty: ignore[invalid-return-type]


def mixed(keys: Tensor, values: Tensor, bits: tuple[int, int] = (4, 2), residual: int = 4) -> MixedLayer:
    cache = DynamicCache()
    cache.update(keys, values, 0)
    return MixedLayer(cache.layers[0], bits, residual)  # ty: ignore[invalid-argument-type]


def halves(batch: int, count: int) -> tuple[Tensor, Tensor]:
    """Every third token matters; the first row begins with two of padding."""
    matters = (torch.arange(count) % 3 == 0).expand(batch, -1)
    real = torch.ones(batch, count, dtype=torch.bool)
    real[0, :2] = False
    return matters, real


def by_hand(keys: Tensor, values: Tensor, matters: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Every number through its own range, with loops."""
    out = torch.zeros_like(keys), torch.zeros_like(values)
    for row in range(len(keys)):
        for chosen, bits in ((matters[row] & real[row], 4), (~matters[row] & real[row], 2)):
            places = chosen.nonzero().flatten().tolist()
            for head in range(keys.shape[1]):
                for channel in range(keys.shape[3]):
                    column = keys[row, head, places, channel]
                    low, step = column.min(), (column.max() - column.min()) / (2**bits - 1)
                    for place in places:
                        code = round(float((keys[row, head, place, channel] - low) / step))
                        out[0][row, head, place, channel] = low + step * code
                norm = values[row, head, places].abs().amax(dim=0).sqrt()
                for place in places:
                    even = values[row, head, place] / norm
                    low, step = even.min(), (even.max() - even.min()) / (2**bits - 1)
                    codes = ((even - low) / step).round()
                    out[1][row, head, place] = (low + step * codes) * norm
    return out


def test_the_ranges_of_the_paper() -> None:
    keys, values = states()
    layer = mixed(keys, values)
    layer.store(*halves(2, 20))
    for found, expected in zip(layer.read(), by_hand(keys, values, *halves(2, 20)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_sixteen_bits_are_what_came() -> None:
    keys, values = states()
    layer = mixed(keys, values, (16, 16))
    layer.store(torch.ones(2, 20, dtype=torch.bool), torch.ones(2, 20, dtype=torch.bool))
    assert torch.equal(layer.read()[0], keys)
    assert torch.equal(layer.read()[1], values)


def test_a_constant_is_stored_exactly() -> None:
    keys = torch.full((1, 1, 5, 8), 3.0)
    layer = mixed(keys, keys * 0)
    layer.store(torch.zeros(1, 5, dtype=torch.bool), torch.ones(1, 5, dtype=torch.bool))
    assert torch.equal(layer.read()[0], keys)
    assert torch.equal(layer.read()[1], keys * 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bytes_are_those_of_what_lies_there(dtype: torch.dtype) -> None:
    """Heads of 128 channels and 600 tokens, half of them important."""
    keys, values = (part.to(dtype) for part in states(1, 8, 600, 128))
    layer = mixed(keys, values)
    full = layer.nbytes
    assert full == 2 * keys.numel() * keys.element_size()
    layer.store(torch.arange(600)[None] % 2 == 0, torch.ones(1, 600, dtype=torch.bool))
    numbers = 2 * 8 * 600 * 128 * 3 // 8  # 3 bits each, on average
    assert numbers < layer.nbytes < numbers + 0.05 * full
    assert layer.nbytes <= 0.55 * full


def test_written_tokens_stay_as_they_came_until_there_are_enough() -> None:
    keys, values = states()
    layer = mixed(keys, values, residual=3)
    layer.store(*halves(2, 20))
    written = [states(count=1, seed=seed) for seed in range(1, 8)]
    for number, (key, value) in enumerate(written, start=1):
        read = layer.update(key, value)
        assert read[0].shape == (2, 3, 20 + number, 16)
        assert torch.equal(read[0][:, :, -1:], key)
        assert layer.get_seq_length() == 20 + number
    assert [length for length, _ in layer.chunks] == [20, 3, 3]
    exact = torch.cat([key for key, _ in written], dim=2)
    # Four bits of the range of three numbers.
    assert float((layer.read()[0][:, :, 20:] - exact).abs().max()) < 4 / 15
    layer.reset()
    assert layer.get_seq_length() == 0
    assert torch.equal(layer.update(keys, values)[0], keys)


def test_rows_and_the_end_can_be_chosen() -> None:
    keys, values = states()
    layer = mixed(keys, values)
    layer.store(*halves(2, 20))
    layer.update(*states(count=2, seed=1))
    before = layer.read()
    layer.batch_repeat_interleave(2)
    layer.reorder_cache(torch.tensor([3, 0, 1, 2]))
    for found, expected in zip(layer.read(), before, strict=True):
        assert torch.equal(found, expected[[1, 0, 0, 1]])
    layer.batch_select_indices(torch.tensor([1, 3]))
    layer.crop(-1)
    layer.crop(-4)
    for found, expected in zip(layer.read(), before, strict=True):
        assert torch.equal(found, expected[[0, 1]][:, :, :17])
    assert layer.get_seq_length() == 17


@pytest.mark.parametrize(("batch", "heads"), [(1, 3), (2, 3), (2, 12)])
@pytest.mark.parametrize("bits", [(4, 2), (8, 1), (16, 4)])
def test_attending_apart_is_attending_to_what_is_read(batch: int, heads: int, bits: tuple[int, int]) -> None:
    """With padding, shared heads, several chunks and tokens that came since, in any order of sequences."""
    keys, values = states(2)
    layer = mixed(keys, values, bits, residual=3)
    matters, real = halves(2, 20)
    layer.store(matters, real)
    for seed in range(1, 6):
        layer.update(*states(2, count=1, seed=seed))
    layer.reorder_cache(torch.tensor([1, 0]))
    seen = torch.cat([real[[1, 0]], torch.ones(2, 5, dtype=torch.bool)], dim=1)
    if batch == 1:
        layer.batch_select_indices(torch.tensor([1]))
        seen = seen[1:]
    seen[0, -2] = False  # not stored yet, and not to be seen
    query = torch.randn(batch, heads, 1, 16, generator=torch.Generator().manual_seed(7))
    found = layer.attend(query, 0.3, seen)
    read = (part.repeat_interleave(heads // 3, dim=1) for part in layer.read())
    expected = torch.nn.functional.scaled_dot_product_attention(query, *read, seen[:, None, None], scale=0.3)
    assert found is not None
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-4)
    seen[0, 5] = False
    assert layer.attend(query, 0.3, seen) is None


def test_who_attends_apart_is_given_what_came_last() -> None:
    layer = mixed(*states())
    layer.store(*halves(2, 20))
    layer.skip_decoding = True
    key, value = states(count=1, seed=1)
    assert torch.equal(layer.update(key, value)[0], key)
    assert layer.get_seq_length() == 21
    layer.skip_decoding = False
    assert layer.update(key, value)[0].shape[2] == 22

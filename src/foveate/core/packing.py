"""Packing of numbers of 1, 2, 4 or 8 bits into bytes, and their quantisation ranges."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: Bits that a byte can be shared in.
BITS = (1, 2, 4, 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Bytes (..., b), b = ceil(n * bits / 8), of codes (..., n) below 2^bits, both uint8.

    Byte i holds the codes i, b + i, 2b + i and so on, the first in its lowest bits: unpacking is a few operations on
    whole rows of bytes.
    """
    each = 8 // bits
    missing = -codes.shape[-1] % each
    if missing:
        codes = torch.nn.functional.pad(codes, (0, missing))
    parts = codes.unflatten(-1, (each, -1))
    packed = parts[..., 0, :].clone()
    for place in range(1, each):
        packed |= parts[..., place, :] << (bits * place)
    return packed


def planes(packed: Tensor, bits: int, count: int) -> Iterator[tuple[slice, int, Tensor]]:
    """The first `count` codes of packed bytes (..., b), at most b at a time.

    Yields:
        Their slice, a factor, and the codes times the factor (..., .): dividing it out is left to the caller.
    """
    width = packed.shape[-1]
    for place, shift in enumerate(range(0, 8, bits)):
        begin, end = place * width, min((place + 1) * width, count)
        if begin >= end:
            return
        chunk = packed if end - begin == width else packed[..., : end - begin]
        yield slice(begin, end), 2**shift, chunk & ((2**bits - 1) << shift) if bits < 8 else chunk


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes (..., count) uint8 of packed bytes."""
    return torch.cat([codes // factor for _, factor, codes in planes(packed, bits, count)], dim=-1)


def encode(values: Tensor, low: Tensor, step: Tensor, bits: int) -> Tensor:
    """Packed codes of values (..., n) in ranges that begin at `low` and have 2^bits - 1 steps; both broadcast."""
    codes = ((values.float() - low.float()) / step.float()).round().clamp(0, 2**bits - 1)
    return pack(codes.to(torch.uint8), bits)


def decode(packed: Tensor, low: Tensor, step: Tensor, bits: int, count: int) -> Tensor:
    """What `encode` was given, to half a step, in the type of `low`."""
    return unpack(packed, bits, count).to(low.dtype) * step + low


def ranges(least: Tensor, most: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Where ranges between two tensors begin, and their steps, which are never 0."""
    low = least.to(dtype)
    step = ((most.float() - low.float()) / (2**bits - 1)).clamp(min=torch.finfo(dtype).tiny).to(dtype)
    return low, step.clamp(min=torch.finfo(dtype).tiny)

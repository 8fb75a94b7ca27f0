"""Layouts of rotary channels in a head, and conversion between them."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_channels(layout: str, head_dim: int) -> Tensor:
    """Which channel of a head holds what, for every way to lay out two-dimensional rotary positions.

    Args:
        layout: One of `ROPE_LAYOUTS` but "none", or "half-interleaved" (rotate-half with x and y frequencies
            alternating: MoonViT in `transformers`).
        head_dim: Channels of a head, a multiple of 4.

    Returns:
        (head_dim,) long: for every channel the index of its (axis, frequency, member of the pair), x before y.
    """
    channels = torch.arange(head_dim).view(2, head_dim // 4, 2)  # axis, frequency, member
    orders = {
        "interleaved": channels.transpose(0, 1),
        "hierarchical": channels,
        "half": channels.flip(0).permute(2, 0, 1),
        "half-interleaved": channels.permute(2, 1, 0),
    }
    return orders[layout].flatten()


def reorder_rotary(tensor: Tensor, num_heads: int, source: str, target: str) -> Tensor:
    """Queries and keys of a `wqkv` for another layout of the rotary channels.

    Attention sees only products of queries and keys, so the same permutation of both changes nothing but where
    each frequency is found. Values keep their places.

    Args:
        tensor: (3D, ...) weight or bias.
        num_heads: Number of heads.
        source: Layout of `tensor`, see `rotary_channels`.
        target: Layout of the result.

    Returns:
        (3D, ...).
    """
    query_key, value = tensor.split([2 * len(tensor) // 3, len(tensor) // 3])
    heads = query_key.unflatten(0, (2 * num_heads, -1))
    head_dim = heads.shape[1]
    order = rotary_channels(source, head_dim).argsort()[rotary_channels(target, head_dim)]
    return torch.cat((heads[:, order.to(tensor.device)].flatten(0, 1), value))

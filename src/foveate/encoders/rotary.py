"""Rotary positions in two dimensions, for packed batches."""

from __future__ import annotations

import torch

from foveate.encoders.layout import Layout


def rotary_angles(height: int, width: int, head_dim: int, theta: float, layout: str, stride: int = 1) -> torch.Tensor:
    """Angles of an image's tokens, one per rotated channel pair.

    Token (i, j) turns pair c by `frequency * i` or `frequency * j`, with frequencies theta^(-4 k / head_dim),
    k < head_dim / 4 for each axis:

    - `"interleaved"`: pairs alternate x, y, x, y, ... (MoonViT, and ViT-UHD as released);
    - `"hierarchical"`: all x pairs, then all y pairs;
    - `"half"`: all y pairs, then all x pairs (Qwen2-VL).

    Args:
        height, width: The grid.
        head_dim: Channels of a head, a multiple of 4.
        theta: Base of the frequencies.
        layout: One of the above.
        stride: Distance between neighbouring tokens in units of the finest patch (2^k after k merges with
            hierarchical positions, else 1).

    Returns:
        (height * width, head_dim / 2) float32, row-major.
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 4, dtype=torch.float32) / head_dim)
    y = (torch.arange(height, dtype=torch.float32) * stride)[:, None] * frequencies
    x = (torch.arange(width, dtype=torch.float32) * stride)[:, None] * frequencies
    y = y[:, None].expand(height, width, -1)
    x = x[None, :].expand(height, width, -1)
    if layout == "interleaved":
        angles = torch.stack((x, y), dim=-1).flatten(-2)
    elif layout == "hierarchical":
        angles = torch.cat((x, y), dim=-1)
    else:
        angles = torch.cat((y, x), dim=-1)
    return angles.flatten(0, 1)


def packed_rotation(
    layout: Layout, head_dim: int, theta: float, rope_layout: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Cosines and sines of a packed batch, each (L, head_dim / 2) float32; `None` without rotary positions."""
    if rope_layout == "none":
        return None
    stride = 2**layout.merges if rope_layout == "hierarchical" else 1
    parts = []
    for group in layout.groups:
        angles = rotary_angles(group.height, group.width, head_dim, theta, rope_layout, stride)
        parts.append(angles.repeat(group.count, 1) if group.count > 1 else angles)
    angles = (parts[0] if len(parts) == 1 else torch.cat(parts)).to(device)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], rope_layout: str) -> torch.Tensor:
    """Turn the channel pairs of x (L, ..., head_dim) by each token's angles, in float32.

    Pairs are neighbouring channels (2c, 2c + 1), except with `"half"`, where they are (c, c + head_dim / 2).
    """
    cos, sin = (table.view(len(table), *[1] * (x.ndim - 2), -1) for table in rotation)
    if rope_layout == "half":
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2).to(x.dtype)


__all__ = ["packed_rotation", "rotary_angles", "rotate"]

"""Rotary positions in two dimensions, for packed batches."""

from __future__ import annotations

import torch

from foveate.models.vit_uhd.layout import Layout


def rotary_angles(
    height: int,
    width: int,
    head_dim: int,
    theta: float,
    layout: str,
    stride: int = 1,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
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
        device: Where to compute them.

    Returns:
        (height * width, head_dim / 2) float32, row-major.
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 4, dtype=torch.float32, device=device) / head_dim)
    y = (torch.arange(height, dtype=torch.float32, device=device) * stride)[:, None] * frequencies
    x = (torch.arange(width, dtype=torch.float32, device=device) * stride)[:, None] * frequencies
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
) -> torch.Tensor | None:
    """Rotation of every token of a packed batch: exp(i angle), (L, head_dim / 2) complex64.

    `None` without rotary positions.
    """
    if rope_layout == "none":
        return None
    stride = 2**layout.merges if rope_layout == "hierarchical" else 1
    parts = []
    for group in layout.groups:
        angles = rotary_angles(group.height, group.width, head_dim, theta, rope_layout, stride, device)
        turns = torch.polar(torch.ones_like(angles), angles)
        parts.append(turns.repeat(group.count, 1) if group.count > 1 else turns)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def rotate(x: torch.Tensor, rotation: torch.Tensor, rope_layout: str) -> torch.Tensor:
    """Turn the channel pairs of x by each token's rotation, in float32; x may be overwritten.

    Pairs are neighbouring channels (2c, 2c + 1), except with `"half"`, where they are (c, c + head_dim / 2).
    Neighbouring channels are one complex number in memory, so that a rotation is one multiplication: on a CPU
    many times faster than the four real ones.

    Args:
        x: (L, ..., head_dim), the fresh output of a projection.
        rotation: (L, head_dim / 2) complex64.
        rope_layout: As in `rotary_angles`.
    """
    rotation = rotation.view(len(rotation), *[1] * (x.ndim - 2), -1)
    if rope_layout == "half":
        first, second = x.float().chunk(2, dim=-1)
        cos, sin = rotation.real, rotation.imag
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    turned = pairs * rotation if torch.is_grad_enabled() else pairs.mul_(rotation)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


__all__ = ["packed_rotation", "rotary_angles", "rotate"]

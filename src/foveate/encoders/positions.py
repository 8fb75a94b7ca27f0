"""Absolute positions for native resolutions: a learned table resampled to every image's grid."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from foveate.encoders.layout import Layout


class InterpolatedPositions(nn.Module):
    """A learned table (rows, columns, D), resampled to each image's grid.

    `mode` is `"bicubic"` (MoonViT, ViT-UHD) or `"bilinear-antialias"` (SigLIP2); corners are not aligned, so
    that the table always spans the whole image.
    """

    def __init__(self, rows: int, columns: int, width: int, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.weight = nn.Parameter(torch.empty(rows, columns, width))

    def table(self, height: int, width: int) -> torch.Tensor:
        """The table at another size, (height * width, D)."""
        if (height, width) == tuple(self.weight.shape[:2]):
            return self.weight.flatten(0, 1)
        planes = self.weight.permute(2, 0, 1)[None]
        antialias = self.mode == "bilinear-antialias"
        if antialias and planes.device.type == "cpu":
            planes = planes.float()  # the antialiased kernel has no half precision on a CPU
        mode = "bilinear" if antialias else "bicubic"
        resized = F.interpolate(planes, size=(height, width), mode=mode, align_corners=False, antialias=antialias)
        return resized[0].permute(1, 2, 0).flatten(0, 1).to(self.weight.dtype)

    def forward(self, x: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Add to packed tokens (L, D) the positions of their images."""
        return _add_per_group(x, layout, self.table)


class WindowPositions(nn.Module):
    """A learned tile (side, side, D) repeated over the grid.

    It tells a token its place inside the windows that the stages will merge, which interpolated and relative
    positions cannot ("absolute win" embedding of Bolya et al. 2023, arXiv 2311.05613, Section 4).
    """

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(side, side, width))

    def table(self, height: int, width: int) -> torch.Tensor:
        """The tile repeated to (height * width, D)."""
        side = self.weight.shape[0]
        return self.weight.repeat(height // side, width // side, 1).flatten(0, 1)

    def forward(self, x: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Add to packed tokens (L, D) their places in the tile."""
        return _add_per_group(x, layout, self.table)


def _add_per_group(x: torch.Tensor, layout: Layout, table) -> torch.Tensor:
    parts = []
    for group in layout.groups:
        tokens = x[group.start : group.stop].view(group.count, group.length, -1)
        parts.append((tokens + table(group.height, group.width)).view(-1, x.shape[-1]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


__all__ = ["InterpolatedPositions", "WindowPositions"]

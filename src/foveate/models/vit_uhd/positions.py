"""Absolute positions for native resolutions: a learned table resampled to every image's grid."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from foveate.models.vit_uhd.layout import Layout


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
        """The table at another size, (height * width, D).

        The resize acts on rows and columns one after the other, so it is two matrix products; they take a fraction
        of the time of `F.interpolate` over D planes, and so does their backward pass.
        """
        rows, columns = self.weight.shape[:2]
        if (height, width) == (rows, columns):
            return self.weight.flatten(0, 1)
        device = self.weight.device
        with torch.autocast(device.type, enabled=False):
            resized = (self._resize(rows, height) @ self.weight.float().flatten(1)).unflatten(1, (columns, -1))
            return (self._resize(columns, width) @ resized).flatten(0, 1).to(self.weight.dtype)

    def _resize(self, source: int, target: int) -> torch.Tensor:
        """The matrix (target, source) that resizes one axis."""
        antialias = self.mode == "bilinear-antialias"
        mode = "bilinear" if antialias else "bicubic"
        one_hot = torch.eye(source)[None, None]
        resized = F.interpolate(one_hot, size=(source, target), mode=mode, align_corners=False, antialias=antialias)
        return resized[0, 0].T.to(self.weight.device)

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

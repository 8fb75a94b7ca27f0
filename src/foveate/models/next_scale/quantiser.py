"""Multi-scale residual vector quantisation: a picture's features as token maps from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.next_scale.configuration import NextScaleConfig


class Refinement(nn.Module):
    """The convolution that a map passes after it was enlarged: half of it, and half of what it was."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C, S, S), refined."""
        return 0.5 * features + 0.5 * self.convolution(features)


class MultiScaleQuantiser(nn.Module):
    """Residual quantisation over maps (VAR, arXiv 2404.02905, algorithms 1 and 2).

    The residual of the features f (B, C, S, S) is averaged down to map k, every cell becomes the nearest code, and
    the codes, enlarged (bicubic) and refined, are taken off:

        r_k = nearest(area(f, s_k)),   f <- f - phi_k(bicubic(codebook[r_k], S))

    All maps share the codebook; each has its own refinement phi_k.
    """

    def __init__(self, config: NextScaleConfig) -> None:
        super().__init__()
        self.scales = tuple(config.scales)
        # Not trained by gradients: a moving average of what is nearest to each code (`foveate.training.next_scale`).
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.code_size), requires_grad=False)
        self.refinements = nn.ModuleList(Refinement(config.code_size) for _ in self.scales)

    def nearest(self, features: Tensor) -> Tensor:
        """The nearest code, in Euclidean distance, of every cell of (B, C, s, s); (B, s * s) row by row."""
        cells = features.flatten(2).transpose(1, 2)
        # |x - c|^2 without |x|^2, which is the same for all codes.
        distance = self.codebook.square().sum(1) - 2 * cells @ self.codebook.T
        return distance.argmin(dim=2)

    def down(self, features: Tensor, side: int) -> Tensor:
        """Features (B, C, S, S) averaged over the cells of a map: (B, C, side, side)."""
        return features if features.shape[-1] == side else F.interpolate(features, size=(side, side), mode="area")

    def drawn(self, ids: Tensor, place: int) -> Tensor:
        """What map `place` with ids (B, s * s) adds to the features: (B, C, S, S)."""
        side, finest = self.scales[place], self.scales[-1]
        codes = self.codebook[ids].transpose(1, 2).unflatten(2, (side, side))
        if side != finest:
            codes = F.interpolate(codes, size=(finest, finest), mode="bicubic", align_corners=False)
        return self.refinements[place](codes)

    def forward(self, features: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Quantise.

        Args:
            features: (B, C, S, S).

        Returns:
            For every map its ids (B, s * s), the vectors (B, s * s, C) that they were chosen for, and the features
            (B, C, S, S) that all maps up to it stand for.
        """
        left, so_far = features, torch.zeros_like(features)
        ids, cells, sums = [], [], []
        for place, side in enumerate(self.scales):
            small = self.down(left, side)
            ids.append(self.nearest(small))
            cells.append(small.flatten(2).transpose(1, 2))
            added = self.drawn(ids[-1], place)
            left, so_far = left - added, so_far + added
            sums.append(so_far)
        return ids, cells, sums

    def read(self, ids: Sequence[Tensor]) -> Tensor:
        """The features (B, C, S, S) that maps of ids stand for."""
        return torch.stack([self.drawn(own, place) for place, own in enumerate(ids)]).sum(0)

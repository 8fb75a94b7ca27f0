"""The tokenizer: a convolutional autoencoder around the quantiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.next_scale.configuration import NextScaleConfig
from foveate.models.next_scale.quantiser import MultiScaleQuantiser


class Residual(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) to the same shape."""
        return features + self.second(F.silu(self.first(F.silu(self.norm(features)))))


class Encoder(nn.Sequential):
    """Pictures (B, 3, H, W) in [-1, 1] to features (B, C, S, S)."""

    def __init__(self, config: NextScaleConfig) -> None:
        width, inner = config.tokenizer_width, 2 * config.tokenizer_width
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        side = 1
        while side < config.downsampling:
            layers += [nn.SiLU(), nn.Conv2d(width if side == 1 else inner, inner, 4, stride=2, padding=1)]
            side *= 2
        wide = width if side == 1 else inner
        layers += [Residual(wide), nn.GroupNorm(1, wide), nn.SiLU(), nn.Conv2d(wide, config.code_size, 1)]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Features (B, C, S, S) to pictures (B, 3, H, W)."""

    def __init__(self, config: NextScaleConfig) -> None:
        width, inner = config.tokenizer_width, 2 * config.tokenizer_width
        layers: list[nn.Module] = [nn.Conv2d(config.code_size, inner, 3, padding=1), Residual(inner)]
        side, wide = config.downsampling, inner
        while side > 1:
            side //= 2
            narrow = width if side == 1 else inner
            layers += [nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(wide, narrow, 3, padding=1)]
            wide = narrow
        layers += [nn.SiLU(), nn.Conv2d(wide, 3, 3, padding=1)]
        super().__init__(*layers)


class ImageTokenizer(nn.Module):
    """Pictures to token maps and back."""

    def __init__(self, config: NextScaleConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantiser = MultiScaleQuantiser(config)
        self.decoder = Decoder(config)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """The ids (B, tokens) of pictures (B, 3, H, W) in [-1, 1], all maps one after another."""
        ids, _, _ = self.quantiser(self.encoder(pixel_values))
        return torch.cat(ids, dim=1)

    def split(self, ids: Tensor) -> list[Tensor]:
        """Ids (B, tokens) map by map."""
        return [ids[:, start:end] for start, end in self.config.bounds]

    def decode(self, ids: Tensor | Sequence[Tensor]) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of ids (B, tokens), or of a list of maps."""
        maps = self.split(ids) if isinstance(ids, Tensor) else ids
        return self.decoder(self.quantiser.read(maps)).clamp(-1, 1)

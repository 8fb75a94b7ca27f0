"""A vision tower in the terms of ViT-UHD, and what readers of several families need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from foveate.core.errors import FoveateError


@dataclass(frozen=True)
class SourceSpec:
    """A vision tower in the terms of ViT-UHD.

    Args:
        family: What it was, in words.
        fields: Fields of a `ViTUHDConfig` that computes what the tower does.
        weights: Its tensors under ViT-UHD's names, in the source's dtype.
        rotary_channels: How `wqkv` lays out rotary positions, see `rotary_channels`; "none" without them.
        merger_norm: Parameters (weight, bias) of the norm in front of the source's own patch merger, if it has one.
        image_mean: Mean of each channel that the tower's images are normalised with.
        image_std: Standard deviation of each channel, likewise.
    """

    family: str
    fields: dict[str, Any]
    weights: dict[str, Tensor]
    rotary_channels: str
    merger_norm: dict[str, Tensor] | None = None
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)


class Tensors:
    """Tensors of a source, each to be taken once, so that nothing is lost without notice."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def require(self, name: str) -> None:
        """Raises FoveateError unless there is a tensor of this name."""
        if name not in self.tensors:
            raise FoveateError(f"the source has no tensor {name!r}; it is not a complete vision tower.")

    def take(self, name: str) -> Tensor:
        """A tensor, which is then gone from here; FoveateError where it is missing, quantised or offloaded."""
        self.require(name)
        tensor = self.tensors.pop(name)
        if tensor.is_meta or not tensor.is_floating_point():
            raise FoveateError(
                f"tensor {name!r} of the source is {'not in memory' if tensor.is_meta else tensor.dtype}; "
                "load the source unquantised and without offloading."
            )
        return tensor.detach()

    def take_layer(self, names: str | tuple[str, ...]) -> dict[str, Tensor]:
        """The parameters of one layer, or of several concatenated over their outputs: (weight[, bias])."""
        names = (names,) if isinstance(names, str) else names
        layer = {"weight": torch.cat([self.take(f"{name}.weight") for name in names])}
        if f"{names[0]}.bias" in self:
            layer["bias"] = torch.cat([self.take(f"{name}.bias") for name in names])
        return layer

    def finish(self, dropped: str = r"(?!)") -> None:
        """Check that the remaining weights are known to be unused: names that match `dropped` from their start."""
        unknown = sorted(name for name in self.tensors if not re.match(dropped, name))
        if unknown:
            raise FoveateError(
                f"the source has {len(unknown)} tensors that a plain vision tower has not, such as {unknown[0]!r}; "
                "if they are adapters, merge them into the model first."
            )


def read_blocks(
    source: Tensors, prefix: str, count: int, names: Mapping[str, str | tuple[str, ...]]
) -> dict[str, Tensor]:
    """Tensors of all blocks; `names` maps our layer of a block to theirs (several are concatenated)."""
    weights = {}
    for index in range(count):
        for ours, theirs in names.items():
            theirs = (theirs,) if isinstance(theirs, str) else theirs
            layer = source.take_layer(tuple(f"{prefix}.{index}.{name}" for name in theirs))
            weights |= {f"encoder.blocks.{index}.{ours}.{part}": tensor for part, tensor in layer.items()}
    return weights


def side_of(patch_size: Any) -> int:
    """The side of a patch that a configuration may give as a number or as a pair."""
    if isinstance(patch_size, int):
        return patch_size
    if len(set(patch_size)) != 1:
        raise FoveateError(f"the source's patches of {patch_size} pixels are not square.")
    return int(patch_size[0])


def theta_of(config: PreTrainedConfig) -> float:
    """The base of a tower's rotary frequencies."""
    return float((config.rope_parameters or {}).get("rope_theta", 10000.0))

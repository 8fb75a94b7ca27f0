"""Qwen3.5: the encoder of Qwen3-VL without DeepStack, and a language model most of whose layers are linear attention.

Linear layers read the pruned sequence, so their state is that of a model that got the kept tokens only.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from foveate.families.family import Family
from foveate.families.qwen2_vl import Qwen2VL


class Qwen35(Qwen2VL):
    """Qwen3.5, dense and with experts."""

    name: ClassVar[str] = "qwen3.5"
    title: ClassVar[str] = "Qwen3.5"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_5", "qwen3_5_moe")
    raster_features: ClassVar = None  # no paper does it here
    example: ClassVar[str] = "Qwen/Qwen3.5-27B"
    decoder: ClassVar[bool] = False
    written_times: ClassVar = "before"
    first_layer: ClassVar[bool] = False  # the first layer is a linear one

    def text_positions(self, positions: Tensor | None) -> Tensor | None:
        """Plain positions are spread over four axes, the first of which tells samples apart."""
        return Family.text_positions(self, positions)

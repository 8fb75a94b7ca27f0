"""Qwen3-VL: as Qwen2-VL, with DeepStack features of earlier blocks added to visual tokens in the first layers.

The runtime prunes the DeepStack features. Frames of a clip are separated by timestamps in the prompt.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from foveate.families.family import Family
from foveate.families.qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    """Qwen3-VL, dense and with experts."""

    name: ClassVar[str] = "qwen3-vl"
    title: ClassVar[str] = "Qwen3-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")
    raster_features: ClassVar = None  # DeepStack features would have to be mapped too
    example: ClassVar[str] = "Qwen/Qwen3-VL-4B-Instruct"
    written_times: ClassVar = "before"

    def text_positions(self, positions: Tensor | None) -> Tensor | None:
        """Plain positions are spread over four axes, the first of which tells samples apart."""
        return Family.text_positions(self, positions)

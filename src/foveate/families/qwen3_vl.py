"""Qwen3-VL: as Qwen2-VL, and DeepStack adds planes of earlier blocks to the visual tokens of the first layers.

The planes follow the selection in the runtime. Frames of a clip stand apart in the prompt, between timestamps.
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
    example: ClassVar[str] = "Qwen/Qwen3-VL-4B-Instruct"

    def text_positions(self, positions: Tensor | None) -> Tensor | None:
        """Plain positions are spread over four axes, the first of which tells samples apart."""
        return Family.text_positions(self, positions)

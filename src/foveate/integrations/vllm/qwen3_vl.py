"""Qwen3-VL in vLLM, whose first layers add planes of earlier encoder blocks to visual tokens (DeepStack)."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLMultiModalProcessor  # ty: ignore[import-not-found]

from foveate.integrations.vllm.mrope import PlannedMRope
from foveate.integrations.vllm.processing import Planned, registered


class FoveateQwen3VLProcessor(Planned, Qwen3VLMultiModalProcessor):
    """As vLLM's, with fewer placeholders for images."""


@registered(FoveateQwen3VLProcessor, Qwen3VLForConditionalGeneration)
class FoveateQwen3VL(PlannedMRope, Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL, whose language model reads what a plan leaves of every image, planes too. Clips stay whole."""

    def __init__(self, *, vllm_config: Any, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._width = self.visual_dim

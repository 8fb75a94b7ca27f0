"""Qwen3-VL in vLLM, with DeepStack features of earlier encoder blocks added in the first layers."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLMultiModalProcessor  # ty: ignore[import-not-found]

from foveate.integrations.vllm.mrope import PlannedMRope
from foveate.integrations.vllm.processing import PlannedProcessor, registered


class FoveateQwen3VLProcessor(PlannedProcessor, Qwen3VLMultiModalProcessor):
    """vLLM's processor with fewer image placeholders."""


@registered(FoveateQwen3VLProcessor, Qwen3VLForConditionalGeneration)
class FoveateQwen3VL(PlannedMRope, Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL with compressed visual tokens and DeepStack features. Clips are not compressed."""

    def __init__(self, *, vllm_config: Any, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._width = self.visual_dim

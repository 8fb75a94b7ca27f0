"""Qwen2.5-VL in vLLM."""

from __future__ import annotations

from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLMultiModalProcessor  # ty: ignore[import-not-found]

from foveate.integrations.vllm.mrope import PlannedMRope
from foveate.integrations.vllm.processing import PlannedProcessor, registered


class FoveateQwen25VLProcessor(PlannedProcessor, Qwen2_5_VLMultiModalProcessor):
    """vLLM's processor with fewer placeholders of images and clips."""


@registered(FoveateQwen25VLProcessor, Qwen2_5_VLForConditionalGeneration)
class FoveateQwen25VL(PlannedMRope, Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL with token compression of images and clips before the language model."""

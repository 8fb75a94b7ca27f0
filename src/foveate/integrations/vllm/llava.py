"""LLaVA-1.5 in vLLM."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from vllm.config import VllmConfig  # ty: ignore[import-not-found]
from vllm.model_executor.models.llava import (  # ty: ignore[import-not-found]
    LlavaForConditionalGeneration,
    LlavaImagePixelInputs,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)

from foveate.integrations.vllm.plans import NAME, serving_of
from foveate.integrations.vllm.processing import LargestImage, PlannedProcessor, registered, settings_of
from foveate.integrations.vllm.selection import chosen, encoder_calls, view_tokens
from foveate.integrations.vllm.weight_names import as_published


class FoveateLlavaInfo(LargestImage, LlavaProcessingInfo):
    """vLLM's processing info, sized for uncompressed images."""


class FoveateLlavaProcessor(PlannedProcessor, LlavaMultiModalProcessor):
    """vLLM's processor with fewer placeholders."""


@registered(FoveateLlavaProcessor, LlavaForConditionalGeneration, FoveateLlavaInfo)
class FoveateLlava(LlavaForConditionalGeneration):
    """vLLM's LLaVA with token compression before the language model."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.foveate = serving_of(vllm_config.model_config.hf_config)
        self._most_tokens = vllm_config.scheduler_config.max_num_batched_tokens

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load weights, including those of models that transformers 5 saved."""
        return super().load_weights(as_published(self.config, weights))

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the embeddings (k, D) of every image; image embeddings passed by the user are not compressed."""
        plans = kwargs.pop(NAME, None)
        image_input = self._parse_and_validate_image_input(**kwargs)
        if self.foveate is None or plans is None or not isinstance(image_input, LlavaImagePixelInputs):
            return super().embed_multimodal(**kwargs)
        pixels = image_input["pixel_values"]
        images = chosen(
            self.foveate,
            settings_of(self.foveate, plans),
            encoder_calls([view_tokens(self.config)] * len(pixels), self._most_tokens),
            lambda call: self._process_image_input(
                LlavaImagePixelInputs(type=image_input["type"], pixel_values=pixels[call])
            ),
            self.vision_tower.vision_model.encoder.layers,
            lambda block: block.self_attn.attn,
            self,
            {"pixel_values": pixels},
        )
        return tuple(features for features, _ in images)

"""LLaVA-NeXT in vLLM: a thumbnail and tiles, packed into one raster with newlines."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextModel
from vllm.config import VllmConfig  # ty: ignore[import-not-found]
from vllm.model_executor.models.llava_next import (  # ty: ignore[import-not-found]
    LlavaNextForConditionalGeneration,
    LlavaNextImagePixelInputs,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)

from foveate.integrations.vllm.plans import NAME, serving_of
from foveate.integrations.vllm.processing import LargestImage, PlannedProcessor, registered, settings_of
from foveate.integrations.vllm.selection import chosen, encoder_calls, view_tokens
from foveate.integrations.vllm.weight_names import as_published


class FoveateLlavaNextInfo(LargestImage, LlavaNextProcessingInfo):
    """vLLM's processing info, sized for uncompressed images."""


class FoveateLlavaNextProcessor(PlannedProcessor, LlavaNextMultiModalProcessor):
    """vLLM's processor with fewer placeholders."""


@registered(FoveateLlavaNextProcessor, LlavaNextForConditionalGeneration, FoveateLlavaNextInfo)
class FoveateLlavaNext(LlavaNextForConditionalGeneration):
    """vLLM's LLaVA-NeXT with token compression before the language model."""

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
        if self.foveate is None or plans is None or not isinstance(image_input, LlavaNextImagePixelInputs):
            return super().embed_multimodal(**kwargs)
        # The packing of `transformers` places values as vLLM's places features; the family has it work out layouts.
        core: Any = SimpleNamespace(config=self.config)
        core.pack_image_features = partial(LlavaNextModel.pack_image_features, core)
        sizes = image_input["image_sizes"].tolist()
        shapes = [self.foveate.family._shape(core, size) for size in sizes]
        tiles = [1 + rows * columns for rows, columns in shapes]
        tile_counts = [len(image) for image in image_input["pixel_values"]]

        def plain(values: Tensor) -> Tensor:
            """Remove the tiles that pad a batch."""
            each = len(values) // sum(tile_counts)
            parts = values.split([each * count for count in tile_counts])
            return torch.cat([image[: each * count] for image, count in zip(parts, tiles, strict=True)])

        images = chosen(
            self.foveate,
            settings_of(self.foveate, plans),
            encoder_calls([count * view_tokens(self.config) for count in tile_counts], self._most_tokens),
            lambda call: self._process_image_input(
                LlavaNextImagePixelInputs(
                    pixel_values=image_input["pixel_values"][call], image_sizes=image_input["image_sizes"][call]
                )
            ),
            self.vision_tower.vision_model.encoder.layers,
            lambda block: block.self_attn.attn,
            core,
            {"image_sizes": sizes},
            plain=plain,
        )
        return tuple(features for features, _ in images)

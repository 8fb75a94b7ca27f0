"""PaliGemma: a SigLIP tower, and bidirectional attention in the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.masking_utils import create_masks_for_generate

from foveate import compat
from foveate.families.llava import Llava


class PaliGemma(Llava):
    """PaliGemma 1 and 2: images and the text after them are one prefix without order; what is answered is causal."""

    name: ClassVar[str] = "paligemma"
    title: ClassVar[str] = "PaliGemma"
    model_types: ClassVar[tuple[str, ...]] = ("paligemma",)
    raster_features: ClassVar = None  # no paper does it here
    example: ClassVar[str] = "google/paligemma-3b-pt-224"
    cls_tokens: ClassVar[tuple[bool, ...]] = (False,)
    answer_type: ClassVar[int] = 1

    def output_layer(self, core: Any) -> int:
        """The last block; its normalised output becomes the tokens."""
        return len(self.blocks(core)) - 1

    def mask(self, core: Any, arguments: Mapping[str, Any], types: Tensor | None, images: bool) -> Any:
        """Bidirectional within the prefix: tokens of type 0 in a first pass or one with images."""
        cache = compat.cache_in(arguments)
        first = cache is None or not cache.is_initialized or images
        return create_masks_for_generate(
            core.config,
            arguments["inputs_embeds"],
            arguments["attention_mask"],
            cache,
            arguments["position_ids"],
            block_sequence_ids=torch.where(types == 0, 0, -1) if types is not None and first else None,
        )

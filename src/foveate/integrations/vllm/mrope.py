"""Models with multimodal RoPE (M-RoPE), whose kept tokens retain their original positions.

Which tokens stay is known when an image was encoded, long after vLLM has made the positions of its prompt. So positions
of text and clips are right from the start, as sizes tell them, and the placeholders of an image all stand at its first
position. Embeddings carry row and column through vLLM's caches; where a step puts them among the text they are taken
off, and the model adds them to the positions of this step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.multimodal.utils import copy_mm_embedding_modality  # ty: ignore[import-not-found]

from foveate.integrations.vllm.plans import NAME, EnginePlans, serving_of
from foveate.integrations.vllm.positions import COLUMNS, nowhere, offsets, places
from foveate.integrations.vllm.processing import settings_of
from foveate.integrations.vllm.selection import chosen

if TYPE_CHECKING:
    Model = Any
else:
    Model = object


class PlannedMRope(Model):
    """Mixin for vLLM models with `visual`, `_process_image_input` and `_process_video_input`."""

    foveate: EnginePlans | None
    #: Columns of an embedding that the language model reads first; None: all of them.
    _width: int | None = None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.foveate = serving_of(vllm_config.model_config.hf_config)
        # Rows and columns of the tokens of one step. One tensor for good: graphs of the language model read it.
        self._moved = torch.zeros(2, vllm_config.scheduler_config.max_num_batched_tokens, dtype=torch.int64)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the embeddings (k, D + 4) of every image and clip, with columns that hold their positions."""
        plans = kwargs.pop(NAME, None)
        if self.foveate is None:
            return super().embed_multimodal(**kwargs)
        embeddings: list[Tensor] = []
        for modality, media_input in self._parse_and_validate_multimodal_inputs(**kwargs).items():
            if modality == "video":
                embeddings += [
                    torch.cat([clip, nowhere(clip)], dim=1) for clip in self._process_video_input(media_input)
                ]
            else:
                embeddings += self._images(self.foveate, media_input, plans)
        return tuple(embeddings)

    def _images(self, serving: EnginePlans, image_input: Any, plans: Tensor | None) -> list[Tensor]:
        grids = image_input["image_grid_thw"]
        columns = [int(grid[2]) // self.visual.spatial_merge_size for grid in grids]
        if plans is None:  # embeddings that a user gives stay as they are
            encoded = self._process_image_input(image_input)
            images = [(grid, torch.arange(len(grid), device=grid.device)) for grid in encoded]
        else:
            images = chosen(
                serving,
                settings_of(serving, plans),
                lambda: self._process_image_input(image_input),
                self.visual.blocks,
                lambda block: block.attn.attn,
                self,
                {"image_grid_thw": grids},
                width=self._width,
            )
        return [
            torch.cat([grid, places(at, wide, grid)], dim=1) for (grid, at), wide in zip(images, columns, strict=True)
        ]

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Return prompt positions (3, N) without rows and columns of images, and the offset for decoding.

        vLLM's own code computes the positions of the uncompressed prompt; those of dropped tokens are removed.
        """
        if self.foveate is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)
        side = self.visual.spatial_merge_size
        expanded: list[int] = []
        taken: list[int] = []  # for every token of the prompt its place in the long one
        features, read = [], 0
        for feature in sorted(mm_features, key=lambda item: item.mm_position.offset):
            start, length = feature.mm_position.offset, feature.mm_position.length
            taken += range(len(expanded), len(expanded) + start - read)
            expanded += input_tokens[read:start]
            position = replace(feature.mm_position, offset=len(expanded))
            if feature.modality == "image":
                _, rows, columns = feature.data["image_grid_thw"].data.tolist()
                count = (rows // side) * (columns // side)
                position = replace(position, length=count)
                taken += [len(expanded)] * length
                expanded += [input_tokens[start]] * count
            else:
                taken += range(len(expanded), len(expanded) + length)
                expanded += input_tokens[start : start + length]
            features.append(replace(feature, mm_position=position))
            read = start + length
        taken += range(len(expanded), len(expanded) + len(input_tokens) - read)
        expanded += input_tokens[read:]
        positions, delta = super().get_mrope_input_positions(expanded, features)
        return positions[:, taken], delta + len(expanded) - len(input_tokens)

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """Return the embeddings (N, D) of a step and store the positions of its images for `forward`."""
        if self.foveate is None:
            return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)
        self._moved.zero_()
        if multimodal_embeddings is not None and len(multimodal_embeddings) and is_multimodal is not None:
            at = is_multimodal.to(self._moved.device).nonzero().flatten()
            self._moved[:, at] = offsets(torch.cat([embedding[:, -COLUMNS:] for embedding in multimodal_embeddings]))
            multimodal_embeddings = [
                copy_mm_embedding_modality(embedding, embedding[:, :-COLUMNS]) for embedding in multimodal_embeddings
            ]
        return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run vLLM's forward pass with rows and columns of images added to the positions (3, N)."""
        if self.foveate is not None and inputs_embeds is not None:
            positions = torch.cat([positions[:1], positions[1:] + self._moved[:, : positions.shape[1]]])
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)

    def get_encoder_cudagraph_config(self) -> Any:
        """Return None for every modality: CUDA graphs of the encoder do not support plans."""
        config = super().get_encoder_cudagraph_config()
        return config if self.foveate is None else replace(config, modalities=[])

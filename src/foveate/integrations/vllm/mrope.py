"""Models with multimodal RoPE (M-RoPE), whose kept tokens retain their original positions.

Which tokens stay is known when an image or clip was encoded, long after vLLM has made the positions of its prompt. So
positions of text are right from the start, as sizes tell them, and the placeholders of an image or clip all stand at
its first position. Embeddings carry time, row and column through vLLM's caches; where a step puts them among the text
they are taken off, and the model adds them to the positions of this step. Clips that are not compressed
(`EnginePlans.modalities`) have their positions from the start, as text has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.multimodal.utils import copy_mm_embedding_modality  # ty: ignore[import-not-found]

from foveate.core.tokens import Grid
from foveate.integrations.vllm.plans import EnginePlans, serving_of
from foveate.integrations.vllm.positions import COLUMNS, nowhere, offsets, places
from foveate.integrations.vllm.processing import FIELDS, settings_of
from foveate.integrations.vllm.selection import chosen, encoder_calls

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
        # Times, rows and columns of the tokens of one step. One tensor for good: graphs of the language model read it.
        self._moved = torch.zeros(3, vllm_config.scheduler_config.max_num_batched_tokens, dtype=torch.int64)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the embeddings (k, D + 9) of every image and clip, with columns that hold their positions."""
        plans = {modality: kwargs.pop(name, None) for modality, name in FIELDS.items()}
        if self.foveate is None:
            return super().embed_multimodal(**kwargs)
        embeddings: list[Tensor] = []
        for modality, media_input in self._parse_and_validate_multimodal_inputs(**kwargs).items():
            if modality in self.foveate.modalities:
                embeddings += self._placed(self.foveate, modality, media_input, plans[modality])
            else:
                embeddings += [
                    torch.cat([clip, nowhere(clip)], dim=1) for clip in self._process_video_input(media_input)
                ]
        return tuple(embeddings)

    def _placed(self, serving: EnginePlans, modality: str, media_input: Any, plans: Tensor | None) -> list[Tensor]:
        """Embeddings of the images or clips of a call under their plans, with columns that hold their positions."""
        process = self._process_image_input if modality == "image" else self._process_video_input
        name, side = f"{modality}_grid_thw", self.visual.spatial_merge_size
        call: dict[str, Any] = {name: media_input[name]}
        steps = [0.0] * len(call[name])
        if modality == "video":
            seconds = media_input.get("second_per_grid_ts")  # None: with embeddings that a user gives
            seconds = [1.0] * len(steps) if seconds is None else seconds.flatten().tolist()
            call["second_per_grid_ts"] = seconds
            steps = [second * self.config.vision_config.tokens_per_second for second in seconds]
        if plans is None:  # embeddings that a user gives stay as they are
            encoded = process(media_input)
            items = [(features, torch.arange(len(features), device=features.device)) for features in encoded]
        else:
            items = chosen(
                serving,
                settings_of(serving, plans),
                self._calls(modality, call[name]),
                lambda part: process(self._part(modality, media_input, part)),
                self.visual.blocks,
                lambda block: block.attn.attn,
                self,
                call,
                modality=modality,
                width=self._width,
            )
        grids = [Grid(rows // side, columns // side) for _, rows, columns in call[name].tolist()]
        return [
            torch.cat([features, places(at, grid, features, step)], dim=1)
            for (features, at), grid, step in zip(items, grids, steps, strict=True)
        ]

    def _calls(self, modality: str, grids: Tensor) -> list[slice]:
        """The images or clips (n, 3) of each call of the encoder (`encoder_calls`); every clip has its own.

        vLLM does so with its own EVS. On a CPU, several clips in a call also take longer than one after the other.
        """
        if self.use_data_parallel:  # vLLM divides them among devices
            return [slice(0, len(grids))]
        most = self._moved.shape[1] * self.visual.spatial_merge_size**2
        return encoder_calls(grids.prod(-1).tolist(), most if modality == "image" else 0)

    @staticmethod
    def _part(modality: str, media_input: Any, call: slice) -> Any:
        """The images or clips of one call; pixels of all of them are one after the other."""
        pixels, grids = media_input["type"], media_input[f"{modality}_grid_thw"]
        patches = grids.prod(-1)
        values = media_input[pixels][patches[: call.start].sum() : patches[: call.stop].sum()]
        others = {} if modality == "image" else {"second_per_grid_ts": None}
        return type(media_input)(type=pixels, **{pixels: values, f"{modality}_grid_thw": grids[call]}, **others)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Return prompt positions (3, N), without offsets within images and clips, and the offset for decoding.

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
            if feature.modality in self.foveate.modalities:
                frames, rows, columns = feature.data[f"{feature.modality}_grid_thw"].data.tolist()
                count = frames * (rows // side) * (columns // side)
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
        """Return the embeddings (N, D) of a step and store the positions of its images and clips for `forward`."""
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
        """Run vLLM's forward pass with times, rows and columns of images and clips added to the positions (3, N)."""
        if self.foveate is not None and inputs_embeds is not None:
            positions = positions + self._moved[:, : positions.shape[1]]
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)

    def get_encoder_cudagraph_config(self) -> Any:
        """Return None for every modality: CUDA graphs of the encoder do not support plans."""
        config = super().get_encoder_cudagraph_config()
        return config if self.foveate is None else replace(config, modalities=[])

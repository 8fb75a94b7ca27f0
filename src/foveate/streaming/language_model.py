"""Passes of the language model of a stream, at positions that the stream counts."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from foveate import compat
from foveate.runtime.patches import Patches
from foveate.streaming.cache import StreamCache


class LanguageModel:
    """The language model inside a multimodal model, called with embeddings.

    Args:
        core: The model without its output layer.
        text: Its language model.
        axes: Axes of positions: 1, or 3 for M-RoPE.
    """

    def __init__(self, core: Any, text: Any, axes: int) -> None:
        self.core, self.text, self.axes = core, text, axes

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (L, D) of token ids (L,)."""
        embeddings = self.core.get_input_embeddings()
        return embeddings(ids.to(embeddings.weight.device))

    def read(
        self,
        cache: StreamCache,
        embeds: Tensor,
        positions: Tensor,
        past: int,
        visual: Tensor | None = None,
        planes: Sequence[Tensor] = (),
    ) -> None:
        """Read new entries behind those of a cache, which grows by them.

        Args:
            cache: The cache.
            embeds: (L, D).
            positions: (axes, L).
            past: Entries in the cache.
            visual: (L,) bool, which embeddings are visual tokens.
            planes: DeepStack features of the visual tokens.
        """
        device = embeds.device
        arguments: dict[str, Any] = {
            "inputs_embeds": embeds[None],
            "position_ids": self._position_ids(positions.to(device)),
            "attention_mask": torch.ones(1, past + len(embeds), dtype=torch.int64, device=device),
            "use_cache": True,
            **compat.cache_argument(cache.layers_cache),
        }
        if planes and visual is not None:
            arguments |= {"visual_pos_masks": visual.to(device)[None], "deepstack_visual_embeds": list(planes)}
        compat.check_cache_returned(self.text(**arguments), cache.layers_cache)

    @contextmanager
    def text_at(self, cache: StreamCache, position: int) -> Generator[None]:
        """Give text behind the entries of a cache positions from `position` on, while the context is open.

        `generate` and the model derive positions from the length of the cache and from earlier calls; evicted steps
        make both wrong.
        """
        past = cache.length

        def forward(original: Any, *args: Any, **kwargs: Any) -> Any:
            if compat.cache_in(kwargs) is cache.layers_cache:  # not a call of another thread
                first = position + int(cache.layers_cache.get_seq_length()) - past
                embeds = kwargs["inputs_embeds"]
                positions = torch.arange(first, first + embeds.shape[1], device=embeds.device)
                kwargs["position_ids"] = self._position_ids(positions.expand(self.axes, -1))
            return original(*args, **kwargs)

        deltas = getattr(self.core, "rope_deltas", None)
        with Patches() as patches:
            patches.wrap(self.text, "forward", forward)
            try:
                yield
            finally:
                if hasattr(self.core, "rope_deltas"):
                    self.core.rope_deltas = deltas

    def _position_ids(self, positions: Tensor) -> Tensor:
        """Position ids from (axes, L): (1, L), or (axes, 1, L) for M-RoPE."""
        return positions[:, None] if self.axes > 1 else positions

"""Assisted decoding of `transformers` under a plan.

`generate` with `prompt_lookup_num_tokens` or `assistant_model` verifies several drafted tokens in one pass,
and crops the rejected ones. Two things would change the text. The first draft would follow the prompt in the
pass that reads the images, so that methods would select tokens for a question that ends in a guess: nothing is drafted
there. And quantised caches store generated tokens in chunks: no draft reaches past the end of one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveate.kv_cache import MixedLayer
from foveate.kv_cache.pruned_cache import state_of


class DraftsAfterPrompt:
    """Candidate generator that drafts from the second pass on; other attributes are those of `drafts`.

    Args:
        drafts: A candidate generator of `transformers`.
        cache: The cache of the model that verifies the drafts.
    """

    def __init__(self, drafts: Any, cache: Any) -> None:
        self._drafts, self._cache = drafts, cache
        self._read = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafts, name)

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The ids with drafted ones after them, (1, L + n), and their logits (1, n, V) where they are sampled."""
        ids, logits = self._drafts.get_candidates(input_ids, **kwargs)
        if not self._read:
            return input_ids, None
        max_drafts, length = _max_drafts(self._cache), input_ids.shape[1]
        if max_drafts is not None and ids.shape[1] - length > max_drafts:
            ids, logits = ids[:, : length + max_drafts], None if logits is None else logits[:, :max_drafts]
        if (state := state_of(self._cache)) is not None:
            state.has_drafts = True
        return ids, logits if ids.shape[1] > length else None

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Update the drafting strategy with the number of accepted tokens."""
        if (state := state_of(self._cache)) is not None:
            state.has_drafts = False
        if self._read:
            self._drafts.update_candidate_strategy(input_ids, scores, num_matches)
        elif (probabilities := getattr(self._drafts, "probs", None)) is not None:
            probabilities.clear()  # of drafts that were not verified
        self._read = True


def _max_drafts(cache: Any) -> int | None:
    """Largest draft that no quantised layer stores a token of; None: unlimited."""
    limits = []
    for layer in cache.layers:
        if isinstance(layer, MixedLayer) and layer.chunks and layer.recent is not None:
            num_recent = layer.recent[0].shape[2]
            limits.append(max(layer.residual - (num_recent if num_recent < layer.residual else 0) - 1, 0))
    return min(limits, default=None)

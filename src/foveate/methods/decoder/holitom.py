"""HoliTom, second stage: unattended tokens are merged into the attended ones that they are like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.tokens import Selection, merge_tokens, other_indices, topk_indices, wide


@dataclass(frozen=True)
class HoliTomDecoder(DecoderMethod):
    r"""Keeps the tokens that the prompt's last token attends to most, and merges every other one into the most similar.

    The score of a token is its attention from the last token of the prompt in the previous layer, mean over heads. Each
    of the others is merged into the kept token of the greatest cosine to it, in the order of the sequence: every time,
    the kept token becomes the mean of itself and the one that is merged, $x \leftarrow (x + y) / 2$, so that of several
    the last has the greatest weight. Positions stay the original ones.

    HoliTom (arXiv 2505.21334), merging inside the language model; the paper keeps half of the tokens at layer 18 of 28,
    and the whole of it is `holitom:25% + holitom-decoder:50%`.
    """

    name: ClassVar[str] = "holitom-decoder"
    mechanism: ClassVar = ("attention", "similarity")
    modality: ClassVar = ("video",)
    title: ClassVar[str] = "HoliTom: Holistic Token Merging for Fast Video Large Language Models"
    paper: ClassVar[str] = "arXiv 2505.21334"
    needs_previous_attention: ClassVar[bool] = True

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Layer 18 of 28."""
        return (max(1, min(num_layers - 1, round(num_layers * 18 / 28))),)

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        attention = tokens.attention("previous").attention_received(tokens.prompt.asking, tokens.indices)
        kept = topk_indices(attention, count)
        rest = other_indices(kept, len(tokens))
        unit = F.normalize(wide(tokens.features), dim=-1)
        target = (unit[rest] @ unit[kept].T).argmax(dim=1)
        assignment = torch.empty(len(tokens), dtype=torch.int64, device=tokens.device)
        assignment[kept] = torch.arange(count, device=tokens.device)
        assignment[rest] = target
        halvings = target.bincount(minlength=count).to(unit.dtype)
        weights = torch.empty(len(tokens), dtype=unit.dtype, device=tokens.device)
        weights[kept] = 2.0**-halvings
        weights[rest] = 2.0 ** (_earlier_equal(target) - halvings[target])
        return merge_tokens(tokens.features, kept, assignment, weights)


def _earlier_equal(values: Tensor) -> Tensor:
    """(n,) how many earlier entries are equal to each of (n,)."""
    order = values.argsort(stable=True)
    grouped = values[order]
    earlier = torch.empty_like(values)
    earlier[order] = torch.arange(len(values), device=values.device) - torch.searchsorted(grouped, grouped)
    return earlier

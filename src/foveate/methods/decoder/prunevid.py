"""PruneVid, second stage: the tokens of every frame that a word of the question attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.pre_llm import divide
from foveate.core.tokens import Selection, topk_indices
from foveate.methods.shared.layer_parts import layer_parts


@dataclass(frozen=True)
class PruneVidDecoder(DecoderMethod):
    r"""Keeps the tokens of every frame to which a head attends most, from any token of the question.

    The score of token j is $\max_h \max_{i \in \text{question}} A_h[i, j]$ with the attention of the previous layer;
    frames share the budget in proportion to their tokens, and the highest scores of each go on with their original
    positions. PruneVid (arXiv 2412.16117), second stage; the paper keeps 40 % after layer 10 of 32, and the whole of it
    is `prunevid + prunevid-decoder:40%`.

    The question is the text after the clip, as in the authors' code. That selects among the static tokens of a segment
    and those of every frame apart from each other, rounds down for each, and also removes the others from the KV cache
    of the layers before; here static tokens count for the frame in which they are, the budget is met exactly, and
    earlier layers keep their cache.
    """

    name: ClassVar[str] = "prunevid-decoder"
    mechanism: ClassVar = ("query", "attention")
    modality: ClassVar = ("video",)
    title: ClassVar[str] = "PruneVid: Visual Token Pruning for Efficient Video Large Language Models"
    paper: ClassVar[str] = "arXiv 2412.16117"
    needs_previous_attention: ClassVar[bool] = True

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The layer after the 10th of 32, counted from 0."""
        return (max(1, min(num_layers - 1, round(num_layers * 11 / 32))),)

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        scores = self._scores(tokens)
        parts = layer_parts(tokens)
        shares = divide(count, [len(part) for part in parts])
        kept = [part[topk_indices(scores[part], share)] for part, share in zip(parts, shares, strict=True)]
        return Selection(torch.cat(kept).sort().values)

    def _scores(self, tokens: LayerTokens) -> Tensor:
        """(N,) the greatest attention of any head and token of the question."""
        attention = tokens.attention("previous")
        scores = torch.zeros(len(tokens), dtype=torch.float32, device=tokens.device)
        for _, weights in attention.blocks(tokens.question):
            scores = torch.maximum(scores, weights[:, :, tokens.indices + attention.past].amax(dim=(0, 1)))
        return scores

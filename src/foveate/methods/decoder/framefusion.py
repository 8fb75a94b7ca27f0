"""FrameFusion inside the language model: similar tokens are merged in the first layers, unimportant ones dropped."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import ClassVar, Literal

import torch

from foveate.core.counting import exactly
from foveate.core.errors import FoveateError
from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.method import BudgetRule
from foveate.core.tokens import Selection, topk_indices
from foveate.methods.shared.same_place import chains, check_merging, merge_chains


@dataclass(frozen=True)
class FrameFusionDecoder(DecoderMethod):
    r"""Merges similar tokens of neighbouring frames layer by layer while there are many, then drops unimportant ones.

    Before a layer, tokens whose cosine to the one before them at their place is `threshold` or more are merged into it,
    a chain of such to its mean. Once a layer merges less than the share `least` of its tokens, merging is over, and the
    next layer keeps those to which the last token of the prompt attends most, in the mean over heads. Their number
    makes the mean over all layers of the tokens that are read the share `cost` of the clip's: before layer l of L it is
    (cost L N - tokens read so far) / (L - l). Merging leaves no fewer either; where the threshold would, the most
    similar tokens alone are merged, and nothing is left to drop (FrameFusion, arXiv 2501.01986; the whole of it is
    `framefusion + framefusion-decoder`).

    The authors' code merges and drops between the attention of a layer and its MLP, and counts 28 layers in every
    model; here it is before the next layer, with the layers that there are. Their merging before layer 0 is
    `framefusion`; where that merges nothing, merging is tried once more here. Where the layers so far have read all
    that `cost` allows, one token stays; the code ends in an error.

    Args:
        cost: Tokens that a layer reads, mean over layers, as a share of those that the encoder made.
        threshold: Cosine from which a token is merged.
        least: Share of merged tokens below which merging is over.
    """

    cost: float = 0.3
    threshold: float = 0.6
    least: float = 0.1

    name: ClassVar[str] = "framefusion-decoder"
    mechanism: ClassVar = ("similarity", "attention")
    modality: ClassVar = ("video",)
    title: ClassVar[str] = (
        "FrameFusion: Combining Similarity and Importance for Video Token Reduction on Large Vision Language Models"
    )
    paper: ClassVar[str] = "arXiv 2501.01986"
    static_count: ClassVar[bool] = False
    budget: ClassVar[BudgetRule] = "none"
    needs_previous_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_merging(self.name, self.cost, self.threshold)
        if not 0 <= self.least <= 1:
            raise FoveateError(f"{self.name}: least is a share, 0 to 1, not {self.least}.")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """All but the first: the clip decides when it is over."""
        return tuple(range(1, num_layers))

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        size, stage = len(tokens), self._stage(tokens)
        allowed = self._allowed(tokens, tokens.layer)
        if stage == "over" or (stage == "drop" and allowed >= size):
            return Selection(torch.arange(size, device=tokens.device))
        if stage == "merge":
            return merge_chains(tokens.features, chains(tokens.features, tokens.crops, self.threshold, allowed))
        attention = tokens.attention("previous").attention_received(tokens.prompt.asking, tokens.indices)
        return Selection(topk_indices(attention, max(1, round(allowed))))

    def _allowed(self, tokens: LayerTokens, layer: int) -> Fraction:
        """Tokens that this layer and all later ones may read, one at least."""
        total = exactly(self.cost) * tokens.num_layers * tokens.earlier.made - sum(tokens.earlier.read[:layer])
        return max(Fraction(1), total / (tokens.num_layers - layer))

    def _stage(self, tokens: LayerTokens) -> Literal["merge", "drop", "over"]:
        """What is to be done, from the numbers of tokens before."""
        earlier, stage = tokens.earlier, "merge"
        sizes = (earlier.made, *earlier.read)
        for layer in (0, *earlier.acted):
            before, after = sizes[layer : layer + 2]
            if layer == 0 and before == after:
                continue
            if stage == "drop" or before - after >= floor(before - self._allowed(tokens, layer)):
                return "over"
            if before - after < exactly(self.least) * before:
                stage = "drop"
        return stage

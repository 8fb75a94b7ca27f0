"""SparseVLM: tokens rated by words of the question; part of the rest is recycled into clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.tokens import Selection, in_order, merge_tokens, topk_indices
from foveate.methods.shared.clustering import density_peaks


@dataclass(frozen=True)
class SparseVLM(DecoderMethod):
    r"""Keeps the tokens that words of the question attend to, and merges the best others into a few.

    Raters are chosen once, from what enters the first layer: with visual tokens $V$ and words $T$ of the question, $m =
    \text{mean}_V\,\text{softmax}_T(VT^\top)$, and words above the mean of $m$ rate. The score of a visual token is the
    attention of the raters to it in the previous layer, mean over heads and raters. The tokens of the highest scores
    stay. The best `recycled` share of the others, $n'$ tokens, is gathered into $\lfloor n'/\theta \rfloor + 1$
    clusters by DPC-kNN, and the mean of each cluster stays too. Positions are counted anew.

    Without a budget the rank of the raters' attention $P$ gives the number of dropped tokens, $\lambda\,(N -
    \text{rank}\,P)$, and the clusters come on top. A budget is the exact number of tokens, clusters included:
    `sparsevlm:309@3 + sparsevlm:204@7 + sparsevlm:113@16` leaves 300, 200 and 110 of 576 tokens of LLaVA-1.5 and 9, 4
    and 3 clusters, the authors' setting for 192 tokens on average (128: 312, 117, 39; 64: 82, 32, 18).

    "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference" (Zhang et al., ICML 2025,
    arXiv 2410.04417), version 1 of the code. The authors' code has a table of counts in place of the rule, adds noise
    to densities, and puts clusters after all other visual tokens (`reference`); here nothing is random and a cluster
    takes the place of its centre. Our choices: the value of $\lambda$, which the paper leaves open (one half comes near
    to the table for 192 tokens); all words rate where none is above the mean; at most half of a small budget are
    clusters.

    Args:
        rank_scale: $\lambda$, above 0, up to 1.
        recycled: Share of the dropped tokens that is recycled, 0 to 1; 0 merges nothing.
        cluster_size: $\theta$, mean tokens of a cluster.
        reference: Clusters after all other visual tokens, the best centre first, as in the authors' code. (Models with
            positions of several axes keep the original ones.)
    """

    rank_scale: float = 0.5
    recycled: float = 0.3
    cluster_size: int = 10
    reference: bool = False

    name: ClassVar[str] = "sparsevlm"
    mechanism: ClassVar = ("query", "attention", "similarity")
    title: ClassVar[str] = "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference"
    paper: ClassVar[str] = "arXiv 2410.04417"
    budget: ClassVar = "optional"
    without_budget: ClassVar = ("rank_scale",)
    static_count: ClassVar[bool] = False
    positions: ClassVar = "contiguous"
    needs_previous_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.rank_scale <= 1:
            raise FoveateError(f"sparsevlm: rank_scale is above 0 and up to 1, not {self.rank_scale}.")
        if not 0 <= self.recycled <= 1:
            raise FoveateError(f"sparsevlm: recycled is a share from 0 to 1, not {self.recycled}.")
        if self.cluster_size < 1:
            raise FoveateError(f"sparsevlm: cluster_size is a number of tokens from 1 on, not {self.cluster_size}.")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """After the layers 2, 6 and 15 of 32: before 3, 7 and 16."""
        scaled = {min(max(1, round(num_layers * layer / 32)), num_layers - 1) for layer in (3, 7, 16)}
        return tuple(sorted(scaled))

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        attention, raters = tokens.attention("previous"), self.raters(tokens)
        size = len(tokens)
        if count:
            scores = attention.attention_received(raters, tokens.indices)
            stay, clusters = self.divided(size, count)
        else:
            received = attention.attention_from(raters, tokens.indices)
            scores = received.mean(dim=0)
            stay = max(1, size - share_of(self.rank_scale, size - int(torch.linalg.matrix_rank(received)), "down"))
            clusters = self.clusters(size - stay)
        best = topk_indices(scores, stay)
        if not clusters:
            return Selection(best)
        rest = scores.index_fill(0, best, -torch.inf)
        rest = topk_indices(rest, max(self.recyclable(size - stay), clusters))
        centres, labels = density_peaks(tokens.features[rest], clusters)
        indices = torch.cat([best, rest[centres]]).sort().values
        assignment = torch.full((size,), -1, dtype=torch.int64, device=tokens.device)
        assignment[best] = torch.searchsorted(indices, best)
        assignment[rest] = torch.searchsorted(indices, rest[centres])[labels]
        merged = merge_tokens(tokens.features, indices, assignment)
        if not self.reference:
            return merged
        rows = torch.searchsorted(indices, torch.cat([best, rest[centres]]))
        return in_order(merged, tokens.features, rows)

    def raters(self, tokens: LayerTokens) -> Tensor:
        """Indices (r,) in the sequence of the words that rate."""
        question, prompt = tokens.question, tokens.prompt
        visual = prompt.entered[prompt.image].float()
        words = prompt.entered[prompt.columns[question]].float()
        fit = (visual @ words.T).softmax(dim=1).mean(dim=0)
        chosen = question[fit > fit.mean()]
        return chosen if len(chosen) else question

    def recyclable(self, dropped: int) -> int:
        """How many of the dropped tokens are recycled."""
        return min(share_of(self.recycled, dropped, "down") + 1, dropped) if self.recycled else 0

    def clusters(self, dropped: int) -> int:
        """How many clusters the recycled tokens make."""
        size = self.recyclable(dropped)
        return min(size // self.cluster_size + 1, size) if size else 0

    def divided(self, size: int, count: int) -> tuple[int, int]:
        """How many of `size` tokens stay as they are and how many clusters join them, `count` together."""
        for stay in range(count, -1, -1):
            clusters = min(self.clusters(size - stay), count // 2)
            if stay + clusters <= count:
                return stay, count - stay
        raise AssertionError("no tokens and count // 2 clusters always fit")

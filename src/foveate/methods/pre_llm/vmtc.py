"""VMTC: important tokens, and the others merged by k-means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens, merge_tokens, other_indices, topk_indices
from foveate.methods.shared.clustering import cosine_kmeans, representatives


@dataclass(frozen=True)
class VMTC(PreLLMMethod):
    """Keeps the patches with the greatest [CLS] attention and merges the others by k-means on cosine similarity.

    The importance of a patch is s = mean_h A[h, CLS, 1:]. Each cluster becomes its importance-weighted mean, sum_i s_i
    x_i / sum_i s_i, in place of its most important member (Visual-Modality Token Compression, arXiv 2411.15453; its
    second part, an attention mask inside the language model, is `cmai`). An encoder without [CLS] ranks by attention
    received.

    There is no public code, and the summary that this follows leaves open how a budget is divided between primary
    tokens and clusters (`primary`), the block (here the one whose output is used), the number of iterations, how
    k-means starts and which features it clusters. Here it starts from evenly spread tokens, deterministically, and
    clusters the tokens that the language model reads. The paper may have trained with it; this needs no training.

    Args:
        primary: Share of the budget that stays unmerged. Not the paper's number, which we do not know.
        iterations: Updates of the cluster centres. Not the paper's number either.
        layer: Encoder block to read, 0-based or from the end; None: the one whose output is used.
    """

    primary: float = 0.5
    iterations: int = 10
    layer: int | None = None

    name: ClassVar[str] = "vmtc"
    mechanism: ClassVar = ("attention", "similarity")
    title: ClassVar[str] = (
        "Enhancing Instruction-Following Capability of Visual-Language Models by Reducing Image Redundancy"
    )
    paper: ClassVar[str] = "arXiv 2411.15453"

    def __post_init__(self) -> None:
        if not 0 <= self.primary <= 1:
            raise FoveateError(f"vmtc: primary is a share of the budget, 0 to 1, not {self.primary}.")
        if self.iterations < 0:
            raise FoveateError(f"vmtc: iterations must be at least 0, not {self.iterations}.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The [CLS] row."""
        layer = tower.layer(self.layer)
        return (Need("cls_attention", layer, substitute=True),)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        importance = tokens.get(*self.needs(tokens.tower)).float()
        primary = share_of(self.primary, count)
        best = topk_indices(importance, primary)
        if primary == count:
            return Selection(best)
        rest = other_indices(best, len(tokens))
        clusters = count - primary
        labels = cosine_kmeans(tokens.features[rest], clusters, self.iterations)
        centres = rest[representatives(labels, importance[rest], clusters)]
        indices = torch.cat([best, centres]).sort().values
        assignment = torch.empty(len(tokens), dtype=torch.int64, device=tokens.device)
        assignment[rest] = torch.searchsorted(indices, centres)[labels]
        assignment[best] = torch.searchsorted(indices, best)
        # A cluster whose members all have no importance is their plain mean.
        return merge_tokens(
            tokens.features, indices, assignment, importance.clamp(min=torch.finfo(torch.float32).eps ** 2)
        )

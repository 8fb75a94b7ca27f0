"""FrameFusion before the language model: tokens like those at their place in the frame before are merged."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch

from foveate.core.counting import exactly
from foveate.core.method import BudgetRule
from foveate.core.tokens import Selection, VisualTokens
from foveate.core.video import VideoMethod
from foveate.methods.shared.clustering import spread
from foveate.methods.shared.same_place import chains, check_merging, merge_chains


@dataclass(frozen=True)
class FrameFusion(VideoMethod):
    """Merges tokens that are like the token at their place in the frame before.

    A token whose cosine to the one before it at its place is `threshold` or more is merged into it; a chain of such
    tokens becomes its mean, in the first frame of them. Where that would leave fewer than the share `cost`, the most
    similar tokens alone are merged (FrameFusion, arXiv 2501.01986, the merging before the first layer). The method goes
    on inside the language model: the whole of it is `framefusion + framefusion-decoder`, with the same `cost` in both.

    With a budget the most similar tokens are merged, as many as meet it; where one frame has more tokens than the
    budget, those of it at even places stay. Separators of the layout, which the authors' code compares as
    well, are not compared.

    Args:
        cost: Without a budget: tokens that a layer of the language model reads, mean over layers, as a share of the
            clip's.
        threshold: Without a budget: cosine from which a token is merged.
    """

    cost: float = 0.3
    threshold: float = 0.6

    name: ClassVar[str] = "framefusion"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = (
        "FrameFusion: Combining Similarity and Importance for Video Token Reduction on Large Vision Language Models"
    )
    paper: ClassVar[str] = "arXiv 2501.01986"
    static_count: ClassVar[bool] = False
    budget: ClassVar[BudgetRule] = "optional"
    without_budget: ClassVar = ("cost", "threshold")

    def __post_init__(self) -> None:
        check_merging(self.name, self.cost, self.threshold)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `VideoMethod.select`."""
        if not count:
            limit = max(Fraction(1), exactly(self.cost) * len(tokens))
            return merge_chains(tokens.features, chains(tokens.features, tokens.crops, self.threshold, limit))
        place = tokens.frame_indices.flatten()
        others = len(tokens) - len(place)
        target = chains(tokens.features, tokens.crops, -torch.inf, Fraction(count + others))
        first = target[place].unique()
        taken = first[spread(len(first), count, tokens.device)]
        kept = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        kept[taken] = True
        return merge_chains(tokens.features, target.masked_fill(~kept[target], -1))

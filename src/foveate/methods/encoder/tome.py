"""ToMe: token merging inside the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.core.bipartite import Tokens, join, match, pick, place
from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.in_encoder import EncoderMethod, Step, spread
from foveate.core.method import BudgetRule


@dataclass(frozen=True)
class ToMe(EncoderMethod):
    """Merges the r most similar pairs of tokens in every block of the encoder.

    By the keys of the block, averaged over heads, every second token a is matched with the token b between them of
    greatest cosine; the r best pairs become their mean, weighted by the number s of patches of each side. From then on
    the logits of a key carry + log s (Token Merging, arXiv 2210.09461, section 3). At most half of the tokens of a
    block merge. A budget of k tokens divides patches - k over the blocks, so that exactly k stay; without one, `r`
    merge in each.

    Without [CLS], the remaining a's are ordered by falling score, as in the authors' code; the next block alternates
    over that order. Of equal scores the first token wins; the authors leave that to their sort.

    Args:
        r: Pairs of a block, for use without a budget.
        inflect: How r changes over the blocks: 0 constant, -1 falling to 0 (the paper's decreasing schedule), +1
            growing from 0. The mean stays r.
    """

    name: ClassVar[str] = "tome"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = "Token Merging: Your ViT But Faster"
    paper: ClassVar[str] = "arXiv 2210.09461"
    budget: ClassVar[BudgetRule] = "optional"

    r: int | None = None
    inflect: float = 0.0

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        if self.r is not None and self.r < 0:
            raise FoveateError(f"{self.name}: r is {self.r}; it is a number of pairs, 0 or more.")
        if not -1 <= self.inflect <= 1:
            raise FoveateError(f"{self.name}: inflect is {self.inflect}; it lies between -1 and 1.")

    def schedule(self, patches: int, blocks: int, cls: bool, count: int | None) -> tuple[Step | None, ...]:
        """See `EncoderMethod.steps`."""
        amounts = self.amounts(patches, blocks, cls, count)
        return tuple(self.step(amount, cls) if amount else None for amount in amounts)

    def amounts(self, patches: int, blocks: int, cls: bool, count: int | None) -> tuple[int, ...]:
        """Pairs that merge in each block."""
        if count is not None:
            return spread(patches - count, patches, blocks, cls, self.inflect)
        if self.r is None:
            raise FoveateError(
                f"{self.name} needs a budget, such as {self.name}:64, or pairs a block, {self.name}(r=8)."
            )
        first = share_of(1 - self.inflect, self.r, "down")
        last = 2 * (self.r - first)
        amounts = []
        for block in range(blocks):
            amounts.append(min(first + last * block // max(blocks - 1, 1), patches // 2))
            patches -= amounts[-1]
        return tuple(amounts)

    def step(self, amount: int, cls: bool) -> Step:
        """Merge `amount` pairs."""

        def merge(tokens: Tokens, keys: Tensor) -> Tokens:
            matching = match(keys, cls=cls)
            stay, merged = pick(matching, amount, ordered=cls)
            count = tokens.x.shape[1]
            return join(tokens, place(stay, merged, matching.partner, count), count - amount)

        return merge

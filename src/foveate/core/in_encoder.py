"""Base class of methods inside the encoder: one merging step for every block."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from foveate.core.bipartite import Tokens
from foveate.core.errors import FoveateError, Refusal
from foveate.core.method import Method, Modality, Site
from foveate.core.tokens import check_finite

#: What happens between attention and MLP of one block: the rows and the block's keys (B, N, d), averaged over the
#: heads, to fewer rows.
Step = Callable[[Tokens, Tensor], Tokens]


@dataclass(frozen=True)
class EncoderMethod(Method):
    """A method that merges tokens inside a vision transformer, between attention and MLP of its blocks.

    It reads keys and rows only; `foveate.runtime.vision_merging` applies it to a model. [CLS] is never merged.
    """

    site: ClassVar[Site] = Site.ENCODER
    shortens_encoder: ClassVar[bool] = True
    modality: ClassVar[tuple[Modality, ...]] = ("image",)

    def steps(self, patches: int, blocks: int, *, cls: bool, count: int | None = None) -> tuple[Step | None, ...]:
        """What each of the first `blocks` blocks of an encoder does; None: nothing.

        Args:
            patches: Tokens of an image at the start, without [CLS].
            blocks: Blocks up to the one whose output is read. What merges after it would change nothing.
            cls: Whether token 0 is [CLS].
            count: Patches that shall stay; None leaves it to the method.

        Raises:
            FoveateError: the method needs a budget and has none, takes none and has one, or cannot meet it.
        """
        self.check_budget(count)
        if count is None:
            return self._checked(self.schedule(patches, blocks, cls, None))
        if count >= patches:
            return (None,) * blocks
        return self._checked(self.schedule(patches, blocks, cls, count))

    def _checked(self, steps: tuple[Step | None, ...]) -> tuple[Step | None, ...]:
        """The steps, of which the last refuses rows that are not finite: a row that is not has reached all by then."""
        last = max((number for number, step in enumerate(steps) if step is not None), default=None)
        step = None if last is None else steps[last]
        if last is None or step is None:
            return steps
        return (*steps[:last], partial(self._merge, step), *steps[last + 1 :])

    def _merge(self, step: Step, tokens: Tokens, keys: Tensor) -> Tokens:
        check_finite(self.name, (("rows of the encoder", tokens.x), ("keys of the encoder", keys)))
        return step(tokens, keys)

    @abstractmethod
    def schedule(self, patches: int, blocks: int, cls: bool, count: int | None) -> tuple[Step | None, ...]:
        """See `steps`; `count` is None or between 1 and `patches` - 1."""

    def amounts(self, patches: int, blocks: int, cls: bool, count: int | None) -> tuple[int, ...]:
        """Rows that each block merges away, where that follows from sizes alone.

        Raises:
            FoveateError: it does not.
        """
        raise FoveateError(
            Refusal("count-not-from-sizes", f"how many tokens {self.name} merges is not known from sizes")
        )


def spread(total: int, patches: int, blocks: int, cls: bool, inflect: float = 0.0) -> tuple[int, ...]:
    """`total` merges divided over the blocks, so that exactly patches - total tokens stay.

    Equal shares, the first blocks taking the remainder (as DyMU's code does), or, with `inflect`, shares that
    grow (+1: from zero) or shrink (-1: to zero) linearly. No block can merge more than half of what it has; where a
    share would, all smaller shares are raised until the total is met.

    Raises:
        FoveateError: halving in every block does not merge so many.
    """
    shares = [1 - inflect + 2 * inflect * (block / (blocks - 1) if blocks > 1 else 0.5) for block in range(blocks)]
    exact = [total * share / sum(shares) for share in shares]
    planned = [int(value + 1e-9) for value in exact]
    for block in range(total - sum(planned)):
        planned[block % blocks] += 1
    for floor in range(total + 1):
        amounts, rows, remaining = [], patches + cls, total
        for plan in planned:
            amount = min(max(plan, floor), (rows - cls) // 2, remaining)
            amounts.append(amount)
            rows, remaining = rows - amount, remaining - amount
        if not remaining:
            return tuple(amounts)
    least = patches
    for _ in range(blocks):
        least -= least // 2
    raise FoveateError(
        Refusal(
            "needs-more-blocks",
            f"{blocks} blocks cannot bring {patches} tokens to {patches - total}: each can at most halve them, "
            f"which leaves {least}",
        )
    )

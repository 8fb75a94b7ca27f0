"""What a method inside the encoder is: a few hyper-parameters, and one step for every block."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from foveate.core.bipartite import Tokens
from foveate.core.errors import FoveateError, Refusal
from foveate.core.registry import Mechanism, Modality
from foveate.core.tokens import check_finite

#: What happens between attention and MLP of one block: the rows and the block's keys (B, N, d), averaged over the
#: heads, to fewer rows.
Step = Callable[[Tokens, Tensor], Tokens]


@dataclass(frozen=True)
class EncoderMethod(ABC):
    """A way of merging tokens inside a vision transformer, between attention and MLP of its blocks.

    A method is a frozen dataclass in a file of its own, as those before the language model are. It knows keys and
    rows, never a model: `foveate.runtime.vision_merging` runs it in one. [CLS] is never merged.
    """

    #: Name in plans; the registry refuses two equal ones.
    name: ClassVar[str]
    #: Title of the paper.
    title: ClassVar[str]
    #: "arXiv 2210.09461".
    paper: ClassVar[str]
    #: How it chooses or makes tokens, in the classes of the field, the main one first; see `foveate.core.registry`.
    mechanism: ClassVar[tuple[Mechanism, ...]]
    #: What it is made for.
    modality: ClassVar[tuple[Modality, ...]]
    #: Where it acts.
    site: ClassVar[str] = "encoder"
    #: Whether it needs weights that were trained for it.
    trained: ClassVar[bool] = False
    #: Whether the number of tokens that stay follows from sizes alone; servers need that.
    static_count: ClassVar[bool] = True
    #: "count": needs a budget; "optional": has its own rule, and a budget overrides it; "none": takes no budget.
    budget: ClassVar[Literal["count", "optional", "none"]] = "count"
    #: Positions that the language model sees: of the original sequence, or counted anew.
    positions: ClassVar[Literal["original", "contiguous"]] = "contiguous"

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
        if count is None:
            return self._checked(self.schedule(patches, blocks, cls, None))
        if self.budget == "none":
            raise FoveateError(f"{self.name} takes no budget: its own rule decides how many tokens stay.")
        if count < 1:
            raise FoveateError(f"{self.name}: a budget of {count} tokens keeps nothing; the least is 1.")
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

    @property
    def arguments(self) -> dict[str, object]:
        """The hyper-parameters that differ from their defaults."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.default is dataclasses.MISSING or getattr(self, f.name) != f.default
        }


def spread(total: int, patches: int, blocks: int, cls: bool, inflect: float = 0.0) -> tuple[int, ...]:
    """`total` merges divided over the blocks, so that exactly patches - total tokens stay.

    Equal shares, the first blocks taking what is left over (as DyMU's code does), or, with `inflect`, shares that
    grow (+1: from zero) or shrink (-1: to zero) linearly. No block can merge more than half of what it has; where a
    share would, all smaller shares are raised until the total is met.

    Raises:
        FoveateError: halving in every block does not merge so many.
    """
    shares = [1 - inflect + 2 * inflect * (block / (blocks - 1) if blocks > 1 else 0.5) for block in range(blocks)]
    exact = [total * share / sum(shares) for share in shares]
    wanted = [int(value + 1e-9) for value in exact]
    for block in range(total - sum(wanted)):
        wanted[block % blocks] += 1
    for floor in range(total + 1):
        amounts, rows, left = [], patches + cls, total
        for want in wanted:
            amount = min(max(want, floor), (rows - cls) // 2, left)
            amounts.append(amount)
            rows, left = rows - amount, left - amount
        if not left:
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

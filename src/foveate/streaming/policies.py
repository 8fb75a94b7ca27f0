"""Policies of a stream's KV cache: which steps, and which tokens of a step, stay in it.

A step is what the model encodes at once: one frame, or the frames of one temporal patch (two in Qwen2-VL and its
successors).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.plan import Plan, Step
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, VisualTokens


@dataclass(frozen=True)
class CachedStep:
    """One step in the cache of a stream, as a policy sees it.

    Args:
        number: Number of the step in the stream, from 0.
        time: Mean time of its frames, in seconds.
        count: Visual tokens that are cached.
        read: Visual tokens that the language model read when the step arrived.
        tokens: The cached tokens; None where the policy does not read features.
    """

    number: int
    time: float
    count: int
    read: int
    tokens: VisualTokens | None = None


@dataclass(frozen=True)
class CachePolicy(ABC):
    """Decides what stays in the cache of a stream. It is asked after every step."""

    @property
    def reads_features(self) -> bool:
        """Whether `keep` reads `CachedStep.tokens`; a stream stores features only for such policies."""
        return False

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """Values that must be measured in the encoder."""
        return ()

    @abstractmethod
    def keep(self, steps: Sequence[CachedStep]) -> Sequence[bool | Tensor]:
        """What stays of each of the cached steps, the newest of which is the last.

        Returns:
            For every step True (it stays), False (it goes, with text that belongs to it), or the indices (k,) int64,
            ascending, of the visual tokens that stay.
        """


@dataclass(frozen=True)
class KeepAll(CachePolicy):
    """All steps stay: the cache grows, and answers equal those about the whole clip."""

    def keep(self, steps: Sequence[CachedStep]) -> Sequence[bool | Tensor]:
        """See `CachePolicy.keep`."""
        return [True] * len(steps)


@dataclass(frozen=True)
class SlidingWindow(CachePolicy):
    """The newest steps stay.

    Args:
        steps: How many.
    """

    steps: int

    def __post_init__(self) -> None:
        """Check the number."""
        check_counts(self, "steps")

    def keep(self, steps: Sequence[CachedStep]) -> Sequence[bool | Tensor]:
        """See `CachePolicy.keep`."""
        return [place >= len(steps) - self.steps for place in range(len(steps))]


@dataclass(frozen=True)
class SinkWindow(CachePolicy):
    """The first steps, on which attention rests, and the newest ones stay.

    As StreamingLLM does with tokens (arXiv 2309.17453, section 3.2). The text before the clip always stays, and is a
    sink already.

    Args:
        sinks: First steps.
        steps: Newest steps.
    """

    sinks: int
    steps: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_counts(self, "sinks", "steps")

    def keep(self, steps: Sequence[CachedStep]) -> Sequence[bool | Tensor]:
        """See `CachePolicy.keep`."""
        first_new = len(steps) - self.steps
        return [step.number < self.sinks or place >= first_new for place, step in enumerate(steps)]


@dataclass(frozen=True)
class UniformThinning(CachePolicy):
    """So many steps stay, spread evenly over the whole stream.

    Over the limit, the step goes whose neighbours are closest to each other in time (the later one of equal ones), so
    that intervals grow together. The first and the newest step always stay.

    Args:
        steps: How many, 2 or more.
    """

    steps: int

    def __post_init__(self) -> None:
        """Check the number."""
        check_counts(self, "steps")
        if self.steps < 2:
            raise FoveateError("UniformThinning: steps is 1, and the first and the newest step stay: the least is 2.")

    def keep(self, steps: Sequence[CachedStep]) -> Sequence[bool | Tensor]:
        """See `CachePolicy.keep`."""
        places = list(range(len(steps)))
        while len(places) > self.steps:
            around = [
                (steps[after].time - steps[before].time, -place)
                for before, place, after in zip(places, places[1:], places[2:], strict=False)
            ]
            places.remove(-min(around)[1])
        staying = set(places)
        return [place in staying for place in range(len(steps))]


@dataclass(frozen=True)
class TokenThinning(CachePolicy):
    """Steps keep all tokens while they are new, and the tokens that a method selects afterwards.

    The method reads the features that the language model read. Methods that merge are refused: cached keys and values
    cannot be merged by features.

    Args:
        plan: The method with its budget per step, such as "divprune:16" or "uniform:25%".
        recent: Newest steps that keep all tokens.
        steps: The policy for whole steps, such as `SlidingWindow(256)`; without one the cache grows by the budget.
    """

    plan: Any
    recent: int = 8
    steps: CachePolicy = field(default_factory=KeepAll)

    def __post_init__(self) -> None:
        """Parse the plan and check it."""
        check_counts(self, "recent")
        if not isinstance(self.steps, CachePolicy):
            raise FoveateError(f"TokenThinning: steps is a policy, such as SlidingWindow(256), not {self.steps!r}.")
        plan = Plan.of(self.plan)
        if len(plan.steps) != 1 or not isinstance(plan.steps[0].method, PreLLMMethod):
            raise FoveateError(f"TokenThinning needs one method that acts before the language model, not '{plan}'.")
        if plan.steps[0].budget is None:
            raise FoveateError(
                f"TokenThinning needs a budget of tokens per step, such as {plan.steps[0].method.name}:16."
            )
        object.__setattr__(self, "plan", plan)

    @property
    def step(self) -> Step[PreLLMMethod]:
        """The method with its budget."""
        return self.plan.steps[0]

    @property
    def reads_features(self) -> bool:
        """See `CachePolicy.reads_features`."""
        return True

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """See `CachePolicy.needs`."""
        return (*self.step.method.needs(tower), *self.steps.needs(tower))

    def keep(self, steps: Sequence[CachedStep]) -> Sequence[bool | Tensor]:
        """See `CachePolicy.keep`."""
        kept = decisions(self.steps, steps)
        for place, step in enumerate(steps[: -self.recent]):
            count = self.step.count(step.read)
            if kept[place] is not True or step.tokens is None or count is None or step.count <= count:
                continue  # it goes, or was thinned before
            selection = self.step.method(step.tokens, count)
            if selection.features is not None or selection.assignment is not None:
                raise FoveateError(
                    f"{self.step.method.name} merges tokens, and entries of a KV cache cannot be merged by features; "
                    "choose a method that selects, or merge before the language model with plan=."
                )
            kept[place] = selection.indices
        return kept


def decisions(policy: CachePolicy, steps: Sequence[CachedStep]) -> list[bool | Tensor]:
    """What a policy decides about the cached steps, see `CachePolicy.keep`; one boolean or tensor for every step.

    Raises:
        FoveateError: there are not as many, or one is something else.
    """
    kept: Any = policy.keep(steps)
    if not isinstance(kept, Iterable):
        raise FoveateError(f"{type(policy).__name__} decides on every cached step, and gave {type(kept).__name__}.")
    parts = list(kept)
    if len(parts) != len(steps):
        raise FoveateError(f"the policy decided on {len(parts)} steps, and {len(steps)} are cached.")
    for place, part in enumerate(parts):
        if isinstance(part, np.bool_) or (isinstance(part, Tensor) and part.ndim == 0 and part.dtype == torch.bool):
            parts[place] = bool(part)
        elif not isinstance(part, bool) and not (isinstance(part, Tensor) and part.ndim):
            raise FoveateError(
                f"{type(policy).__name__} decides True, False or the indices of tokens as a tensor, not {part!r}."
            )
    return parts


_BY_NAME: dict[str, tuple[type[CachePolicy], int]] = {
    "all": (KeepAll, 0),
    "window": (SlidingWindow, 1),
    "sinks": (SinkWindow, 2),
    "even": (UniformThinning, 1),
}


def parse_policy(text: str) -> CachePolicy:
    """The policy of `all`, `window:64`, `sinks:4,60` or `even:64`, where numbers are steps.

    Raises:
        FoveateError: it is none of them.
    """
    name, _, numbers = text.partition(":")
    values = [int(number) for number in numbers.split(",") if number.strip().isdecimal()]
    cls, count = _BY_NAME.get(name.strip(), (None, 0))
    if cls is None or len(values) != count or len(values) != len(numbers.split(",") if numbers else []):
        raise FoveateError(f"{text!r} is no policy; write all, window:64, sinks:4,60 or even:64.")
    return cls(*values)


def check_counts(policy: CachePolicy, *names: str) -> None:
    """Refuse fields that are no whole number from 1 on.

    Raises:
        FoveateError: as said.
    """
    for name in names:
        value = getattr(policy, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise FoveateError(f"{type(policy).__name__}: {name} must be a whole number from 1 on, not {value!r}.")

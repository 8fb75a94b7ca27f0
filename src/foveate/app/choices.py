"""Methods that a model supports, what chooses frames of clips, and plans built from them and a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate.core.errors import FoveateError
from foveate.core.method import Site
from foveate.core.plan import Plan
from foveate.core.registry import methods_at, model_methods
from foveate.runtime import compress

#: Part of the tokens that is kept where nobody has chosen yet, in percent.
PERCENT = 25
#: Frames that are read where nobody has chosen yet, and the most that can be chosen without writing a plan.
FRAMES, MOST_FRAMES = 8, 32


@dataclass(frozen=True)
class Choice:
    """A method that a model supports.

    Attributes:
        name: its name in plans.
        title: title of its paper.
        budget: "count": needs a budget; "optional": has its own rule; "none": takes no budget.
    """

    name: str
    title: str
    budget: str

    def plan(self, percent: float) -> str:
        """Return the plan of this method alone with a budget in percent of the tokens."""
        return self.name if self.budget == "none" else f"{self.name}:{percent:g}%"


def choices(model: Any) -> list[Choice]:
    """List the methods that can be attached to the model, in alphabetical order.

    Found by attaching each, without running the model: methods that need weights of their own, a text encoder or
    another kind of model are not among them. They can still be written into a plan by hand.

    Args:
        model: a live model without a plan.
    """
    supported = []
    for name, method in model_methods().items():
        choice = Choice(name, method.title, method.budget)
        try:
            compress(model, choice.plan(PERCENT)).restore()
        except (FoveateError, TypeError):  # the second: it cannot be made without arguments
            continue
        supported.append(choice)
    return supported


def settings_of(plan: str, offered: Sequence[Choice]) -> tuple[str, float] | None:
    """Method and percentage of a plan that consists of these alone; None: it does not, or the method is not offered."""
    name, _, budget = plan.partition(":")
    number = budget.removesuffix("%")
    if not number.isdecimal():
        return None
    fits = any(choice.name == name and choice.plan(int(number)) == plan for choice in offered)
    return (name, int(number)) if fits else None


def samplers() -> list[str]:
    """Names of the methods that choose frames of a clip and need nothing but their number, in alphabetical order."""
    possible = []
    for name in methods_at(Site.FRAMES):
        try:
            Plan.of(f"{name}:{FRAMES}")
        except (FoveateError, TypeError):  # such as those that need a model to compare frames and the question
            continue
        possible.append(name)
    return possible


def with_frames(plan: str, sampler: str, frames: float) -> str:
    """Return a plan that chooses frames first; `sampler` is empty where the model's own frames are read."""
    return " + ".join(filter(None, (sampler and f"{sampler}:{frames:g}", plan)))

"""Which methods a model can follow, and the text of a plan from a method and a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveate.core.errors import FoveateError
from foveate.core.registry import all_methods
from foveate.runtime import compress

#: Part of the tokens that is kept where nobody has chosen yet, in percent.
PERCENT = 25


@dataclass(frozen=True)
class Choice:
    """A method that a model can follow.

    Attributes:
        name: its name in plans.
        title: title of its paper.
        budget: "count": needs a budget; "optional": has a rule of its own; "none": takes no budget.
    """

    name: str
    title: str
    budget: str

    def plan(self, percent: float) -> str:
        """The plan that follows this method alone and keeps so many percent of the tokens."""
        return self.name if self.budget == "none" else f"{self.name}:{percent:g}%"


def choices(model: Any) -> list[Choice]:
    """The methods that can be attached to a model as they are, in alphabetical order.

    Found by attaching each, without running the model: methods that need weights of their own, a text encoder or
    another kind of model are not among them. They can still be written into a plan by hand.

    Args:
        model: a live model without a plan.
    """
    found = []
    for name, method in all_methods().items():
        choice = Choice(name, method.title, method.budget)
        try:
            compress(model, choice.plan(PERCENT)).restore()
        except (FoveateError, TypeError):  # the second: it cannot be made without arguments
            continue
        found.append(choice)
    return found

"""Methods that a model supports, and plans built from a method and a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveate.core.errors import FoveateError
from foveate.core.registry import model_methods
from foveate.runtime import compress

#: Part of the tokens that is kept where nobody has chosen yet, in percent.
PERCENT = 25


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

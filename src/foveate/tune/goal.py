"""Goal of a search: a time to first token, an accuracy, or both."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.core.errors import FoveateError

#: Values of plans that miss the goal lie below this, those of plans that meet it above.
MISSED = -10.0
#: Weight of cost relative to score: enough to prefer the cheaper of two equally good plans.
_TIE = 1e-3


@dataclass(frozen=True)
class Goal:
    """Maximum cost and minimum accuracy, both relative to the full model.

    With a limit of cost alone the best score is searched; with a limit of the score, the least cost.

    Args:
        cost: Such as 0.5 for half the time to the first token; None: any below 1.
        accuracy: Such as 0.97; None: any.

    Raises:
        FoveateError: neither is given, or one is not possible.
    """

    cost: float | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.cost is None and self.accuracy is None:
            raise FoveateError(
                "a search needs a goal: --target-ttft such as 0.5x, --min-accuracy such as 97%, or both."
            )
        if self.cost is not None and not 0 < self.cost < 1:
            raise FoveateError(f"a target of {self.cost:g}x is not between 0x and 1x of the full model's time.")
        if self.accuracy is not None and not 0 < self.accuracy <= 1.5:
            raise FoveateError(
                f"a minimum accuracy of {self.accuracy:.4g} times the full model's is not a goal; write 97%."
            )

    def affords(self, cost: float) -> bool:
        """Whether the cost is within the goal."""
        return cost < 1 if self.cost is None else cost <= self.cost

    def met(self, cost: float, score: float) -> bool:
        """Whether a plan of this cost and score meets the goal."""
        return self.affords(cost) and (self.accuracy is None or score >= self.accuracy)

    def value(self, cost: float, score: float | None) -> float:
        """Return the objective of the search; only its order is meaningful.

        Args:
            cost: Relative to the full model.
            score: Relative accuracy or the like; None: not known, for the cost alone misses the goal.
        """
        excess = max(0.0, cost - (1.0 if self.cost is None else self.cost))
        if score is None:
            return 2 * MISSED - excess
        if self.accuracy is None:
            return score - _TIE * cost
        if self.met(cost, score):
            return _TIE * score - cost
        return MISSED - excess - max(0.0, self.accuracy - score)

    def __str__(self) -> str:
        parts = []
        if self.cost is not None:
            parts.append(f"at most {self.cost:g} of the full model's cost")
        if self.accuracy is not None:
            parts.append(f"at least {100 * self.accuracy:g} % of its accuracy")
        return " and ".join(parts) + (
            ": the cheapest plan" if self.accuracy is not None else ": the most accurate plan"
        )


def factor(text: str) -> float:
    """Parse the number in `0.5x`, `0.5` or `50%`.

    Raises:
        FoveateError: it is none of these.
    """
    return _number(text, text.strip().lower().removesuffix("x"), "--target-ttft", "0.5x")


def share(text: str) -> float:
    """Parse the number in `97%` or `0.97`.

    Raises:
        FoveateError: it is neither.
    """
    return _number(text, text.strip(), "--min-accuracy", "97%")


def _number(text: str, original: str, option: str, example: str) -> float:
    try:
        value = float(original.removesuffix("%"))
    except ValueError:
        raise FoveateError(f"{option} {text!r} is not a number; write it as {example}.") from None
    return value / 100 if original.endswith("%") else value

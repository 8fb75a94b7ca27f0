"""Plans to compare: methods at budgets, with their controls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL, is_full_model
from foveate.core.plan import Budget, Plan
from foveate.core.registry import model_methods

#: Controls at every budget.
CONTROLS = ("random", "downsample")


def product(methods: Sequence[str], budgets: Sequence[str]) -> list[str]:
    """Combine methods and budgets into plans; no methods means all that need no weights or data of their own.

    Raises:
        FoveateError: a method or a budget does not exist.
    """
    known = model_methods()
    unknown = [name for name in methods if name not in known]
    if unknown:
        raise FoveateError(f"methods {', '.join(unknown)} are not known; possible are {', '.join(known)}.")
    usual = [name for name, cls in known.items() if not cls.trained and cls.budget != "none"]
    return [f"{name}:{Budget.parse(budget)}" for budget in budgets for name in methods or usual]


def with_controls(plans: Iterable[str]) -> tuple[str, ...]:
    """List the full model, then controls and plans of every budget, then plans without a budget.

    Controls are random tokens and the smaller image at the budget, and random tokens before the layers at which plans
    inside the language model act.

    Raises:
        FoveateError: a text is no plan.
    """
    by_budget: dict[str | None, list[str]] = {}
    for text in plans:
        if not is_full_model(text):
            plan = Plan.of(text)
            by_budget.setdefault(budget_of(plan), []).append(str(plan))
    ordered = [FULL_MODEL]
    for budget, at_budget in by_budget.items():
        if budget is not None:
            ordered += [f"{control}:{budget}" for control in CONTROLS]
            ordered += filter(None, map(control_of, at_budget))
            ordered += at_budget
    return tuple(dict.fromkeys([*ordered, *by_budget.get(None, [])]))


def control_of(plan: Plan | str, num_layers: int | None = None) -> str | None:
    """Return the control of a plan: as many random tokens, before the same layers.

    Args:
        plan: The plan.
        num_layers: Layers of the language model, for steps that leave theirs to the method; None: the control takes
            its own for these.

    Returns:
        The control as text; None where a rule of the plan's own decides how many tokens stay.
    """
    plan = Plan.of(plan)
    budget = budget_of(plan)
    if budget is None or any(step.budget is None for step in plan.decoder_steps):
        return None
    steps = [f"random:{budget}"] if plan.early_steps else []
    for step in plan.decoder_steps:
        layers = step.layers
        if not layers and num_layers is not None:
            layers = step.method.layers(num_layers)
        steps.append(f"random-decoder:{step.budget}" + ("@" + ",".join(map(str, layers)) if layers else ""))
    return " + ".join(steps)


def budget_of(plan: Plan | str) -> str | None:
    """Return the budget at which a plan is compared: the combined budget of its steps before the language model.

    Of a plan that acts inside the language model only it is that of the first step. None: its own rule decides, or a
    number of frames.
    """
    if plan == FULL_MODEL:
        return None
    plan = Plan.of(plan)
    if not plan.early_steps and plan.frame_step is None:
        budget = plan.steps[0].budget
        return None if budget is None else str(budget)
    kept: Budget | None = Budget(fraction=1.0)
    if plan.frame_step is not None:
        # A fraction of the frames is one of the tokens; a number of frames has as many tokens as their size gives.
        chosen = plan.frame_step.budget
        kept = chosen if chosen is not None and chosen.fraction is not None else None
    for step in plan.early_steps:
        if step.budget is None or step.budget.tokens is not None or kept is None:
            # A number of tokens holds whatever came before it; a fraction of an unknown number is unknown.
            kept = step.budget if step.budget is None or step.budget.tokens is not None else None
        elif kept.tokens is not None:
            kept = Budget(tokens=step.budget.of(kept.tokens))
        else:
            kept = Budget(fraction=float(kept.fraction or 0) * float(step.budget.fraction or 0))
    return None if kept is None else str(kept)

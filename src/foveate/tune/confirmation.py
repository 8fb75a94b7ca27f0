"""Evaluation of a finalist on questions that the search did not use, with controls of equal token count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foveate.benchmark.budgets import budget_of, control_of
from foveate.benchmark.tasks import Item
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.tune.costs import Costs
from foveate.tune.scoring import Answers
from foveate.tune.settings import TuneSettings


def confirm(
    plan: str, items: Sequence[Item], answers: Answers, costs: Costs, settings: TuneSettings, depth: int
) -> dict[str, Any]:
    """Measure the score and cost of a plan on new items.

    Args:
        plan: A finalist.
        items: None of which the search saw.
        answers: To ask with.
        costs: To measure with; times are taken in twice as many turns as in the search.
        settings: Goal and cost.
        depth: Layers of the language model.

    Returns:
        "plan", its numbers, "met", "sure" (the interval lies above the minimum accuracy; None without one),
        and "controls": for each its numbers and by how much the plan is better, with a 95 % interval.
    """
    numbers = _numbers(plan, items, answers, costs, settings)
    goal, controls = settings.goal, []
    for control in controls_of(plan, numbers, depth):
        try:
            control_numbers = _numbers(control, items, answers, costs, settings)
            compared = answers.compared(plan, control, items)
        except FoveateError as error:
            controls.append({"plan": control, **error.as_json()})
            continue
        control_numbers["better_by"] = round(compared.difference, 4)
        control_numbers["better_low"], control_numbers["better_high"] = (
            round(compared.difference_low, 4),
            round(compared.difference_high, 4),
        )
        control_numbers["noise"] = compared.difference_low <= 0 <= compared.difference_high
        controls.append(control_numbers)
    low = numbers["low"]
    return numbers | {
        "met": goal.met(numbers["cost"], numbers["score"]),
        "sure": None if goal.accuracy is None else low is not None and low >= goal.accuracy,
        "controls": controls,
    }


def controls_of(plan: str, numbers: dict[str, Any], depth: int) -> list[str]:
    """Return the controls of a plan: random tokens, and the smaller image.

    The image is reduced to the plan's budget. For plans inside the language model, and where a rule of the plan's
    own decides, it is that of the share of tokens that the plan kept, the mean over the layers.

    Args:
        plan: A plan.
        numbers: Its "tokens_in" and "tokens_kept".
        depth: Layers of the language model.
    """
    parsed = Plan.of(plan)
    budget = None if parsed.decoder_steps else budget_of(parsed)
    if budget is None:
        share = numbers["tokens_kept"] / max(numbers["tokens_in"], 1)
        budget = f"{min(100, max(0.1, round(100 * share, 1))):g}%"
    return [control_of(parsed, depth) or f"random:{budget}", f"downsample:{budget}"]


def _numbers(
    plan: str, items: Sequence[Item], answers: Answers, costs: Costs, settings: TuneSettings
) -> dict[str, Any]:
    score = answers.score(plan, items)
    ttft = costs.time(plan, 2 * settings.repeats)
    flops = round(costs.flops(plan), 4)
    return {
        "plan": plan,
        "ttft": ttft,
        "flops": flops,
        "cost": ttft["median"] if settings.cost == "time" else flops,
        "score": round(score.value, 4),
        "low": None if score.low is None else round(score.low, 4),
        "high": None if score.high is None else round(score.high, 4),
        **score.numbers,
    }

"""Scores of answers: accuracy, and accuracy relative to the full model on the same questions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

from foveate.benchmark.budgets import FULL_MODEL, budget_of
from foveate.benchmark.matching import normal
from foveate.benchmark.tasks import CHAT, GROUPS, SWAPPED
from foveate.core.plan import Plan
from foveate.statistics import paired_bootstrap, wilson_interval

_normal = lru_cache(maxsize=2**16)(normal)

Row = dict[str, Any]
#: Answers of one model with one plan to one task, by item and turn.
Answers = dict[tuple[int, int], Row]


def scores(
    rows: Iterable[Row], models: Sequence[str], plans: Callable[[str], Sequence[str]], tasks: Sequence[str]
) -> list[Row]:
    """Score answers; a question counts if the full model has answered it too.

    Args:
        rows: Answers.
        models: Models to be scored.
        plans: Plans to be scored of a model, as text.
        tasks: Tasks to be scored.

    Returns:
        For every model and plan a row for each task, for the first and the later questions of chats
        ("group:chat, first question", "group:chat, later questions"), for second questions where the first was right,
        in both orders ("group:chat, second after first"), for each group of tasks ("group:reading"), and for all tasks
        ("all"), of which chats in the other order are none. Figures of several tasks are means over the tasks, each
        with the same weight; only the difficult questions are thrown together.
    """
    answers: dict[tuple[str, str, str], Answers] = defaultdict(dict)
    for row in rows:
        answers[row["model"], row["plan"], row["task"]][row["index"], row["turn"]] = row
    scored = []
    for model in models:
        for plan in plans(model):
            budget = budget_of(plan)
            smaller = None if budget is None or plan == FULL_MODEL else f"downsample:{budget}"
            by_task = {}
            for task in tasks:
                triples = _triples(*(answers.get((model, p or "", task), {}) for p in (plan, FULL_MODEL, smaller)))
                if triples:
                    by_task[task] = triples
            head = {"model": model, "plan": plan, "method": method_of(plan), "budget": budget}
            scored += [head | row for row in _rows(by_task)]
    return scored


def method_of(plan: str) -> str:
    """Return the method names of a plan, without arguments and budgets."""
    return plan if plan == FULL_MODEL else " + ".join(step.method.name for step in Plan.of(plan).steps)


@dataclass(frozen=True)
class _Triple:
    """Answers to one question: the plan's, the full model's, and that to the smaller image if there is one."""

    plan: Row
    full_model: Row
    smaller: Row | None

    @property
    def difficult(self) -> bool:
        return self.smaller is not None and bool(self.full_model["right"]) and not self.smaller["right"]


def _triples(answers: Answers, full_model: Answers, smaller: Answers) -> list[_Triple]:
    return [_Triple(answers[key], full_model[key], smaller.get(key)) for key in sorted(answers) if key in full_model]


def _rows(by_task: dict[str, list[_Triple]]) -> list[Row]:
    """Score one model with one plan."""
    scored = [_score(task, {task: triples}) for task, triples in by_task.items()]
    parts = [
        ("first question", [triple for triple in by_task.get(CHAT, []) if triple.plan["turn"] == 0]),
        ("later questions", [triple for triple in by_task.get(CHAT, []) if triple.plan["turn"] > 0]),
    ]
    scored += [_score(f"group:{CHAT}, {part}", {CHAT: triples}) for part, triples in parts if triples]
    if CHAT in by_task and SWAPPED in by_task:
        scored += _second_after_first([*by_task[CHAT], *by_task[SWAPPED]])
    for group, members in GROUPS.items():
        in_group = {task: by_task[task] for task in members if task in by_task}
        if in_group:
            scored.append(_score(f"group:{group}", in_group))
    every = {task: triples for task, triples in by_task.items() if task != SWAPPED or len(by_task) == 1}
    return [*scored, _score("all", every)] if every else scored


def _second_after_first(triples: list[_Triple]) -> list[Row]:
    """Accuracy on second questions whose first one was answered right: T1V_T2V / T1V of LLMC+ (arXiv 2508.09981).

    What stays of an image is chosen for the first question and read for the second one too, so that a plan which
    follows the first question too closely loses here. `relative` is to the full model's own share.
    """
    shares = []
    for answers in ([triple.plan for triple in triples], [triple.full_model for triple in triples]):
        turns = {(row["task"], row["index"], row["turn"]): bool(row["right"]) for row in answers}
        first = [key for key, right in turns.items() if key[2] == 0 and right and (*key[:2], 1) in turns]
        shares.append((len(first), sum(turns[*key[:2], 1] for key in first)))
    (count, right), (full_model_count, full_model_right) = shares
    if not count:
        return []
    second = {SWAPPED: [triple for triple in triples if triple.plan["turn"] == 1]}
    low, high = wilson_interval(right, count)
    full_model = full_model_right / full_model_count if full_model_count else 0
    return [
        _score(f"group:{CHAT}, second after first", second)
        | {
            "count": count,
            "right": right,
            "accuracy": round(right / count, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "relative": _rounded(right / count / full_model) if full_model else None,
            "relative_low": None,
            "relative_high": None,
            "difficult": None,
        }
    ]


def _score(name: str, by_task: dict[str, list[_Triple]]) -> Row:
    every = [triple for triples in by_task.values() for triple in triples]
    rights = [bool(triple.plan["right"]) for triple in every]
    items = [(triple.plan["task"], triple.plan["index"]) for triple in every]
    compared = paired_bootstrap(
        rights,
        [bool(triple.full_model["right"]) for triple in every],
        strata=[task for task, _ in items],
        clusters=items,
    )
    low, high = compared.low, compared.high
    if len(by_task) == 1 and len(set(items)) == len(items):  # questions of their own, all of one kind
        low, high = wilson_interval(sum(rights), len(rights))
    difficult = [bool(triple.plan["right"]) for triple in every if triple.difficult]

    def mean(value: Callable[[_Triple], float]) -> float:
        return round(fmean(fmean(map(value, triples)) for triples in by_task.values()), 4)

    return {
        "task": name,
        "count": len(every),
        "right": sum(rights),
        "accuracy": round(compared.accuracy, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "majority": round(fmean(map(_majority, by_task.values())), 4),
        "relative": _rounded(compared.ratio),
        "relative_low": _rounded(compared.ratio_low),
        "relative_high": _rounded(compared.ratio_high),
        "agreement": mean(lambda triple: _normal(triple.plan["text"]) == _normal(triple.full_model["text"])),
        "difficult": {"count": len(difficult), "accuracy": round(fmean(difficult), 4), "full_model": 1.0}
        if difficult
        else None,
        "tokens_in": mean(lambda triple: triple.plan["tokens_in"]),
        "tokens_kept": mean(lambda triple: triple.plan["tokens_kept"]),
    }


def _majority(triples: list[_Triple]) -> float:
    """Accuracy of always giving the most frequent answer."""
    return max(Counter(_normal(triple.plan["answer"]) for triple in triples).values()) / len(triples)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

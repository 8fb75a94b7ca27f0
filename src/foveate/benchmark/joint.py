"""Token compression combined with quantised weights and caches: accuracy and cost.

What each of three savings costs alone does not say what they cost together: a quantised model may choose other tokens,
and fewer tokens leave fewer to average errors over. Every plan is therefore asked with every kind of weights and cache.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from foveate.benchmark import profiling
from foveate.benchmark.accuracy import answer_items
from foveate.benchmark.budgets import FULL_MODEL, with_controls
from foveate.benchmark.nbytes import dtype_of, weight_bytes
from foveate.benchmark.quantised import CACHES, FULL, WEIGHTS, cached, check, possible, quantise_weights
from foveate.benchmark.questions import QuestionSettings, check_models
from foveate.benchmark.results import INERT, earlier, inert, write_json
from foveate.benchmark.tasks import Item
from foveate.core.errors import FoveateError
from foveate.loading import load
from foveate.runtime import compress
from foveate.statistics import paired_bootstrap, wilson_interval

NOTE = (
    "Weights: the linear layers of the language model in int8, int4 (torchao) or nf4 (bitsandbytes); the rest stays. "
    "Cache: keys and values. Relative: accuracy over that of the full model with full weights and cache on the "
    "same questions, with a 95 % interval of the paired bootstrap. Parts: the product of the relative accuracies of "
    "the plan, the weights and the cache alone; where relative is below it, the savings hurt each other. Bytes: of "
    "all weights, and of the cache after an answer, both as stored; on a CPU torchao keeps int4 weights in a byte "
    "each. Seconds: of one question. Task all: mean over the tasks, each with the same weight."
)
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class JointSettings(QuestionSettings):
    """Settings of the joint benchmark. On resuming, models, plans, weights and caches may differ.

    Args:
        models: Folders, Hub ids, or "embedded".
        plans: Plans as text; the full model and the controls at every budget are added.
        weights: Names of `quantised.WEIGHTS`; "full" is added.
        caches: Names of `quantised.CACHES`; "full" is added.

    Raises:
        FoveateError: If something is not known or not possible here.
    """

    models: tuple[str, ...] = ("embedded",)
    plans: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("read_word", "table_cell", "shape_colour")
    count: int = 50

    def __post_init__(self) -> None:
        for name in self.weights:
            check("weights", name, WEIGHTS)
        for name in self.caches:
            check("caches", name, CACHES)
        super().__post_init__()
        check_models(self.models)
        usual = {
            "weights": [name for name in ("int8", "int4") if name in possible(WEIGHTS)],
            "caches": [name for name in ("int8", "int4") if name in possible(CACHES)],
        }
        for field, names in usual.items():
            object.__setattr__(self, field, tuple(dict.fromkeys([FULL, *(getattr(self, field) or names)])))
        object.__setattr__(self, "plans", with_controls(self.plans))

    @property
    def described(self) -> dict[str, Any]:
        """Settings that must agree for rows to share a file."""
        free = ("models", "plans", "weights", "caches")
        return json.loads(json.dumps({name: value for name, value in asdict(self).items() if name not in free}))


def run(
    settings: JointSettings,
    path: Path | None = None,
    *,
    resume: bool = False,
    command: str = "",
    report: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Run every combination of plan, weights and cache on every model.

    Args:
        settings: What to measure.
        path: JSON file, replaced in one step after every combination.
        resume: Keep the combinations that the file already has.
        command: The command line, for the file.
        report: Called with a line about everything begun.

    Returns:
        The content of the file.

    Raises:
        FoveateError: the file to resume from has other settings or is no result, or a model cannot be asked.
    """
    rows, impossible = [], []
    if resume and path is not None:
        rows, impossible = earlier(path, settings.described, ("rows", "impossible"), "joint")
    with profiling.threads(settings.threads):
        document: dict[str, Any] = {
            **profiling.head("joint", command, profiling.hardware(settings.runs_on), settings.described, NOTE),
            "rows": rows,
            "impossible": impossible,
        }
        items: list[Item] = []
        for name in settings.models:
            for weights in settings.weights:
                cells = _missing(settings, document, name, weights)
                if not cells:
                    continue
                report(f"{name}, {weights} weights")
                items = items or [item for task in settings.tasks for item in settings.items_of(task)]
                _Bench(settings, name, weights, items, document, path, report).measure(cells)
        _conclude(rows)
        if path is not None:
            write_json(path, document)
        return document


def _missing(settings: JointSettings, document: dict[str, Any], model: str, weights: str) -> list[tuple[str, str]]:
    """List the pairs of plan and cache that have neither a row nor a reason for its absence."""
    keys = ("model", "plan", "kind", "cache")
    done = {tuple(row[key] for key in keys) for row in document["rows"]}
    done |= {tuple(line.get(key) for key in keys) for line in document["impossible"]}
    wanted = [(plan, cache) for cache in settings.caches for plan in settings.plans]
    return [(plan, cache) for plan, cache in wanted if (model, plan, weights, cache) not in done]


class _Bench:
    """A model with one kind of weights."""

    def __init__(
        self,
        settings: JointSettings,
        name: str,
        weights: str,
        items: list[Item],
        document: dict[str, Any],
        path: Path | None,
        report: Callable[[str], object],
    ) -> None:
        self.settings, self.name, self.kind, self.asked = settings, name, weights, items
        self.document, self.path, self.report = document, path, report

    def measure(self, cells: list[tuple[str, str]]) -> None:
        """Add the rows of pairs of plan and cache."""
        name = None if self.name == "embedded" else self.name
        model, processor = load(name, dtype=self.settings.dtype, device=self.settings.device, plan=None)
        weights = dtype_of(model) if self.kind == FULL else self.kind
        try:
            quantise_weights(model, self.kind)
        except FoveateError as error:
            for plan, cache in cells:
                self._refuse(plan, cache, error)
            return
        size = weight_bytes(model)
        for plan, cache in cells:
            self.report(f"  {cache} cache, {plan}")
            try:
                if plan != FULL_MODEL:  # a plan that does not fit is known before anything is asked
                    compress(model, plan).restore()
                with cached(model, cache):  # what a package compiles or loads at its first use is not timed
                    answer_items(model, processor, plan, self.asked[:1], 1)
                with cached(model, cache) as kept:
                    start = time.perf_counter()
                    answers = answer_items(model, processor, plan, self.asked, self.settings.batch_size)
                    seconds = (time.perf_counter() - start) / len(answers)
            except FoveateError as error:
                if (plan, self.kind, cache) == (FULL_MODEL, FULL, FULL):
                    raise
                self._refuse(plan, cache, error)
                continue
            numbers = {
                "seconds": seconds,
                "bytes": {
                    "weights": size,
                    "kv": sum(task_rows for task_rows, _ in kept) / sum(prompts for _, prompts in kept),
                },
            }
            head = {"model": self.name, "plan": plan, "weights": weights, "kind": self.kind, "cache": cache}
            for task in self.settings.tasks:
                task_rows = [row for row in answers if row["task"] == task]
                self.document["rows"].append({**head, "task": task, **_score(task_rows), **numbers})
            self.document["rows"].append({**head, "task": ALL, **_score(answers), **numbers})
            _conclude(self.document["rows"])
            if self.path is not None:
                write_json(self.path, self.document)

    def _refuse(self, plan: str, cache: str, error: FoveateError) -> None:
        line = {"model": self.name, "plan": plan, "kind": self.kind, "cache": cache, **error.as_json()}
        self.document["impossible"].append(line)


def _score(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Score one task or several; `rights` marks every answer, `tasks` counts the answers of each task.

    Where several answers are about one image, `items` has the number of the item of each.
    """
    tasks: dict[str, int] = {}
    for row in answers:
        tasks[row["task"]] = tasks.get(row["task"], 0) + 1
    rights = [int(row["right"]) for row in answers]
    places = {key: place for place, key in enumerate(dict.fromkeys((row["task"], row["index"]) for row in answers))}
    items = [places[row["task"], row["index"]] for row in answers]

    def mean(name: str) -> float:
        return fmean(fmean(row[name] for row in answers if row["task"] == task) for task in tasks)

    return {
        "count": len(rights),
        "right": sum(rights),
        "rights": "".join(map(str, rights)),
        "tasks": tasks,
        **({"items": items} if len(places) < len(items) else {}),
        "tokens_in": mean("tokens_in"),
        "tokens_kept": mean("tokens_kept"),
    }


def _conclude(rows: list[dict[str, Any]]) -> None:
    """Add accuracies with intervals, relative to the full model and to the product of the separate effects."""
    by_key = {(row["model"], row["task"], row["plan"], row["kind"], row["cache"]): row for row in rows}
    for row in rows:
        reference = by_key.get((row["model"], row["task"], FULL_MODEL, FULL, FULL))
        if reference is None or "accuracy" in row:
            continue
        strata = [task for task, count in row["tasks"].items() for _ in range(count)]
        rights = [[int(digit) for digit in scored["rights"]] for scored in (row, reference)]
        compared = paired_bootstrap(*rights, strata=strata, clusters=row.get("items"))
        low, high = (compared.low, compared.high)
        if len(row["tasks"]) == 1 and "items" not in row:  # questions of their own, all of one kind
            low, high = wilson_interval(row["right"], row["count"])
        row |= {
            "accuracy": compared.accuracy,
            # Wilson's ends of 0 and 1 miss them by a rounding error.
            "low": min(low, compared.accuracy),
            "high": max(high, compared.accuracy),
            "relative": compared.ratio,
            "relative_low": compared.ratio_low,
            "relative_high": compared.ratio_high,
        }
    for row in rows:
        model, task, plan, kind, cache = (row[key] for key in ("model", "task", "plan", "kind", "cache"))
        alone = ((plan, FULL, FULL), (FULL_MODEL, kind, FULL), (FULL_MODEL, FULL, cache))
        parts = [by_key.get((model, task, *part), {}).get("relative") for part in alone]
        row["parts"] = None if None in parts else math.prod(part for part in parts if part is not None)


def table(document: dict[str, Any], task: str = ALL) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a result, for one task."""
    header = [
        "model",
        "plan",
        "tokens",
        "weights",
        "cache",
        "accuracy",
        "relative",
        "parts",
        "weights, MiB",
        "KV, KiB",
        "s",
    ]
    rows = []
    for row in document["rows"]:
        if row["task"] != task:
            continue
        relative = "" if row["relative"] is None else f"{row['relative']:.1%}"
        if row["relative_low"] is not None and row["relative_high"] is not None:
            relative += f" ({row['relative_low']:.0%} to {row['relative_high']:.0%})"
        rows.append(
            [
                row["model"],
                row["plan"],
                f"{row['tokens_kept']:,.0f}" + (f" ({INERT})" if inert(row) else ""),
                row["weights"],
                row["cache"],
                f"{row['accuracy']:.1%}",
                relative,
                "" if row["parts"] is None else f"{row['parts']:.1%}",
                f"{row['bytes']['weights'] / 2**20:,.1f}",
                f"{row['bytes']['kv'] / 2**10:,.0f}",
                f"{row['seconds']:.2f}",
            ]
        )
    return header, rows

"""Speed benchmark run over models, batches and plans, with results saved as it goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from foveate.benchmark import profiling
from foveate.benchmark.budgets import CONTROLS, FULL_MODEL, control_of
from foveate.benchmark.results import earlier, write_json
from foveate.benchmark.speed.formatting import NOTE
from foveate.benchmark.speed.measurement import PlanMeasurement
from foveate.benchmark.speed.models import subject
from foveate.benchmark.speed.settings import SpeedSettings, groups_of
from foveate.core.errors import FoveateError, Refusal
from foveate.core.plan import Plan

#: What may differ between a run and the one that resumes it.
_FREE = ("models", "methods", "budgets", "plans", "frames", "batches", "encoder_blocks")


def run(
    settings: SpeedSettings,
    path: Path | None = None,
    *,
    resume: bool = False,
    command: str = "",
    report: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Measure all plans on all models.

    Args:
        settings: What to measure.
        path: JSON file, replaced in one step after every budget.
        resume: Keep the rows that the file already has.
        command: The command line, for the file.
        report: Called with a line about everything begun.

    Returns:
        The content of the file.

    Raises:
        FoveateError: The file to resume from has other settings or is no result, or a model cannot be measured.
    """
    device = torch.device(settings.device)
    described = {name: value for name, value in asdict(settings).items() if name not in _FREE}
    hardware = profiling.hardware(device) | {"threads": settings.threads}
    rows, impossible = [], []
    if resume and path is not None:
        rows, impossible = earlier(path, described, ("rows", "impossible"), "speed", hardware)
    document: dict[str, Any] = {
        **profiling.head("speed", command, hardware, described, NOTE),
        "rows": rows,
        "impossible": impossible,
    }
    with profiling.threads(settings.threads):
        for name, frames in product(settings.models, settings.frames or (None,)):
            report(f"building {name}")
            loaded = subject(name, settings, frames)
            if before := {row["dtype"] for row in rows if row["model"] == loaded.name} - {loaded.dtype}:
                raise FoveateError(
                    f"{path} has {loaded.name} in {before.pop()}, and here it is in {loaded.dtype}; set --dtype, or "
                    "choose another file."
                )
            for batch in settings.batches:
                measuring = PlanMeasurement(loaded, batch, settings.new_tokens, settings.attention)
                for budget, plans in groups_of(settings, loaded.budgets).items():
                    group = _Group(measuring, settings, budget, plans, document)
                    if group.missing:
                        report(f"{loaded.name}, batch {batch}, {budget or 'plans of several steps'}")
                        group.measure(report)
                        if path is not None:
                            write_json(path, document)
                del measuring
            del loaded
            if device.type == "cuda":
                torch.cuda.empty_cache()
    if path is not None:
        write_json(path, document)
    return document


class _Group:
    """Plans that are compared with each other: one model, one batch, one budget."""

    def __init__(
        self,
        measuring: PlanMeasurement,
        settings: SpeedSettings,
        budget: str,
        plans: list[str],
        document: dict[str, Any],
    ) -> None:
        self.measuring, self.settings, self.budget = measuring, settings, budget
        self.document = document
        self.plans = plans

    @property
    def missing(self) -> bool:
        """Whether a plan of the group has neither a row nor a reason for its absence."""
        done = {row["plan"] for row in self.document["rows"] if self._mine(row)}
        done |= {line["plan"] for line in self.document["impossible"] if line["model"] == self.measuring.subject.name}
        wanted = self.plans or [f"{name}:{self.budget}" for name in CONTROLS]
        return not done.issuperset(wanted)

    def _mine(self, row: dict[str, Any]) -> bool:
        same = (row["model"], row["batch"]) == (self.measuring.subject.name, self.measuring.batch)
        return same and row["group"] == self.budget

    def measure(self, report: Callable[[str], object]) -> None:
        """Measure the group and replace its rows."""
        exact: dict[str, dict[str, Any]] = {}
        self._try(FULL_MODEL, exact)
        for text in self.plans:
            self._try(text, exact)
        plans = [text for text in exact if text != FULL_MODEL]
        budgets = {text: self.budget or str(exact[text]["tokens"]) for text in plans}
        controls = self._controls(budgets)
        for budget in sorted({*budgets.values()} or {self.budget} - {""}):
            for name in CONTROLS:
                budgets[f"{name}:{budget}"] = budget
                controls[f"{name}:{budget}"] = f"random:{budget}"
        for text in plans:
            if (control := controls[text]) is not None:
                budgets.setdefault(control, budgets[text])
                controls.setdefault(control, control)
        for text in budgets:
            if text not in exact:
                self._try(text, exact)
        if FULL_MODEL not in exact:
            return
        report(f"  {len(exact)} plans")
        times = self._times(list(exact), report)
        rows = [self._row(text, budgets.get(text, self.budget), exact[text], times[text]) for text in exact]
        _conclude(rows, controls)
        self.document["rows"][:] = [row for row in self.document["rows"] if not self._mine(row)] + rows

    def _controls(self, budgets: dict[str, str]) -> dict[str, str | None]:
        """Return the control of each plan: random tokens at the same place, as many as the plan kept."""
        layers = self.measuring.model.config.get_text_config().num_hidden_layers
        return {
            text: control_of(text, layers) or (f"random:{budget}" if Plan.of(text).early_steps else None)
            for text, budget in budgets.items()
        }

    def _try(self, text: str, exact: dict[str, dict[str, Any]]) -> None:
        """Record the exact values of a plan, or why it is impossible."""
        try:
            exact[text] = self.measuring.exact(_plan(text))
        except FoveateError as error:
            self._refuse(text, error)
        except torch.OutOfMemoryError:
            what = f"a batch of {self.measuring.batch} does not fit into the memory of the GPU"
            self._refuse(text, FoveateError(Refusal("out-of-memory", what, "make the batch smaller")))
            torch.cuda.empty_cache()

    def _refuse(self, text: str, error: FoveateError) -> None:
        line = {"model": self.measuring.subject.name, "plan": text, **error.as_json()}
        if line not in self.document["impossible"]:
            self.document["impossible"].append(line)

    def _times(self, plans: list[str], report: Callable[[str], object]) -> dict[str, list[dict[str, float]]]:
        times: dict[str, list[dict[str, float]]] = {text: [] for text in plans}
        for turn in range(self.settings.repeats):
            for text in profiling.in_turn(plans, turn):
                times[text].append(self.measuring.turn(_plan(text)))
            report(f"  turn {turn + 1} of {self.settings.repeats}")
        return times

    def _row(self, text: str, budget: str, exact: dict[str, Any], times: list[dict[str, float]]) -> dict[str, Any]:
        plan = _plan(text)
        return {
            "model": self.measuring.subject.name,
            "plan": text,
            "method": text if plan is None else " + ".join(step.method.name for step in plan.steps),
            "budget": budget,
            "group": self.budget,
            "batch": self.measuring.batch,
            "device": self.measuring.device.type,
            "dtype": self.measuring.subject.dtype,
            **exact,
            "seconds": {part: statistics.median(turn[part] for turn in times) for part in times[0]},
            "spread": {part: profiling.spread([turn[part] for turn in times]) for part in times[0]},
        }


def _plan(text: str) -> Plan | None:
    return None if text == FULL_MODEL else Plan.of(text)


def _conclude(rows: list[dict[str, Any]], controls: dict[str, str | None]) -> None:
    """Add ratios to the full model and to each plan's control."""
    seconds = {row["plan"]: row["seconds"] for row in rows}
    full_model = seconds[FULL_MODEL]
    for row in rows:
        times = row["seconds"]
        row["control"] = controls.get(row["plan"])
        control = seconds.get(row["control"])
        row["speed_up"] = full_model["ttft"] / times["ttft"]
        row["efficiency"] = None if control is None else control["ttft"] / times["ttft"]
        row["selection_of_prefill"] = times["selection"] / full_model["prefill"]

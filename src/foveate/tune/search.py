"""Search for a plan, resumable up to the confirmed result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from foveate.benchmark import profiling
from foveate.benchmark.results import read_results, write_json
from foveate.benchmark.rows import Rows
from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL
from foveate.loading import load
from foveate.runtime import compress
from foveate.tune.confirmation import confirm
from foveate.tune.costs import Costs
from foveate.tune.formatting import front
from foveate.tune.questions import Questions, divided
from foveate.tune.scoring import Answers, Flow, Score
from foveate.tune.settings import TuneSettings
from foveate.tune.space import Space, space_for
from foveate.tune.study import Study

NOTE = (
    "Cost: time to the first token over that of the full model, both measured in turns on the same items (median "
    "of turns), or counted operations. Relative: accuracy over that of the full model on the same questions, with "
    "a 95 % interval of the paired bootstrap. Trials are judged on one part of the questions, finalists on another, "
    "which shares no image with it; only numbers of the confirmation are fair to quote. A trial stops early where its "
    "interval says that it cannot meet the goal or is worse than the best so far. Plans are compared with random "
    "tokens, as many before the same layers, and smaller images of as many tokens (the mean over layers)."
)
RESULT, STUDY, ROWS = "tune.json", "trials.journal", "answers.rows.jsonl"
COMPLETE, STOPPED, TOO_EXPENSIVE = "complete", "stopped", "too expensive"

Progress = Callable[[int, int, str], object]


def run(
    settings: TuneSettings,
    folder: Path | None = None,
    *,
    command: str = "",
    report: Callable[[str], object] = lambda line: None,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Run or resume a search, and confirm the winners.

    Args:
        settings: What to search.
        folder: Of the result `tune.json`, of the trials and of the answers; what it holds of the same search is gone on
            with. None: nothing is written.
        command: The command line, for the file.
        report: Called with a line about everything begun.
        progress: Called with the number of finished trials, of all trials, and what is at work.

    Returns:
        The content of the file.

    Raises:
        FoveateError: the folder holds another search; the model cannot be loaded or asked; nothing can be searched.
        KeyboardInterrupt: after the result so far has been written.
    """
    described = settings.described
    study = Study(None if folder is None else folder / STUDY, described, settings.seed)
    finished = _finished(settings, folder)
    if finished is not None:
        return finished
    with profiling.threads(settings.threads):
        rows = Rows(None if folder is None else folder / ROWS, described, resume=True)
        return _Run(settings, folder, study, rows, command, report, progress).whole()


def _finished(settings: TuneSettings, folder: Path | None) -> dict[str, Any] | None:
    """Return the result of this search if it is complete."""
    if folder is None or not (folder / RESULT).exists():
        return None
    try:
        document = read_results(folder / RESULT)
        same = document["settings"] == json.loads(json.dumps(asdict(settings)))
        return document if document["kind"] == "tune" and document["finished"] and same else None
    except (ValueError, KeyError, TypeError) as error:
        raise FoveateError(f"{folder / RESULT} is not a result of a search; choose another folder.") from error


class _Run:
    def __init__(
        self,
        settings: TuneSettings,
        folder: Path | None,
        study: Study,
        rows: Rows,
        command: str,
        report: Callable[[str], object],
        progress: Progress,
    ) -> None:
        self.settings, self.goal, self.folder, self.study = settings, settings.goal, folder, study
        self.command, self.report, self.progress = command, report, progress
        self.report(f"loading {settings.model}")
        name = None if settings.model == "embedded" else settings.model
        self.model, processor = load(name, dtype=settings.dtype, device=settings.device, plan=None)
        self.hardware = profiling.hardware(self.model.device)
        self.report("drawing questions")
        drawn = (item for task in settings.tasks for item in settings.items_of(task))
        self.questions: Questions = divided(drawn, settings.seed)
        self.answers = Answers(self.model, processor, settings.model, rows, settings.batch_size)
        self.flow = Flow(self.model, processor, settings.batch_size)
        self.costs = Costs(self.model, processor, self.questions.search, settings.repeats)
        self.space: Space | None = None
        self.confirmation: list[dict[str, Any]] = []
        self._depth = self.model.config.get_text_config().num_hidden_layers
        self.full_model: dict[str, Any] = {}

    def whole(self) -> dict[str, Any]:
        """Search, confirm, and write the result."""
        try:
            self._search()
            self._confirm()
        except KeyboardInterrupt:
            self._document(finished=False)
            raise
        return self._document(finished=True)

    def _search(self) -> None:
        settings = self.settings
        self.report(f"full model: {len(self.questions.search)} items to search on")
        self.full_model["search"] = self.answers.score(FULL_MODEL, self.questions.search).numbers
        self.report("trying every method once")
        self.space = self.study.space(
            lambda: space_for(
                self.model,
                lambda plan: self.costs.flops(plan, quick=True),
                settings.methods,
                settings.budgets,
                settings.chains,
            )
        )
        left_out = [candidate for candidate in self.space.left_out if candidate["method"] in settings.methods]
        for candidate in left_out:
            self.report(f"left out: {candidate['method']}: {candidate['reason']}")
        candidates = len(self.space.before) + len(self.space.inside)
        self.report(f"{candidates} methods to choose from; {len(self.space.left_out)} left out (see {RESULT})")
        while len(self.study.records) < settings.trials:
            drawn = self.study.draw(self.space, self._refuses)
            if drawn is None:
                self.report(f"every plan has been tried: {len(self.study.records)} trials")
                break
            trial, plan = drawn
            self._say(plan)
            try:
                record = self._try(plan)
            except FoveateError as error:
                self.report(f"{plan} cannot run: {error}")
                self.study.fail(trial, plan, error)
                continue
            self.study.finish(trial, record)
            self._say(plan)

    def _say(self, what: str) -> None:
        self.progress(len(self.study.records), self.settings.trials, what)

    def _refuses(self, plan: str) -> FoveateError | None:
        try:
            compress(self.model, plan).restore()
        except FoveateError as error:
            return error
        return None

    def _try(self, plan: str) -> dict[str, Any]:
        """Run one trial: first its cost, which may already exceed the goal, then more and more questions."""
        record: dict[str, Any] = {"plan": plan, "flops": round(self.costs.flops(plan), 4), "ttft": None}
        if self.settings.cost == "time":
            record["ttft"] = self.costs.time(plan)
        cost = record["cost"] = round(cost_of(record), 4)
        if not self.goal.affords(cost):
            return record | {"outcome": TOO_EXPENSIVE, "met": False, "value": self.goal.value(cost, None)}
        score, outcome = self._score(plan)
        return record | {
            "outcome": outcome,
            "score": round(score.value, 4),
            "low": _rounded(score.low),
            "high": _rounded(score.high),
            **score.numbers,
            "met": outcome == COMPLETE and self.goal.met(cost, score.value),
            "value": self.goal.value(cost, score.value),
        }

    def _score(self, plan: str) -> tuple[Score, str]:
        items = self.questions.search
        if self.settings.objective != "accuracy":
            return self.flow.score(plan, items), COMPLETE
        for part in self.questions.rungs:
            score = self.answers.score(plan, items[:part])
            if part < len(items) and self._hopeless(plan, score, part):
                return score, STOPPED
        return score, COMPLETE

    def _hopeless(self, plan: str, score: Score, part: int) -> bool:
        """Whether the questions so far rule out a plan, with a chance of error of one in forty."""
        least = self.goal.accuracy
        if least is not None:
            return score.high is not None and score.high < least
        best = max(
            (record for record in self.study.records if record["met"]), key=lambda record: record["value"], default=None
        )
        if best is None:
            return False
        return self.answers.compared(plan, best["plan"], self.questions.search[:part]).difference_high < 0

    def _confirm(self) -> None:
        self.report(f"full model: {len(self.questions.confirm)} items to confirm on")
        self.full_model["confirm"] = self.answers.score(FULL_MODEL, self.questions.confirm).numbers
        finalists = sorted(
            (record for record in self.study.records if record["met"]), key=lambda record: -record["value"]
        )
        for record in finalists[: self.settings.finalists]:
            self.report(f"confirming {record['plan']}")
            evidence = confirm(
                record["plan"], self.questions.confirm, self.answers, self.costs, self.settings, self._depth
            )
            self.confirmation.append(evidence)
            if evidence["met"]:
                break

    def _document(self, finished: bool) -> dict[str, Any]:
        best = next((finalist for finalist in self.confirmation if finalist["met"]), None)
        space = self.space
        document = {
            "kind": "tune",
            "finished": finished,
            "command": self.command,
            "hardware": self.hardware,
            "versions": {**profiling.versions(), "optuna": version("optuna")},
            "settings": json.loads(json.dumps(asdict(self.settings))),
            "note": NOTE,
            "goal": str(self.goal),
            "items": {"search": len(self.questions.search), "confirm": len(self.questions.confirm)},
            "full_model": self.full_model,
            "space": None if space is None else space.as_json,
            "trials": self.study.records,
            "impossible": self.study.impossible,
            "front": [finalist["plan"] for finalist in front(self.study.records)],
            "confirmation": self.confirmation,
            "best": None if best is None else best["plan"],
        }
        document = json.loads(json.dumps(document))
        if self.folder is not None:
            write_json(self.folder / RESULT, document)
        return document


def cost_of(record: dict[str, Any]) -> float:
    """Return the cost of a trial: measured time if there is one, else FLOPs."""
    return record["flops"] if record["ttft"] is None else record["ttft"]["median"]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

"""Accuracy benchmark: every plan answers the same questions.

Next to every plan stand the full model and, at the same budget, random tokens and the image made smaller. Answers
are greedy and compared as `matching.normal` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from foveate.benchmark import profiling
from foveate.benchmark.budgets import FULL_MODEL, with_controls
from foveate.benchmark.generation import Prepared, ask, batches, prepare
from foveate.benchmark.matching import matches
from foveate.benchmark.questions import QuestionSettings, check_models
from foveate.benchmark.results import parse_result, write_json
from foveate.benchmark.rows import Rows
from foveate.benchmark.scores import scores
from foveate.benchmark.tasks import ClipSettings, Item, check_clips, items, turns_of
from foveate.core.errors import FoveateError
from foveate.core.full_model import is_full_model
from foveate.core.plan import Plan
from foveate.loading import fingerprint, load
from foveate.runtime import compress, handle_of
from foveate.synthetic.clips import CLIP_TASKS

NOTE = (
    "Exact match after normalisation (case, white space, punctuation at the end, commas in numbers). Relative: "
    "accuracy over that of the full model on the same questions, with a 95 % interval of the paired "
    "bootstrap. Agreement: "
    "share of answers equal to the full model's. Difficult: questions that the full model answers and "
    "downsample at the same budget does not. Tokens kept: mean over the layers of the language model. Chats "
    "continue over "
    "one cache: image tokens are selected at the first question."
)

Progress = Callable[[int, int, str], object]


@dataclass(frozen=True, kw_only=True)
class AccuracySettings(QuestionSettings):
    """Settings of the accuracy benchmark. Resuming needs equal questions, precision and device; all else may differ.

    Args:
        models: Folders, Hub ids, or "embedded".
        plans: Plans as text; the full model and the controls at every budget are added.
        clips: Of rendered clips.

    Raises:
        FoveateError: If something is not known or not possible.
    """

    models: tuple[str, ...] = ("embedded",)
    plans: tuple[str, ...] = ()
    clips: ClipSettings = field(default_factory=ClipSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_models(self.models)
        check_clips(self.tasks, self.clips, self.difficulty)
        about_images = [task for task in self.tasks if task not in CLIP_TASKS]
        choosing = [plan for plan in self.plans if not is_full_model(plan) and Plan.of(plan).frame_step]
        if about_images and choosing:
            raise FoveateError(
                f"{choosing[0]} chooses frames of clips, and {about_images[0]} is about images; ask about clips alone "
                "(--tasks clips)."
            )
        object.__setattr__(self, "plans", with_controls(self.plans))

    @property
    def described(self) -> dict[str, Any]:
        """Settings that must agree for answers to share a file."""
        described = {name: getattr(self, name) for name in ("count", "sides", "difficulty", "dtype", "device")}
        return described | ({"clips": asdict(self.clips)} if {*self.tasks} & {*CLIP_TASKS} else {})

    def items_of(self, task: str) -> Iterator[Item]:
        """See `QuestionSettings.items_of`."""
        return items(task, self.count, difficulty=self.difficulty, sides=self.sides, clips=self.clips)


def answer_items(
    model: Any, processor: Any, plan: Any, items: Iterable[Item], batch_size: int = 8
) -> list[dict[str, Any]]:
    """Ask a model questions with a plan and mark the answers.

    Args:
        model: As `foveate.load` returns it.
        processor: Of the model.
        plan: Anything that `foveate.compress` takes; None or "full model" for no plan.
        items: Such as `tasks.items` gives.
        batch_size: Items answered at once.

    Returns:
        One row for every turn of every item, in the order of the items: plan, task, index, turn, question, answer,
        text, right, tokens_in, tokens_kept.

    Raises:
        FoveateError: the plan cannot run on this model or on these images.
    """
    items = list(items)
    sampler = None if plan is None or is_full_model(plan) else Plan.of(plan).frame_step
    order = {(item.task, item.index): place for place, item in enumerate(items)}
    rows: list[dict[str, Any]] = []
    for batch in batches(items, batch_size):
        rows += _rows(model, processor, plan, prepare(model, processor, batch, sampler))
    return sorted(rows, key=lambda row: (order[row["task"], row["index"]], row["turn"]))


def _rows(model: Any, processor: Any, plan: Any, prepared: Prepared) -> list[dict[str, Any]]:
    wanted = None if plan is None or is_full_model(plan) else Plan.of(plan)
    followed = None if wanted is None else wanted.for_model
    with (
        nullcontext(handle_of(model)) if followed is None else compress(model, followed, processor=processor) as handle
    ):
        replies = ask(model, processor, prepared)
        attached = FULL_MODEL if handle is None else str(handle.plan)
    name = attached if wanted is None else str(wanted)
    return [
        {
            "plan": name,
            "task": item.task,
            "index": item.index,
            "turn": turn,
            "question": question,
            "answer": answer,
            "text": text,
            "right": matches(text, answer),
            "tokens_in": reply.tokens_in,
            "tokens_kept": round(reply.tokens_kept, 2),
        }
        for item, reply in zip(prepared.items, replies, strict=True)
        for turn, ((question, answer), text) in enumerate(zip(item.turns, reply.texts, strict=True))
    ]


def run(
    settings: AccuracySettings,
    path: Path | None = None,
    *,
    resume: bool = False,
    command: str = "",
    report: Callable[[str], object] = lambda line: None,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Run every plan on every model and question.

    Every plan is asked a batch before the next batch comes, so a run that was stopped has compared its plans on the
    same questions.

    Args:
        settings: What to measure.
        path: JSON file of the result; answers are written to NAME.rows.jsonl next to it, as soon as their batch is
            known. None: nothing is written.
        resume: Go on with the answers that are there.
        command: The command line, for the file.
        report: Called with a line about everything begun.
        progress: Called with the number of answered items, of all items, and what is at work.

    Returns:
        The content of the file.

    Raises:
        FoveateError: there are answers already and `resume` is not given, or they were made with other settings or for
            other questions; a model cannot be loaded or asked.
        KeyboardInterrupt: after the result so far has been written.
    """
    rows = Rows(None if path is None else rows_path(path), settings.described, resume, partial=("clips",))
    _check_questions(rows, settings)
    for name in settings.models:
        rows.check_model(name, _content(name))
    run = _Run(settings, rows, report, progress)
    with profiling.threads(settings.threads):
        hardware = profiling.hardware(settings.runs_on)

        def document() -> dict[str, Any]:
            report("working out the intervals")
            result = {
                **profiling.head("accuracy", command, hardware, asdict(settings), NOTE),
                "rows": scores(rows.rows, settings.models, run.possible, settings.tasks),
                "impossible": [
                    {"model": model, "plan": plan, **why}
                    for (model, plan), why in rows.impossible.items()
                    if model in settings.models and plan in settings.plans
                ],
            }
            if path is not None:
                write_json(path, result)
            return result

        try:
            for name in settings.models:
                run.model(name)
        except KeyboardInterrupt:
            document()
            raise
        return document()


def _place(name: str) -> str | None:
    """Return what `foveate.load` is given for a model of the settings."""
    return None if name == "embedded" else name


def _content(name: str) -> str:
    return fingerprint(_place(name)) or ""


def _check_questions(rows: Rows, settings: AccuracySettings) -> None:
    """Raise FoveateError if there are answers to other questions than a file has now."""
    files = {task: turns for task in settings.tasks if (turns := turns_of(task, settings.count)) is not None}
    for row in rows.rows:
        if (turns := files.get(row["task"])) is None:
            continue
        asked = turns[row["index"]][row["turn"] : row["turn"] + 1] if row["index"] < len(turns) else ()
        if parse_result(json.dumps(asked)) != [[row["question"], row["answer"]]]:  # rows are read with current names
            raise FoveateError(
                f"{rows.path} has answers to other questions of {row['task']}, which has changed since; choose another "
                "file."
            )


def rows_path(path: Path) -> Path:
    """Return the path of the file that holds the answers of a result."""
    return path.with_suffix(".rows.jsonl")


@dataclass
class _Run:
    settings: AccuracySettings
    rows: Rows
    report: Callable[[str], object]
    progress: Progress
    done: int = 0

    def possible(self, model: str) -> list[str]:
        """Select the plans that are not known to be impossible on a model."""
        return [plan for plan in self.settings.plans if (model, plan) not in self.rows.impossible]

    def model(self, name: str) -> None:
        """Ask one model the questions that have no answers yet."""
        settings = self.settings
        if all((name, plan, task) in self.rows.finished for plan in self.possible(name) for task in settings.tasks):
            self._advance(len(settings.tasks) * settings.count * len(settings.plans), name)
            return
        self.report(f"loading {name}")
        self.rows.begin(name, _content(name))
        model, processor = load(_place(name), dtype=settings.dtype, device=settings.device, plan=None)
        for plan in self.possible(name):
            followed = None if plan == FULL_MODEL else Plan.of(plan).for_model
            if followed is not None:
                try:
                    compress(model, followed).restore()
                except FoveateError as error:
                    self._fail(name, plan, error)
        for task in settings.tasks:
            self._task(name, model, processor, task)

    def _task(self, name: str, model: Any, processor: Any, task: str) -> None:
        settings, rows = self.settings, self.rows
        remaining = [plan for plan in self.possible(name) if (name, plan, task) not in rows.finished]
        self._advance(settings.count * (len(settings.plans) - len(remaining)), f"{name}, {task}")
        begun = self.done
        stream = settings.items_of(task) if remaining else ()
        for batch in batches(stream, settings.batch_size):
            prepared: dict[Any, Prepared] = {}  # by what chooses frames
            for plan in remaining:
                missing = [item for item in batch if not rows.has(name, plan, task, item.index, len(item.turns))]
                if missing and (name, plan) not in rows.impossible:
                    sampler = None if plan == FULL_MODEL else Plan.of(plan).frame_step
                    if sampler not in prepared:
                        prepared[sampler] = prepare(model, processor, batch, sampler)
                    self._answer(name, model, processor, plan, prepared[sampler])
                self._advance(len(batch), f"{name}, {task}, {plan}")
        rows.finish(name, [plan for plan in remaining if (name, plan) not in rows.impossible], task)
        self._advance(begun + settings.count * len(remaining) - self.done, f"{name}, {task}")

    def _answer(self, name: str, model: Any, processor: Any, plan: str, prepared: Prepared) -> None:
        try:
            answers = _rows(model, processor, plan, prepared)
        except FoveateError as error:
            if plan == FULL_MODEL:
                raise
            self._fail(name, plan, error)
            return
        self.rows.add({"model": name, **row} for row in answers)

    def _fail(self, name: str, plan: str, error: FoveateError) -> None:
        self.report(f"{plan} cannot run on {name}: {error}")
        self.rows.fail(name, plan, error)

    def _advance(self, count: int, what: str) -> None:
        settings = self.settings
        self.done += count
        total = len(settings.models) * len(settings.tasks) * settings.count * len(settings.plans)
        self.progress(self.done, total, what)

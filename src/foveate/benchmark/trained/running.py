"""Train, evaluate and measure one training after another, and keep what is finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from foveate.benchmark import profiling
from foveate.benchmark.accuracy import answer_items
from foveate.benchmark.embedded import Score
from foveate.benchmark.results import earlier, write_json
from foveate.benchmark.rows import Rows
from foveate.benchmark.trained import cost
from foveate.benchmark.trained.claims import CLAIMS, CLIP_CLAIMS, judged
from foveate.benchmark.trained.recipes import model_folder, recipe_of, run_folder, without_weights_of_others
from foveate.benchmark.trained.settings import BASE, CLIP_BASE, ClipTrainedSettings, TrainedSettings
from foveate.benchmark.trained.systems import SYSTEMS, VIDEO_SYSTEMS, Training, trainings
from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL
from foveate.loading import load
from foveate.statistics import paired_bootstrap
from foveate.training.building import build_model
from foveate.training.run import Run, RunResult
from foveate.training.run_directory import RunDirectory

KIND = "trained"
#: Where the usual models to start from come from.
_SOURCES = {
    BASE: "run the command in a clone of the repository, which has it",
    CLIP_BASE: "train it with `foveate train recipe:video/base`",
}
CLIP_NOTE = (
    "Every training has the same language model at the start, the same frozen vision tower, the same clips in the "
    "same order, the same steps and seed; only the connector differs. The tower of temporal_pvc is made of the same "
    "one, with attention over frames in its last blocks, and is trained. Tokens: placeholders of a clip of 8 frames, "
    "of which b_vllm and langdc may leave some empty. Accuracy: exact match after normalisation, the mean over tasks, "
    "with a 95 % bootstrap interval over the questions, which does not contain the noise of the seed: every training "
    "has one. FLOPs: to the first token of a short question, by torch's counter; text encoders, decoder layers that "
    "read the clip, and what a connector computes outside of its layers count as prefill. Time to the first token: "
    "all models take turns. Training FLOPs: those of the first batch times the steps."
)
NOTE = (
    "Every training has the same language model at the start, the same frozen vision tower, the same images in the "
    "same order, the same steps and seed; only the connector differs, and for smaller-image the image. Encoders, and "
    "the control vit, are trained from random weights with the connector and the language model, with the same images "
    "and steps: they are compared with each other, and not with rows of the trained tower. Rows sit and "
    "sit-from-teacher start from the tower of sit-teacher, whose training theirs comes on top of. Accuracy: exact "
    "match after normalisation, the mean over tasks, with a 95 % bootstrap interval over the questions, which does not "
    "contain the noise of the seed: every training has one. FLOPs: to the first token of a short question, by torch's "
    "counter. Time to the first token: all models take turns. Training FLOPs: those of the first batch times the steps."
)


def run(
    settings: TrainedSettings,
    path: Path,
    runs: Path,
    *,
    only: Sequence[str] = (),
    max_minutes: float | None = None,
    command: str = "",
    report: Callable[[str], object] = lambda line: None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the trainings that the table lacks, one after another.

    A training that was stopped continues from its checkpoint, its evaluation with the next task. The table is written
    after every training, and the log of the training is copied into a folder next to it, named as the table.

    Args:
        settings: Of all trainings.
        path: JSON file of the table.
        runs: Folder of the runs; each has its log and its model, and checkpoints until it is finished.
        only: Names of systems or trainings; empty: all.
        max_minutes: Stop a training after this time; the command can be repeated.
        command: The command line, for the file.
        report: Called with a line about everything begun.
        console: Shows the progress of a training.

    Returns:
        The content of the file.

    Raises:
        FoveateError: The file has other settings, the model to start from has not been trained, or a training cannot be
            built.
    """
    if (source := _SOURCES.get(settings.base)) and not Path(settings.base).is_dir():
        raise FoveateError(
            f"there is no {settings.base}, the model that all trainings start from: {source}, or name another one with "
            "--base."
        )
    chosen = trainings(only, settings.systems)
    (rows,) = earlier(path, settings.described, ("rows",), KIND)
    with profiling.threads(settings.threads):
        note = CLIP_NOTE if isinstance(settings, ClipTrainedSettings) else NOTE
        head = profiling.head(KIND, command, profiling.hardware(settings.runs_on), settings.described, note)
        document: dict[str, Any] = {**head, "rows": rows, "claims": []}
        for training in chosen:
            if _lengths(rows, training) >= set(training.lengths):
                continue
            one = _One(training, settings, runs, report, console)
            trained = one.train(max_minutes)
            if not trained.finished:
                report(f"{training.name} was stopped; the same command continues it")
                break
            rows[:] = [row for row in rows if row["training"] != training.name] + one.rows(trained)
            _copy(trained.log, path.with_suffix("") / f"{training.name}.jsonl")
            write_json(path, conclude(document))
            one.clean()
        _time(rows, settings, report)
        write_json(path, conclude(document))
    return document


def conclude(document: dict[str, Any]) -> dict[str, Any]:
    """Put the rows in order, and compare them with the claims of the papers."""
    every = trainings(systems=(*SYSTEMS, *VIDEO_SYSTEMS))
    places = {training.name: number for number, training in enumerate(every)}
    document["rows"].sort(key=lambda row: (-row["tokens"], places.get(row["training"], len(places)), row["training"]))
    of_clips = bool(document["rows"]) and all(row["recipe"].startswith("video/") for row in document["rows"])
    document["claims"] = judged(document["rows"], CLIP_CLAIMS if of_clips else CLAIMS)
    return document


@dataclass(frozen=True)
class _One:
    """One training with its folder, `NAME.run` in the folder of all runs."""

    training: Training
    settings: TrainedSettings
    runs: Path
    report: Callable[[str], object]
    console: Console | None

    @property
    def folder(self) -> Path:
        """Folder of checkpoints, log, model and answers."""
        return run_folder(self.runs, self.training.name)

    def train(self, max_minutes: float | None) -> RunResult:
        """Train, from the newest checkpoint on.

        Raises:
            FoveateError: The folder holds a run of other settings.
        """
        self.runs.mkdir(parents=True, exist_ok=True)
        about = {"settings": self.settings.described, "training": self.training.described}
        RunDirectory(self.runs / self.training.name, json.loads(json.dumps(about)))  # refuses other settings
        teacher = self.training.teacher
        if teacher and not model_folder(self.runs, teacher).is_dir():
            raise FoveateError(
                f"{self.training.name} starts from the model of {teacher}, which is not in {self.runs}: use the folder "
                f"of runs that has it, or remove the row of {teacher} from the table to train it again."
            )
        recipe = recipe_of(self.training, self.settings, self.folder)
        self.report(f"training {self.training.name}, {recipe.stages[0].steps} steps")
        quiet = self.console or Console(quiet=True)
        cpu = self.settings.runs_on.type == "cpu"
        return Run(recipe, self.folder, cpu=cpu, workers=0).train(max_minutes=max_minutes, console=quiet)

    def rows(self, trained: RunResult) -> list[dict[str, Any]]:
        """Evaluate and measure a finished training: a row for every length."""
        training, settings = self.training, self.settings
        self.report(f"evaluating {training.name}")
        model, processor = load(trained.model, dtype=settings.dtype, device=settings.device, plan=None)
        recipe = recipe_of(training, settings, self.folder)
        learned = {
            "steps": trained.progress.step,
            "images": trained.progress.samples,
            "flops": cost.training_flops(recipe),  # not seconds: trainings are stopped, continued, and share a machine
        }
        rows = []
        for tokens in training.lengths:
            plan = training.plans.get(tokens)
            flops = cost.first_token_flops(cost.Prompted.of(model, processor, plan))
            rows.append(
                {
                    "system": training.system,
                    "training": training.name,
                    "tokens": tokens,
                    "plan": plan,
                    "recipe": training.recipe,
                    "seed": recipe.seed,
                    "connector": {"type": model.config.connector_type, **(model.config.connector_options or {})},
                    **({"encoder": dict(training.encoder)} if training.encoder else {}),
                    **({"teacher": training.teacher} if training.teacher else {}),
                    "image_size": getattr(model.config.vision_config, "image_size", None),
                    **self._accuracy(model, processor, plan, tokens),
                    "flops": flops,
                    "training_cost": learned,
                }
            )
        return rows

    def clean(self) -> None:
        """Remove checkpoints and answers of a finished training; the model remains."""
        shutil.rmtree(self.folder / "stages")
        self._answers.unlink()

    @property
    def _answers(self) -> Path:
        return self.folder / "answers.rows.jsonl"

    def _accuracy(self, model: Any, processor: Any, plan: str | None, tokens: int) -> dict[str, Any]:
        settings, name = self.settings, plan or FULL_MODEL
        answers = Rows(self._answers, settings.described, resume=True)
        for task in settings.tasks:
            if (self.training.name, name, task) not in answers.finished:
                given = answer_items(model, processor, plan, settings.items_of(task), settings.batch_size)
                if wrong := {row["tokens_kept"] for row in given} - {tokens}:
                    raise RuntimeError(f"{self.training.name} gave {wrong} tokens in place of {tokens}")
                answers.add({"model": self.training.name, **row} for row in given)
                answers.finish(self.training.name, [name], task)
        tasks, rights = {}, {}
        for task in settings.tasks:
            of_task = sorted(
                (row for row in answers.rows if row["plan"] == name and row["task"] == task),
                key=lambda row: (row["index"], row["turn"]),
            )
            tasks[task] = asdict(Score.of(of_task))
            rights[task] = "".join("1" if row["right"] else "0" for row in of_task)
        values, strata = flat(rights)
        both = paired_bootstrap(values, values, strata=strata)
        overall = {"accuracy": both.accuracy, "low": both.low, "high": both.high}
        return {name: round(value, 4) for name, value in overall.items()} | {"tasks": tasks, "rights": rights}


def flat(rights: dict[str, str]) -> tuple[list[int], list[str]]:
    """Right (1) and wrong (0) answers of all tasks, and the task of each."""
    values = [int(one) for answers in rights.values() for one in answers]
    return values, [task for task, answers in rights.items() for _ in answers]


def _time(rows: list[dict[str, Any]], settings: TrainedSettings, report: Callable[[str], object]) -> None:
    """Time all rows side by side, with random weights."""
    if not rows:
        return
    report("measuring the time to the first token of all models in turns")
    known = {training.name: training for training in trainings(systems=settings.systems)}
    prompts = {}
    for name in dict.fromkeys(row["training"] for row in rows if row["training"] in known):
        recipe = without_weights_of_others(recipe_of(known[name], settings, Path(name)))
        model, processor = build_model(recipe.model, recipe.seed)
        model.to(settings.runs_on)
        for tokens in _lengths(rows, known[name]):
            prompts[name, tokens] = cost.Prompted.of(model, processor, known[name].plans.get(tokens))
    seconds = cost.first_token_seconds(prompts, settings.turns)
    for row in rows:
        row["first_token_seconds"] = seconds.get((row["training"], row["tokens"]))


def _lengths(rows: list[dict[str, Any]], training: Training) -> set[int]:
    return {row["tokens"] for row in rows if row["training"] == training.name}


def _copy(log: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(log, target)

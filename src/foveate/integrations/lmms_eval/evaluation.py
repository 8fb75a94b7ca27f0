"""Evaluator of `foveate bench released`: lmms-eval in this process, around one loaded model."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from foveate.benchmark.nbytes import dtype_of
from foveate.benchmark.released import Evaluation, ReleasedSettings
from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL
from foveate.integrations.lmms_eval.model import EvaluatedModel

#: Kinds of tasks whose answers are generated; the others score answers that they bring along.
GENERATED = ("generate_until", "generate_until_multi_round")


class LmmsEvaluator:
    """Asks the questions of lmms-eval's tasks; the model is loaded with the first of them.

    Args:
        settings: Of the benchmark.
        include_path: Folder with more tasks, as `--include_path` of lmms-eval; None: none.

    Raises:
        FoveateError: lmms-eval is not installed, or there is no such folder.
    """

    def __init__(self, settings: ReleasedSettings, include_path: Path | None = None) -> None:
        missing = [name for name in ("lmms_eval", "matplotlib") if find_spec(name) is None]
        if missing:
            raise FoveateError(
                f"this benchmark needs {' and '.join(missing).replace('_', '-')}: pip install 'foveate[lmms]'."
            )
        if include_path is not None and not include_path.is_dir():
            raise FoveateError(f"--include-path {str(include_path)!r} is no folder.")
        self.settings, self.include_path = settings, include_path
        self._manager: Any = None
        self._evaluated: EvaluatedModel | None = None

    @property
    def versions(self) -> dict[str, str]:
        """Version of lmms-eval."""
        return {"lmms-eval": version("lmms-eval")}

    def check(self, tasks: Sequence[str]) -> None:
        """Check that lmms-eval has these tasks and that their answers are generated; nothing is downloaded.

        Raises:
            FoveateError: a task is not known, is a group of tasks, or scores answers that it brings along.
        """
        index = self._tasks().task_index
        for task in tasks:
            if task not in index:
                close = get_close_matches(task, index, 3)
                hint = f"did you mean {' or '.join(close)}? " if close else ""
                raise FoveateError(
                    f"lmms-eval has no task {task!r}; {hint}`lmms-eval --tasks list` lists all, and --include-path "
                    "adds your own."
                )
            if index[task]["type"] not in ("task", "python_task"):
                raise FoveateError(f"{task!r} is a group of tasks; name the tasks in it.")
            kind = self._tasks()._get_config(task).get("output_type")
            if kind not in (None, *GENERATED):
                raise FoveateError(f"{task!r} scores answers that it brings along ({kind}); choose generated answers.")

    def evaluate(self, task: str, plan: str, progress: Callable[[int, int], object]) -> Evaluation:
        """Ask all questions of a task with a plan.

        Raises:
            FoveateError: the model cannot be loaded, the plan cannot run on these images, or the task has no score
                between 0 and 1 for every question.
        """
        tasks, evaluated = self._tasks(), self._model()
        evaluated.attach(plan)
        start = time.perf_counter()
        with TemporaryDirectory() as folder, _quiet():
            from lmms_eval.evaluator import simple_evaluate  # ty: ignore[import-not-found]

            from foveate.integrations.lmms_eval.classes import SharedModel

            # Some tasks write a file for a server that scores, in the folder of these arguments.
            arguments = Namespace(output_path=folder, process_with_media=False, reasoning_tags=None)
            results = simple_evaluate(
                model=SharedModel(evaluated, progress),
                tasks=[task],
                task_manager=tasks,
                limit=self.settings.limit,
                batch_size=self.settings.batch_size,
                bootstrap_iters=0,
                log_samples=True,
                cli_args=arguments,
            )
        seconds = time.perf_counter() - start
        samples = _first_of_each(results["samples"][task])
        metric, scores = question_scores(task, samples, results["configs"][task]["metric_list"])
        counts = evaluated.token_counts
        if not counts:
            raise FoveateError(f"{task!r} has no images, so a plan changes nothing.")
        return Evaluation(
            metric=metric,
            scores=scores,
            answers=tuple("\n".join(map(str, sample["filtered_resps"])) for sample in samples),
            questions=_fingerprint(samples),
            total=results["n-samples"][task]["original"],
            metrics=_metrics(results["results"][task]),
            tokens_in=fmean(before for before, _ in counts),
            tokens_kept=fmean(kept for _, kept in counts),
            seconds=seconds,
            dtype=dtype_of(evaluated.model),
            revision=getattr(evaluated.model.config, "_commit_hash", None),
        )

    def close(self) -> None:
        """Release the model."""
        if self._evaluated is not None:
            self._evaluated.close()
            self._evaluated = None
            gc.collect()  # the speed benchmark loads the model again, and two do not fit into every GPU
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _tasks(self) -> Any:
        """Index of all tasks, read once."""
        if self._manager is None:
            with _quiet():
                from lmms_eval.tasks import TaskManager  # ty: ignore[import-not-found]

                folder = None if self.include_path is None else str(self.include_path)
                self._manager = TaskManager("ERROR", include_path=folder, model_name="foveate")
        return self._manager

    def _model(self) -> EvaluatedModel:
        if self._evaluated is None:
            settings = self.settings
            self._evaluated = EvaluatedModel(
                settings.model,
                FULL_MODEL,
                dtype=settings.dtype,
                device=settings.device,
                batch_size=settings.batch_size,
                attn_implementation=settings.attention,
            )
        return self._evaluated


def question_scores(
    task: str, samples: Sequence[Mapping[str, Any]], metric_list: Sequence[Mapping[str, Any]]
) -> tuple[str, tuple[float, ...]]:
    """Return the score of every question, with the names of the metrics that it is of.

    A question's score is that of the first metric of the task that it has a number for, between 0 and 1, of which more
    is better. Questions of one task may have different metrics, such as perception and cognition of MME.

    Args:
        task: Name of the task.
        samples: One for every question, with the values of metrics by name, as lmms-eval logs them.
        metric_list: Metrics of the task, as its configuration has them.

    Raises:
        FoveateError: a question has no such number.
    """
    names = [metric["metric"] for metric in metric_list if metric.get("higher_is_better") is not False]
    names = [name if isinstance(name, str) else getattr(name, "__name__", str(name)) for name in names]
    used: dict[str, None] = {}
    scores = []
    for sample in samples:
        pairs = ((name, _number(sample.get(name))) for name in names)
        name, score = next(((name, score) for name, score in pairs if score is not None), ("", None))
        if score is None:
            raise FoveateError(
                f"{task!r} has no score between 0 and 1 for every question (metrics: {', '.join(names) or 'none'}), so "
                "plans cannot be compared on it."
            )
        used[name] = None
        scores.append(score)
    return ", ".join(sorted(used, key=names.index)), tuple(scores)


def _number(value: Any) -> float | None:
    """Return the score of a question from the value of a metric: a number, or an object that has it as "score"."""
    if isinstance(value, Mapping):
        value = value.get("score")
    try:
        number = float(value) if not isinstance(value, str) else None
    except (TypeError, ValueError):
        return None
    return number if number is not None and 0 <= number <= 1 else None


def _first_of_each(samples: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one sample per question, in order; a task with several filters logs each question once per filter."""
    first: dict[int, Mapping[str, Any]] = {}
    for sample in samples:
        first.setdefault(int(sample["doc_id"]), sample)
    return [first[key] for key in sorted(first)]


def _metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among a task's results; the name of a filter is kept if there are several."""
    numbers = {
        key.removesuffix(",none"): float(value)
        for key, value in results.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    }
    return {key: value for key, value in numbers.items() if abs(value) < float("inf")}


def _fingerprint(samples: Iterable[Mapping[str, Any]]) -> str:
    """Return a hash of prompts and expected answers; the samples' own hashes depend on addresses of image objects."""
    known = [
        [sample["doc_id"], [text for text in sample["arguments"] if isinstance(text, str)], sample["target"]]
        for sample in samples
    ]
    text = json.dumps(known, default=lambda value: type(value).__name__)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _quiet() -> Generator[None]:
    """Silence the log of lmms-eval, which lists every file of its tasks; tasks print on standard error."""
    from loguru import logger  # ty: ignore[import-not-found]

    logger.disable("lmms_eval")
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.enable("lmms_eval")

"""Rows of the leaderboard: one JSON line for every model, plan and task."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from math import isfinite
from pathlib import Path
from typing import Any

from foveate.core.errors import FoveateError
from foveate.core.files import write_text
from foveate.core.full_model import FULL_MODEL
from foveate.core.plan import Plan
from foveate.core.text_files import lines_of, read_text

#: Version of the format.
FORMAT = 1
#: Packages whose versions every row has.
PACKAGES = ("foveate", "torch", "transformers", "lmms-eval")
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "bool": (bool,),
    "dict[str, str]": (dict,),
    "dict[str, float]": (dict,),
}


@dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
    """Score of a model with one plan on one task.

    Args:
        format: Version of the format.
        model: Hub id, or a name.
        revision: Commit of the model on the Hub, if known.
        plan: The plan as text; "full model" for the model without a plan.
        task: Name of the task in lmms-eval.
        metric: Metric of the task that `score` is the mean of.
        n: Number of questions.
        complete: Whether these are all questions of the task.
        score: Mean score of a question, 0 to 1.
        low: Lower end of the 95 % interval of the score.
        high: Its upper end.
        relative: Score over that of the full model on the same questions; None if that is 0.
        relative_low: Lower end of its 95 % interval, from a paired bootstrap.
        relative_high: Its upper end; None if the score of the full model was 0 in too many resamples.
        metrics: All metrics of the task, as lmms-eval computes them.
        tokens: Visual tokens per image in the language model, the mean over its layers and the images.
        tokens_full_model: Visual tokens per image of the full model.
        speed_up: Time to the first token of the full model over that of the plan, batch 1; None if not measured.
        dtype: Precision of the weights.
        device: Name of the GPU, or of the CPU.
        versions: Versions of the packages.
        command: Command that made the row.
        date: Day of the evaluation, YYYY-MM-DD, in UTC.

    Raises:
        FoveateError: a value is not possible.
    """

    format: int
    model: str
    revision: str | None
    plan: str
    task: str
    metric: str
    n: int
    complete: bool
    score: float
    low: float
    high: float
    relative: float | None
    relative_low: float | None
    relative_high: float | None
    metrics: dict[str, float]
    tokens: float
    tokens_full_model: float
    speed_up: float | None
    dtype: str
    device: str
    versions: dict[str, str]
    command: str
    date: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kinds = getattr(self, field.name), _TYPES[str(field.type)]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise FoveateError(f"{field.name} cannot be {value!r}; it is of the type {field.type}.")
        if self.format != FORMAT:
            raise FoveateError(f"format {self.format} is not known; this version of foveate reads {FORMAT}.")
        if self.plan != FULL_MODEL:
            Plan.of(self.plan)
        empty = [name for name in ("model", "task", "metric", "dtype", "device") if not getattr(self, name).strip()]
        if empty:
            raise FoveateError(f"{empty[0]} is empty.")
        if not 0 <= self.low <= self.score <= self.high <= 1:
            values = ", ".join(map(str, (self.low, self.score, self.high)))
            raise FoveateError(f"low, score and high must ascend from 0 to 1, not {values}.")
        ends = [end for end in (self.relative_low, self.relative, self.relative_high) if end is not None]
        if ends != sorted(ends) or any(end < 0 or not isfinite(end) for end in ends):
            raise FoveateError(f"relative and its interval cannot be {ends}.")
        if self.plan == FULL_MODEL and self.relative not in (1, None):
            raise FoveateError(f"relative of the full model is 1, not {self.relative}.")
        if self.n < 1 or any(count < 0 or not isfinite(count) for count in (self.tokens, self.tokens_full_model)):
            raise FoveateError(f"n is at least 1 and tokens at least 0, not {self.n} and {self.tokens}.")
        if self.speed_up is not None and (self.speed_up <= 0 or not isfinite(self.speed_up)):
            raise FoveateError(f"speed_up cannot be {self.speed_up}.")
        if any(not isinstance(value, int | float) or not isfinite(value) for value in self.metrics.values()):
            raise FoveateError(f"metrics must be numbers, not {self.metrics}.")
        missing = [name for name in PACKAGES if not isinstance(self.versions.get(name), str)]
        if missing:
            raise FoveateError(f"versions lacks {', '.join(missing)}.")
        try:
            date.fromisoformat(self.date)
        except ValueError:
            raise FoveateError(f"date {self.date!r} is not of the form YYYY-MM-DD.") from None


def read_leaderboard(path: Path) -> list[LeaderboardRow]:
    """Read and check a file of the leaderboard: rows of one model on one machine, each with its full model.

    Raises:
        FoveateError: a line is no row, occurs twice, or has no full model to compare with.
        OSError: the file cannot be read.
    """
    rows: list[LeaderboardRow] = []
    for number, line in enumerate(lines_of(read_text(path)), start=1):
        if line.strip():
            try:
                rows.append(_row(json.loads(line)))
            except ValueError as error:
                raise FoveateError(f"{path}, line {number}: {error}") from error
    if not rows:
        raise FoveateError(f"{path} has no rows.")
    for row in rows:
        if "bench released " not in row.command:
            raise FoveateError(f"{path} has rows of {row.command!r}, which is not `foveate bench released`.")
    if len({(row.model, row.dtype, row.device) for row in rows}) > 1:
        raise FoveateError(f"{path} has rows of several models, precisions or devices; write one file for each.")
    keys = [(row.plan, row.task) for row in rows]
    for plan, task in keys:
        if keys.count((plan, task)) > 1:
            raise FoveateError(f"{path} has {plan} on {task} twice.")
        if (FULL_MODEL, task) not in keys:
            raise FoveateError(f"{path} has no row of the full model on {task}.")
    return rows


def write_leaderboard(path: Path, rows: Sequence[LeaderboardRow]) -> None:
    """Write rows as JSON lines in one step."""
    write_text(path, "".join(json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def _row(values: Any) -> LeaderboardRow:
    if not isinstance(values, dict):
        raise FoveateError("a row is a JSON object.")
    names = {field.name for field in fields(LeaderboardRow)}
    if missing := sorted(names - set(values)):
        raise FoveateError(f"{', '.join(missing)} is missing.")
    if unknown := sorted(set(values) - names):
        raise FoveateError(f"{', '.join(unknown)} is not known.")
    if any(not re.fullmatch(r"[^\x00-\x1f]*", value) for value in values.values() if isinstance(value, str)):
        raise FoveateError("a text has control characters.")
    return LeaderboardRow(**values)

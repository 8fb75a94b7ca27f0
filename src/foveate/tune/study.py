"""Optuna study in a file.

What is drawn depends on the trials that are finished and on the seed alone, not on how often the search was stopped:
the sampler is made anew for every trial, and works in memory; the file gets what is finished. (With measured times the
trials themselves differ a little from run to run.)
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveate.core.errors import FoveateError
from foveate.tune.space import Space

#: Draws from the sampler that may fall on plans that are known, before plans are drawn at random.
_GUIDED = 8
#: Draws after which every plan counts as tried.
_DRAWS = 100
#: Trials at random before the sampler learns from them.
_STARTUP = 10
_PLAN, _RECORD, _IMPOSSIBLE = "plan", "record", "impossible"


def optuna() -> Any:
    """Import optuna with logging turned off.

    Raises:
        FoveateError: it is missing.
    """
    try:
        import optuna as package
    except ImportError as error:
        raise FoveateError("a search needs optuna: pip install 'foveate[bench]'.") from error
    package.logging.set_verbosity(package.logging.ERROR)
    return package


class Study:
    """Trials of one search, in memory and optionally in a file (optuna's journal).

    Args:
        path: The file; None keeps trials in memory only.
        described: Settings that all trials have in common.
        seed: Of the draws.

    Attributes:
        records: what is known of every finished trial, in their order.
        impossible: {"plan", "code", "reason"} of plans that were drawn and cannot run.

    Raises:
        FoveateError: the file is no such study, or was made with other settings; optuna is missing.
    """

    def __init__(self, path: Path | None, described: dict[str, Any], seed: int) -> None:
        self._optuna, self._seed = optuna(), seed
        self._memory = self._optuna.create_study(direction="maximize")
        self._file = self._open(path)
        held = self._file.user_attrs.get("settings") or {}
        if not self._file.trials:  # also of a search that failed before its first trial
            self._file.set_user_attr("settings", described)
            self._file.set_user_attr("space", None)
        elif held != described:
            different = ", ".join(sorted(k for k in {*held, *described} if held.get(k) != described.get(k)))
            folder = "the study" if path is None else path.parent
            raise FoveateError(
                f"{folder} holds a search with other settings ({different}); choose another folder for this one."
            )
        self.records: list[dict[str, Any]] = []
        self.impossible: list[dict[str, str]] = []
        self._known: set[str] = set()
        for trial in self._file.trials:
            self._memory.add_trial(trial)
            if _RECORD in trial.user_attrs:
                self._note(trial.user_attrs[_RECORD])
            elif _IMPOSSIBLE in trial.user_attrs:
                self._refused(trial.user_attrs[_IMPOSSIBLE])

    def _open(self, path: Path | None) -> Any:
        storages = self._optuna.storages
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            if path is None:
                return self._optuna.create_study(direction="maximize")
            _mend(path)
            lock = storages.journal.JournalFileOpenLock(str(path))  # links are not allowed everywhere
            try:
                storage = storages.JournalStorage(storages.journal.JournalFileBackend(str(path), lock_obj=lock))
                return self._optuna.create_study(
                    study_name="foveate", storage=storage, direction="maximize", load_if_exists=True
                )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise FoveateError(f"{path} is not a study of a search; choose another folder.") from error

    def space(self, make: Callable[[], Space]) -> Space:
        """Search space of the study, created at its first trial and then kept."""
        held = self._file.user_attrs.get("space")
        if held is not None:
            return Space.from_json(held)
        space = make()
        self._file.set_user_attr("space", json.loads(json.dumps(space.as_json)))
        return space

    def draw(self, space: Space, refuses: Callable[[str], FoveateError | None]) -> tuple[Any, str] | None:
        """Draw a trial with a plan that was not tried before, or None if there is none.

        Args:
            space: To draw from.
            refuses: Why a plan cannot be attached to the model; None if it can.
        """
        for attempt in range(_DRAWS):
            self._memory.sampler = self._sampler(attempt)
            trial = self._memory.ask()
            plan = space.draw(trial)
            error = None if plan in self._known else refuses(plan)
            if plan not in self._known and error is None:
                return trial, plan
            self.fail(trial, plan, error)
        return None

    def _sampler(self, attempt: int) -> Any:
        seed = (self._seed * 1_000_003 + len(self.records) * 1_009 + attempt) % 2**32
        samplers = self._optuna.samplers
        if attempt >= _GUIDED or len(self.records) < _STARTUP:
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            # In a group are parameters that occur together: a layer has no meaning for half of the plans.
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            return samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=1)

    def finish(self, trial: Any, record: dict[str, Any]) -> None:
        """Record a finished trial; `record` has its plan and its value."""
        trial.set_user_attr(_RECORD, record)
        self._file.add_trial(self._memory.tell(trial, record["value"]))
        self._note(record)

    def fail(self, trial: Any, plan: str, error: FoveateError | None) -> None:
        """Record a rejected draw: its plan cannot run, or (without error) is known already."""
        refused = {_PLAN: plan, **({} if error is None else error.as_json())}
        if error is not None:
            trial.set_user_attr(_IMPOSSIBLE, refused)
        failed = self._memory.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        if error is not None:
            self._file.add_trial(failed)
            self._refused(refused)

    def _note(self, record: dict[str, Any]) -> None:
        self.records.append({"number": len(self.records) + 1, **record})
        self._known.add(record[_PLAN])

    def _refused(self, refused: dict[str, str]) -> None:
        self.impossible.append(refused)
        self._known.add(refused[_PLAN])


def _mend(path: Path) -> None:
    """Remove an incomplete last line of the journal, which a kill leaves behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        content = path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            path.write_bytes(content[:complete])

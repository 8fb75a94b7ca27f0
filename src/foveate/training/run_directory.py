"""The directory of a run: what it is of, its log, and the state that it goes on from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write, write_json
from foveate.core.text_files import read_json
from foveate.core.weights import read_state
from foveate.training.log import RunLog

#: Called with a stage, its steps that are done, all its steps, and the last loss where there is one.
OnProgress = Callable[[str, int, int, float | None], None]


def quiet(stage: str, done: int, total: int, loss: float | None = None) -> None:
    """Progress that nobody watches."""


class RunDirectory:
    """Where a run keeps its log and state: `NAME.run` beside the file or folder NAME that it will write.

    Args:
        output: What the run will write.
        about: What the run is of, in plain types; the directory of another run is refused.
        resume: Whether a run that is there already may be gone on with.

    Attributes:
        path: The directory.
        log: One line a step.

    Raises:
        FoveateError: the directory is of another run, or there is one and `resume` is False.
    """

    def __init__(self, output: Path, about: Mapping[str, Any], resume: bool = True) -> None:
        check_output(output)
        self.path = output.with_name(f"{output.name}.run")
        self.log = RunLog(self.path / "log.jsonl")
        known = self.path / "about.json"
        if not known.is_file():
            self.path.mkdir(exist_ok=True)
            write_json(known, about)
            return
        if not resume:
            raise FoveateError(f"{self.path} holds a run already; remove it, or leave --no-resume out to go on.")
        before = read_json(known)
        if differs := sorted(name for name in before.keys() | about if before.get(name) != about.get(name)):
            raise FoveateError(
                f"{self.path} holds a run with another {', '.join(differs)}; remove it, or write another file."
            )

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace the state: tensors, numbers, texts, lists and dictionaries.

        Raises:
            FoveateError: it could not be written.
        """
        with atomic_write(self._state) as partial:
            torch.save(dict(state), partial)

    def load_state(self, keys: Iterable[str], device: Any = "cpu") -> dict[str, Any] | None:
        """The state that was saved last; None where there is none.

        Args:
            keys: What it must hold.
            device: Where its tensors go.

        Raises:
            FoveateError: it is damaged, or of another kind of run.
        """
        return read_state(self._state, keys, device) if self._state.is_file() else None

    @property
    def _state(self) -> Path:
        return self.path / "state.pt"


def check_output(output: Path) -> None:
    """Refuse what could not be written when a run ends.

    Raises:
        FoveateError: its folder does not exist.
    """
    if not output.parent.is_dir():
        raise FoveateError(f"there is no folder {output.parent} to write {output.name} into.")

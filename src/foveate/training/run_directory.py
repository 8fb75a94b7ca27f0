"""The directory of a run: its identity, its log, and the state that it resumes from."""

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

#: Called with a stage, its finished steps, all its steps, and the last loss, if there is one.
OnProgress = Callable[[str, int, int, float | None], None]


def quiet(stage: str, done: int, total: int, loss: float | None = None) -> None:
    """Ignore progress."""


class RunDirectory:
    """Directory of a run's log and state: `NAME.run` next to the file or folder NAME that it will write.

    Args:
        output: File or folder that the run will write.
        about: Identity of the run, in plain types; the directory of another run that has begun is refused.
        resume: Whether an existing run may be resumed.

    Attributes:
        path: The directory.
        log: The log.

    Raises:
        FoveateError: the directory is of another run, or there is one and `resume` is False.
    """

    def __init__(self, output: Path, about: Mapping[str, Any], resume: bool = True) -> None:
        check_output(output)
        self.path = output.with_name(f"{output.name}.run")
        self.log = RunLog(self.path / "log.jsonl")
        known = self.path / "about.json"
        if not self._begun:
            self.path.mkdir(exist_ok=True)
            write_json(known, about)
            return
        if not resume:
            raise FoveateError(f"{self.path} contains a run already; remove it, or leave --no-resume out to resume it.")
        before = read_json(known)
        if differs := sorted(name for name in before.keys() | about if before.get(name) != about.get(name)):
            raise FoveateError(
                f"{self.path} contains a run with another {', '.join(differs)}; remove it, or write another file."
            )

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Save the state, replacing the last one: tensors, numbers, strings, lists and dictionaries.

        Raises:
            FoveateError: it could not be written.
        """
        with atomic_write(self._state) as partial:
            torch.save(dict(state), partial)

    def load_state(self, keys: Iterable[str], device: Any = "cpu") -> dict[str, Any] | None:
        """Load the last saved state; None where there is none.

        Args:
            keys: Keys that it must have.
            device: Device of its tensors.

        Raises:
            FoveateError: it is damaged, or of another type of run.
        """
        return read_state(self._state, keys, device) if self._state.is_file() else None

    @property
    def _begun(self) -> bool:
        """Whether it holds more than the identity of a run, which may have been refused before it did anything."""
        return self.path.is_dir() and any(file.name != "about.json" for file in self.path.iterdir())

    @property
    def _state(self) -> Path:
        return self.path / "state.pt"


def check_output(output: Path) -> None:
    """Check that a run will be able to write its output.

    Raises:
        FoveateError: its folder does not exist.
    """
    if not output.parent.is_dir():
        raise FoveateError(f"there is no folder {output.parent} to write {output.name} into.")

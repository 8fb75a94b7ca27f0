"""Methods with trained weights, named in the plan or found next to the model's weights."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from functools import lru_cache
from os import PathLike, fspath
from pathlib import Path
from typing import ClassVar, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from foveate.core.errors import FoveateError, Refusal
from foveate.core.weights import file_of


class Trained:
    """Mixin of trained methods: where their weights are.

    A plan may name them, `covipal(weights=DIR):25%`. One that does not, `covipal:25%`, finds them next to the weights
    of the model it is attached to, in a folder or on the Hub, under the name of the method: a folder (`covipal/`) or a
    file (`focusui.safetensors`), whichever `foveate train-method NAME` writes.
    """

    trained: ClassVar[bool] = True
    #: Files of the weights, relative to the folder of the model.
    files: ClassVar[tuple[str, ...]]
    name: ClassVar[str]

    weights: str
    #: The path next to the model. No field: a plan reads the same whatever model it is attached to.
    _resolved: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", str(self.weights))

    @property
    def path(self) -> str:
        """The folder or file of the weights; "" as long as none is known."""
        return self.weights or self._resolved

    def resolve_weights(self, location: str | PathLike[str]) -> Self:
        """This method with the weights next to a model; itself, if it names its weights.

        Args:
            location: Folder or Hub id of the model; "" for one that came from nowhere.
        """
        if self.weights:
            return self
        resolved = copy.copy(self)  # forgets the weights next to another model
        object.__setattr__(resolved, "_resolved", self._found(location))
        return resolved

    def portable(self, folder: Path, copied: dict[str, str]) -> Self:
        """See `Method.portable`; the weights are found next to the model afterwards."""
        if not self.path:
            return self
        before = copied.setdefault(self.name, self.path)
        if before != self.path:
            raise FoveateError(
                f"a folder has one place for weights of {self.name}, and this plan has those of {before} and of "
                f"{self.path}."
            )
        self.copy_to(folder)
        return dataclasses.replace(self, weights="")  # ty: ignore[invalid-argument-type]

    def copy_to(self, folder: str | PathLike[str]) -> None:
        """Copy the weights to where the method finds them next to the model in `folder`.

        Raises:
            FoveateError: they cannot be read or written.
        """
        source, single = Path(self.path), len(self.files) == 1
        for file in self.files:
            copy_file(self.name, source if single else source / Path(file).name, Path(folder) / file)

    def _found(self, location: str | PathLike[str]) -> str:
        try:
            here, place = Path(location).is_dir(), fspath(location)
            files = [file_of(place, file) if here else _on_the_hub(place, file) for file in self.files if place]
        except OSError:  # neither a folder nor the id of a model
            return ""
        if not files or None in files:
            return ""
        return str(files[0] if len(files) == 1 else Path(str(files[0])).parent)

    def check_weights(self) -> None:
        """Refuse to go on without weights.

        Raises:
            FoveateError: none are named, and none are next to the model.
        """
        if not self.path:
            place, *more = self.files
            kind, here = ("folder", Path(place).parent) if more else ("file", place)
            raise FoveateError(
                Refusal(
                    "needs-weights",
                    f"{self.name} needs trained weights: {self.name}(weights={kind.upper()}), a {kind} that "
                    f"`foveate train-method {self.name}` wrote, or one next to the model's weights as {here}",
                )
            )


def copy_file(name: str, file: Path, target: Path) -> None:
    """Copy a file of the method `name`, unless it is there already.

    Raises:
        FoveateError: it cannot be read or written.
    """
    try:
        if not (target.exists() and target.samefile(file)):
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    except OSError as error:
        raise FoveateError(f"{name}: {file} cannot be copied to {target}: {error.strerror}.") from error


@lru_cache(maxsize=64)
def _on_the_hub(location: str, file: str) -> str:
    """`file_of` of a Hub id: asked once, though a server attaches plans for every request."""
    path = file_of(location, file)
    if path is None:
        raise FileNotFoundError(file)  # nothing is remembered of what is not there, or not now
    return path


def read_file(
    path: str | PathLike[str], kind: str, name: str, also: str = ""
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What a safetensors file of a small network says of itself, and its tensors.

    Args:
        path: The file.
        kind: What it must say that it is.
        name: Of the method, for errors.
        also: A second command that writes such files, in addition to `foveate train-method`.

    Raises:
        FoveateError: it is not there, or something else.
    """
    command = " or ".join([f"`foveate train-method {name}`", *([f"`{also}`"] if also else [])])
    if not Path(path).is_file():
        raise FoveateError(f"{name}: there is no file {str(path)!r}; {command} writes one.")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except SafetensorError as error:
        raise FoveateError(f"{name}: {path} is no safetensors file: {error}") from error
    if about.get("kind") != kind:
        raise FoveateError(f"{name}: {path} holds nothing that {command} wrote.")
    return about, tensors

"""Examples and recipes that are part of the package: `--example receipt`, `recipe:tiny`.

They lie in `examples/` and `recipes/` of the repository, where people read them. The wheel has copies in the package
(see pyproject.toml); an editable installation reads those of the repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json

#: How the name of a recipe of the package begins.
RECIPE = "recipe:"

#: The only list of example images and their questions, written by `benchmarks/examples.py`.
TABLE = Path(__file__).with_name("examples.json")


@dataclass(frozen=True)
class Example:
    """An image of the package with questions that the embedded model answers rightly.

    Attributes:
        name: of the image, without its ending.
        number: of the drawing, in `examples/draw.py`.
        questions: questions with their answers, the one to start with first.
    """

    name: str
    number: int
    questions: tuple[tuple[str, str], ...]

    @property
    def image(self) -> str:
        """File name of the image."""
        return f"{self.name}.png"


@cache
def examples() -> tuple[Example, ...]:
    """The examples in the order in which they are offered; the first question of the first one is the demonstration."""
    return tuple(
        Example(row["name"], row["number"], tuple((question, answer) for question, answer in row["questions"]))
        for row in read_json(TABLE)["examples"]
    )


def demonstration_plan() -> str:
    """The plan of the demonstration: right on its question, where random tokens and a smaller image are not."""
    return read_json(TABLE)["plan"]


def folder(name: str) -> Path:
    """Return the folder "examples" or "recipes", of the installed package or of the repository."""
    package = Path(__file__).parent
    return installed if (installed := package / name).is_dir() else package.parents[1] / name


def example(name: str) -> Path:
    """Return the image file of an example.

    Raises:
        FoveateError: there is no such example.
    """
    return _file(folder("examples"), name, ".png", "example")


def recipe(name: str, ending: str = ".yaml") -> Path:
    """Return the file of a recipe: `recipe:NAME` is one of the package, anything else a path, which is not checked.

    Names of recipes in a subfolder begin with it: `recipe:connectors/tokenpacker`.

    Raises:
        FoveateError: the package has no such recipe with this ending.
    """
    if not name.startswith(RECIPE):
        return Path(name)
    return _file(folder("recipes"), name.removeprefix(RECIPE), ending, "recipe", RECIPE)


def _file(directory: Path, name: str, ending: str, kind: str, prefix: str = "") -> Path:
    paths = sorted(directory.rglob(f"*{ending}"), key=lambda path: (path.parent, path.name))
    files = {path.relative_to(directory).with_suffix("").as_posix(): path for path in paths}
    if not files:
        raise FoveateError(
            f"this installation of foveate has no {kind}s: install the wheel or a clone of the repository."
        )
    if name not in files:
        close = get_close_matches(name, files, 1)
        hint = f"did you mean {prefix}{close[0]}? " if close else ""
        possible = ", ".join(f"{prefix}{stem}" for stem in files)
        raise FoveateError(f"there is no {kind} {prefix + name!r}; {hint}possible are {possible}.")
    return files[name]

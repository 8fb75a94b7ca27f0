"""What is trained: connectors at several numbers of tokens. A new connector is a line in `SYSTEMS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveate.core.errors import FoveateError
from foveate.core.plan import Plan


@dataclass(frozen=True)
class Training:
    """One training, and the lengths at which its model is evaluated.

    Args:
        system: Name of its `System`.
        name: Of its folder: the system, and the number of tokens where that is fixed.
        recipe: Name of its recipe in the package.
        lengths: Tokens of an image; several for a nested connector.
        options: Options of the connector that replace those of the recipe.
        plan: Method that chooses a length of a nested connector, such as "m3".
        image_size: Side of the images in pixels; None: that of the recipe.
    """

    system: str
    name: str
    recipe: str
    lengths: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    plan: str = ""
    image_size: int | None = None

    @property
    def plans(self) -> dict[int, str]:
        """The plan of every length; empty where the connector has one length."""
        return {tokens: str(Plan.of(f"{self.plan}:{tokens}")) for tokens in self.lengths} if self.plan else {}


@dataclass(frozen=True)
class System:
    """A connector in the comparison.

    Args:
        name: In tables.
        lengths: Options of the connector that give a number of tokens. Each is a training of its own.
        nested: Numbers of tokens of one training of a nested connector.
        plan: Method that chooses them; default: the name.
        image_sizes: Sides of smaller images in pixels, by their number of tokens. Each is a training of its own.
        recipe: Of recipes/ in the package; default: connectors/NAME.
        control: Whether it is no paper, but what papers are compared with.
    """

    name: str
    lengths: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    nested: tuple[int, ...] = ()
    plan: str = ""
    image_sizes: Mapping[int, int] = field(default_factory=dict)
    recipe: str = ""
    control: bool = False

    @property
    def trainings(self) -> list[Training]:
        """Its trainings."""
        recipe = self.recipe or f"connectors/{self.name}"
        made = [
            Training(self.name, f"{self.name}-{tokens}", recipe, (tokens,), options)
            for tokens, options in self.lengths.items()
        ]
        made += [
            Training(self.name, f"{self.name}-{tokens}", recipe, (tokens,), image_size=side)
            for tokens, side in self.image_sizes.items()
        ]
        if self.nested:
            made.append(Training(self.name, self.name, recipe, self.nested, plan=self.plan or self.name))
        return made


#: Squares of 12 x 12 patches that give 36, 16, 9 and 4 tokens; the papers have the first three on 24 x 24 patches.
_SCALES = {tokens: {"scale": scale} for tokens, scale in ((36, 2), (16, 3), (9, 4), (4, 6))}

SYSTEMS: tuple[System, ...] = (
    System("mlp", {144: {}}, control=True),
    System("smaller-image", image_sizes={36: 84, 16: 56, 9: 42, 4: 28}, recipe="connectors/mlp", control=True),
    System("average", _SCALES, control=True),
    System("pixel_unshuffle", _SCALES, control=True),
    System("tokenpacker", _SCALES),
    System("fourier", {36: {"ratio": 1 / 2}, 16: {"ratio": 1 / 3}, 9: {"ratio": 1 / 4}}),
    System("oryx", nested=(9, 36, 144)),
    System("m3", nested=(1, 9, 36, 144)),
    System("mqt", nested=(4, 16, 36, 144)),
    System("tokenflex", nested=(16, 36, 144)),
    System("quecc", _SCALES),
    System("llava_mini", {1: {}}),
    System("llava_mini-no-prefusion", {1: {"prefusion_layers": 0}}, recipe="connectors/llava_mini", control=True),
    System("m3-separate", {36: {"tokens": 36}, 9: {"tokens": 9}}, recipe="connectors/m3", control=True),
)

#: Lengths whose trainings run first, after the nested ones: an unfinished table then compares systems at one length.
_FIRST = (36, 9, 144, 16, 4)


def systems_by_name() -> dict[str, System]:
    """Every system by its name."""
    return {system.name: system for system in SYSTEMS}


def trainings(only: Sequence[str] = ()) -> list[Training]:
    """Trainings in the order in which they run.

    Args:
        only: Names of systems or trainings; empty: all.

    Raises:
        FoveateError: A name is none of them.
    """
    made = [training for system in SYSTEMS for training in system.trainings]
    known = dict.fromkeys(name for training in made for name in (training.system, training.name))
    if unknown := [name for name in only if name not in known]:
        raise FoveateError(f"there is no training {unknown[0]!r}; possible are {', '.join(known)}.")
    chosen = [training for training in made if not only or {training.system, training.name} & set(only)]
    return sorted(chosen, key=_place)


def _place(training: Training) -> int:
    if len(training.lengths) > 1:
        return -1
    tokens = training.lengths[0]
    return _FIRST.index(tokens) if tokens in _FIRST else len(_FIRST)

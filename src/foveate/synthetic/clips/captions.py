"""What happens in each part of a rendered clip, in words: more of them where more happens."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from itertools import pairwise

from foveate.core.errors import FoveateError
from foveate.synthetic.clips.scene import Actor, Scene
from foveate.synthetic.shapes import COLOURS, KINDS

#: Pixels by which a shape that is said to move moves at least.
_LEAST_MOVE = 2.0
NOTHING = "nothing"
#: The word that ends a caption, and all words by their numbers; texts of signs are spelled.
END = 0
WORDS = (
    "</s>", ",", NOTHING, *COLOURS, *KINDS, "appears", "disappears", "blinks", "and", "moves", "left", "right", "up",
    "down", "sign", "then", *string.ascii_letters, *string.digits, *sorted(set(string.punctuation) - {","}),
)  # fmt: skip


def captions(scene: Scene, timestamps: Sequence[float], frames: int) -> list[str]:
    """Describe every `frames` frames of a clip, and the rest, in which there may be fewer.

    A caption names the shapes that are shown, from the left to the right, with what they do in these frames: "red
    circle moves left, blue star". The text of a sign is in quotes. Of an empty part it is "nothing".

    Args:
        scene: Of the clip.
        timestamps: Second of every frame.
        frames: Frames of a caption.
    """
    return [_caption(scene, timestamps[first : first + frames]) for first in range(0, len(timestamps), frames)]


def _caption(scene: Scene, seconds: Sequence[float]) -> str:
    shown = [actor for actor in scene.actors if any(map(actor.visible, seconds))]
    shown.sort(key=lambda actor: actor.place(seconds[0])[0])
    said = [_said(actor, seconds) for actor in shown]
    if scene.sign is not None:
        said.append("sign " + " then ".join(f'"{text}"' for text in dict.fromkeys(map(scene.sign.text, seconds))))
    return ", ".join(said) or NOTHING


def _said(actor: Actor, seconds: Sequence[float]) -> str:
    visible = [actor.visible(second) for second in seconds]
    changes = [after for before, after in pairwise(visible) if before != after]
    if len(changes) > 1:
        return f"{actor.name} blinks" if actor.act == "blink" else f"{actor.name} appears and disappears"
    if changes:
        return f"{actor.name} {'appears' if changes[0] else 'disappears'}"
    places = [actor.place(second) for second in seconds]
    moved = max(abs(last - first) for last, first in zip(places[-1], places[0], strict=True))
    return f"{actor.name} moves {actor.direction}" if moved >= _LEAST_MOVE else actor.name


def word_ids(caption: str) -> list[int]:
    """Numbers in `WORDS` of the words of a caption, with the one that ends it.

    Raises:
        FoveateError: it has a word that `captions` does not write.
    """
    words: list[str] = []
    for part in re.findall(r'"[^"]*"|,|[^\s,]+', caption):
        words += [character for character in part[1:-1] if character != " "] if part.startswith('"') else [part]
    if unknown := [word for word in words if word not in _NUMBERS]:
        raise FoveateError(f"captions of rendered clips have no word {unknown[0]!r}.")
    return [*(_NUMBERS[word] for word in words), END]


_NUMBERS = {word: number for number, word in enumerate(WORDS)}

"""Wordings of questions, kept in `wordings.txt`: one section for each thing that is asked, one wording a line.

A line that begins with `~` names what is asked for; it stands for all wordings of the section `general` with that in
their slot. The last third of every section with six or more is held out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_OPENINGS = (
    "Please tell me: ",
    "Tell me, ",
    "Look at the image. ",
    "Question: ",
    "Quick question: ",
    "Can you tell me: ",
)
_HELD_OUT_OPENINGS = ("I need to know: ", "Looking at this picture, ", "Answer briefly: ")


#: Share of questions with a slip of the keys, outside their slots.
TYPOS = 0.06


def _mistyped(rng: random.Random, wording: str) -> str:
    """One letter of a word left out, doubled or changed for its neighbour; slots stay as they are."""
    places = [i for i in range(1, len(wording) - 1) if wording[i - 1 : i + 2].isalpha()]
    slots = [match.span() for match in re.finditer(r"\{\w+\}", wording)]
    places = [i for i in places if not any(start <= i < end for start, end in slots)]
    if not places:
        return wording
    i = rng.choice(places)
    kind = rng.random()
    if kind < 0.4:
        return wording[:i] + wording[i + 1 :]
    if kind < 0.6:
        return wording[:i] + wording[i] + wording[i:]
    return wording[: i - 1] + wording[i] + wording[i - 1] + wording[i + 1 :]


@cache
def _sections() -> dict[str, tuple[str, ...]]:
    sections: dict[str, tuple[str, ...]] = {}
    for block in Path(__file__).with_name("wordings.txt").read_text(encoding="ascii").strip().split("\n\n"):
        name, *lines = block.split("\n")
        own = [line for line in lines if not line.startswith("~")]
        named = [line[1:].strip() for line in lines if line.startswith("~")]
        general = [way.replace("{x}", one) for one in named for way in sections.get("general", ())]
        middle = len(own) - len(own) // 3
        sections[name.strip("[]")] = (*own[:middle], *general, *own[middle:])
    return sections


def wordings(section: str) -> tuple[str, ...]:
    """All ways to ask one thing; `{...}` are slots."""
    return _sections()[section]


def choose(rng: random.Random, split: str, ways: Sequence[str]) -> str:
    """One of `ways`; of held-out samples half get a wording that is held out."""
    reserved = len(ways) // 3 if len(ways) >= 6 else 0
    if split == "heldout" and reserved and rng.random() < 0.5:
        return rng.choice(ways[-reserved:])
    return rng.choice(ways[: len(ways) - reserved])


def ask(rng: random.Random, split: str, ways: Sequence[str], **words: str) -> str:
    """One of `ways` with `words` in its slots, in a random style: with or without question mark and capital."""
    wording = choose(rng, split, ways)
    if rng.random() < TYPOS:
        wording = _mistyped(rng, wording)
    first_is_slot = wording.startswith("{")
    question = wording.format(**words)
    style = rng.random()
    if style < 0.14:
        question = question.rstrip("?.")
    elif style < 0.2:
        question = question.replace("?", " ?")
    if rng.random() < 0.3 and not first_is_slot:
        question = question[0].lower() + question[1:]
    elif rng.random() < 0.06:
        opening = rng.choice(_HELD_OUT_OPENINGS if split == "heldout" else _OPENINGS)
        question = opening + (question if first_is_slot else question[0].lower() + question[1:])
    return question


def yes_no(truth: bool) -> str:
    """The answer "yes" or "no"."""
    return "yes" if truth else "no"

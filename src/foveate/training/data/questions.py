"""Wordings. Each task has a list of ways to ask; the last third of every list with six or more is held out."""

from __future__ import annotations

import random
from collections.abc import Sequence

_OPENINGS = ("Please tell me: ", "Tell me, ", "Look at the image. ", "Question: ", "Quick question: ", "Can you tell me: ")
_HELD_OUT_OPENINGS = ("I need to know: ", "Looking at this picture, ", "Answer briefly: ")


def ask(rng: random.Random, split: str, wordings: Sequence[str], **words: str) -> str:
    """One of `wordings` with `words` put in, in a random style: with or without question mark and capital."""
    reserved = len(wordings) // 3 if len(wordings) >= 6 else 0
    if split == "heldout" and reserved and rng.random() < 0.5:
        wording = rng.choice(wordings[-reserved:])
    else:
        wording = rng.choice(wordings[: len(wordings) - reserved])
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
    return "yes" if truth else "no"


ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

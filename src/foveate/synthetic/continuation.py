"""Questions that ask what is written after a word: many characters to copy, found by the word before them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from foveate.synthetic.questions import ask, wordings
from foveate.synthetic.sample import Character, height_of

#: Pixels by which the middles of one line differ at most, on a page that may be turned a little.
_LEVEL = 3.0
_READ_ON = wordings("page.read_on")


def read_on(
    rng: random.Random, split: str, runs: Sequence[str], characters: Sequence[Character], longest: int = 40
) -> tuple[str, str] | None:
    """A question for what follows a word of a page, and its answer.

    Args:
        rng: All randomness.
        split: "train" or "heldout": wordings of that split.
        runs: The texts of the page in drawing order.
        characters: Their characters without spaces.
        longest: Characters of the answer at most.

    Returns:
        None where no word of three or more letters and digits is written exactly once and followed, in reading order,
        by another.
    """
    words = [word for run in runs for word in run.split()]
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word))
    if starts[-1] != len(characters):
        return None
    counts = Counter(word.lower() for word in words)
    anchors = [
        i
        for i in range(len(words) - 1)
        if re.fullmatch("[A-Za-z0-9]{3,}", words[i])
        and counts[words[i].lower()] == 1
        and _follows(characters[starts[i + 1] - 1], characters[starts[i + 1]])
    ]
    if not anchors:
        return None
    anchor = rng.choice(anchors)
    answer = words[anchor + 1]
    for i in range(anchor + 2, len(words)):
        in_order = _follows(characters[starts[i] - 1], characters[starts[i]])
        if not in_order or len(answer) + 1 + len(words[i]) > longest:
            break
        answer += f" {words[i]}"
    return ask(rng, split, _READ_ON, word=words[anchor]), answer


def _follows(last: Character, first: Character) -> bool:
    """Whether `first` is read after `last`: to its right in the same line, or in a line below."""
    below = height_of(first) - height_of(last)
    return below > _LEVEL or (below >= -_LEVEL and first.x > last.x)

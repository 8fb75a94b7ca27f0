"""Times of the frames of a clip, read from the prompt, where processors write one next to each frame."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from foveate.runtime.question_tokens import TIME_BEFORE, PromptReader

#: Time of a frame, as processors write it behind the frame's tokens.
_TIME_AFTER = re.compile(r"(?P<seconds>\d+(\.\d+)?)(?P<clock>)([ ▁Ġ]seconds)?")
#: Tokens next to a frame among which its time is looked for.
_LONGEST = 24


def written_times(
    reader: PromptReader, ids: Sequence[int], spans: Sequence[tuple[int, int]], side: Literal["before", "after"]
) -> list[float] | None:
    """Seconds of the frames of a clip; None where one of them has no time in the prompt.

    Args:
        reader: Reads the model's vocabulary.
        ids: Ids of the prompt.
        spans: First position of every frame's tokens, and the one behind its last.
        side: Where its time is.
    """
    times = []
    for start, stop in spans:
        if side == "before":
            nearby = _run(reader, ids, range(start - 1, max(start - 1 - _LONGEST, -1), -1))[::-1]
            found = TIME_BEFORE.search("".join(reader.pieces(nearby)))
        else:
            nearby = _run(reader, ids, range(stop, min(stop + _LONGEST, len(ids))))
            found = _TIME_AFTER.match("".join(reader.pieces(nearby)))
        if found is None:
            return None
        times.append(_seconds(found["seconds"] or "", found["clock"] or ""))
    return times


def _run(reader: PromptReader, ids: Sequence[int], places: Iterable[int]) -> list[int]:
    """Ids of the first run of text; special tokens before it are passed over."""
    text: list[int] = []
    for place in places:
        if ids[place] in reader.special:
            if text:
                break
        else:
            text.append(ids[place])
    return text


def _seconds(seconds: str, clock: str) -> float:
    """Seconds, or hours, minutes and seconds, as a number."""
    if seconds:
        return float(seconds)
    total = 0.0
    for part in clock.split(":"):
        total = 60 * total + float(part)
    return total

"""Exact match of answers after normalisation."""

from __future__ import annotations

import re
import unicodedata

_NUMBER = re.compile(r"(?P<sign>[+-]?)(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?:\.(?P<rest>\d+))?(?P<percent>%?)")
_QUOTES = "\"'\u2018\u2019\u201c\u201d`"


def normal(text: str) -> str:
    """Normalise a text for comparison.

    - Unicode is brought to its compatible form (NFKC), and case does not count.
    - White space at both ends goes; within, any of it is one blank.
    - Quotes around the whole text and `. , ; : ! ?` at its end are removed.
    - A word that is a number loses commas between groups of three digits, zeros at the end of its decimals and a plus
      sign: 1,200.50, 1200.50 and +1200.5 are the same. Zeros at the front stay, for 007 is a code; so does every unit,
      currency or per cent sign; a comma between other groups of digits is kept.

    Nothing else is taken away: "yes, it is" is not "yes", "12.40" is not "$12.40".
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    while text:
        shorter = text.rstrip(".,;:!? ")
        if len(shorter) > 1 and shorter[0] in _QUOTES and shorter[-1] in _QUOTES:
            shorter = shorter[1:-1].strip()
        if shorter == text or not shorter:  # a text of punctuation alone is kept
            break
        text = shorter
    return " ".join(map(_number, text.split()))


def matches(text: str, answer: str) -> bool:
    """Whether a text equals the right answer after normalisation; see `normal`."""
    return normal(text) == normal(answer)


def _number(word: str) -> str:
    match = _NUMBER.fullmatch(word)
    if match is None:
        return word
    rest = (match["rest"] or "").rstrip("0")
    sign = "-" if match["sign"] == "-" else ""
    return sign + match["whole"].replace(",", "") + (f".{rest}" if rest else "") + match["percent"]

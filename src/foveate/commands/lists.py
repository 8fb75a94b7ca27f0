"""Parsing of comma-separated options."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.core.errors import FoveateError


def names_in(text: str | None) -> tuple[str, ...]:
    """Parse the names in `a,b`; an empty text has none."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def sides_in(text: str) -> tuple[int, int]:
    """Parse the shortest and the longest side of pages, in pixels.

    Raises:
        FoveateError: the text is not two numbers.
    """
    return pair_in(text, "--sides", "the shortest and the longest side, such as 128,640")


def pair_in(text: str, option: str, what: str) -> tuple[int, int]:
    """Parse the two whole numbers in `128,640`.

    Raises:
        FoveateError: the text is not two numbers; the message says `what` they must be.
    """
    ends = numbers_in(text, option)
    if len(ends) != 2:
        raise FoveateError(f"{option} {text!r} must be {what}.")
    return ends[0], ends[1]


def numbers_in(text: str, option: str) -> tuple[int, ...]:
    """Parse the whole numbers in `1,8`.

    Raises:
        FoveateError: the text contains something else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise FoveateError(f"{option} {text!r} must be comma-separated whole numbers, such as 1,8.") from None


def plans_in(options: Sequence[str] | None) -> tuple[str, ...]:
    """Parse the plans in options such as `divprune:64; pool:25%`, separated by semicolons."""
    return tuple(plan.strip() for option in options or () for plan in option.split(";") if plan.strip())

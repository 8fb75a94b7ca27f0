"""Lists in options, written with commas."""

from __future__ import annotations

import re

from foveate.errors import FoveateError


def names_in(text: str | None) -> tuple[str, ...]:
    """The names in `a,b`; none where nothing is given."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def numbers_in(text: str, option: str) -> tuple[int, ...]:
    """The whole numbers in `1,8`.

    Raises:
        FoveateError: there is something else in it.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise FoveateError(f"{option} {text!r} must be whole numbers with commas, such as 1,8.") from None


def plans_in(text: str | None) -> tuple[str, ...]:
    """The plans in `a(x=1, y=2):64, b:50%@8,16`: commas within parentheses and between layers part nothing."""
    found: list[str] = []
    depth, start = 0, 0
    for place, char in enumerate(text or ""):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            found.append((text or "")[start:place])
            start = place + 1
    found.append((text or "")[start:])
    plans: list[str] = []
    for part in found:
        if plans and re.fullmatch(r"[\d\s]+(\+.*)?", part) and re.search(r"@[\d,\s]+$", plans[-1]):
            plans[-1] += "," + part.rstrip()
        elif part.strip():
            plans.append(part.strip())
    return tuple(plans)

"""Shell wildcards that match names and titles."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar


class Named(Protocol):
    """Anything with a name and a title: an entry, or a card of what acts outside of plans."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def title(self) -> str:
        """Title of its paper."""


T = TypeVar("T", bound=Named)


def matching(entries: Iterable[T], pattern: str | None) -> list[T]:
    """Those whose name or title shell wildcards (`*`, `?`, `[ab]`) match, in any case; None matches all."""
    if pattern is None:
        return list(entries)
    lowered = pattern.lower()
    return [entry for entry in entries if any(fnmatchcase(text.lower(), lowered) for text in (entry.name, entry.title))]

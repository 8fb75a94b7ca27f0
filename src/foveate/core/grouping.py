"""Indices of equal values, for work that is done once for each of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

V = TypeVar("V", bound=Hashable)


def indices_by_value(values: Iterable[V]) -> dict[V, list[int]]:
    """The indices of every value, ascending; values are in the order in which they occur first."""
    indices: dict[V, list[int]] = {}
    for index, value in enumerate(values):
        indices.setdefault(value, []).append(index)
    return indices

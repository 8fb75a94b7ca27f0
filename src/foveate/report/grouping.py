"""Families of methods, taken from the registry, which share a colour."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from foveate.core.full_model import FULL_MODEL
from foveate.core.method import Site


class Group(NamedTuple):
    """A family of methods.

    Attributes:
        key: short name.
        title: shown in legends.
        colour: of its marks on white and on near-black.
        marker: its shape, as matplotlib names it.
    """

    key: str
    title: str
    colour: str
    marker: str


GROUPS: dict[str, Group] = {
    group.key: group
    for group in (
        Group("full-model", "full model", "#7d8590", "*"),
        Group("control", "controls", "#8c959f", "X"),
        Group("attention", "attention of the encoder", "#0e8fc4", "o"),
        Group("features", "features of the tokens", "#1a9e6f", "s"),
        Group("prompt", "asks the prompt", "#c46ba0", "^"),
        Group("encoder", "inside the encoder", "#d9730d", "D"),
        Group("decoder", "inside the language model", "#8b6fd6", "v"),
        Group("acquisition", "ask for more of the image", "#b5507a", "h"),
        Group("connector", "trained connectors", "#0e8fc4", "s"),
        Group("other", "several steps, or unknown", "#b8901c", "P"),
    )
}

#: Kinds of needs that depend on the question.
_PROMPT = ("instruction", "text_feature", "first_layer_attention")


@cache
def entries() -> dict[str, Any]:
    """Return the gallery entry of every registered method by name."""
    from foveate.gallery import gallery

    return {entry.name: entry for entry in gallery()}


@cache
def group_of(method: str) -> Group:
    """Return the family of a method by its name."""
    if method == FULL_MODEL:
        return GROUPS["full-model"]
    entry = entries().get(method)
    if entry is None:
        return GROUPS["other"]
    if not entry.paper:
        return GROUPS["control"]
    if entry.site == Site.DECODER:
        return GROUPS["decoder"]
    if entry.site == Site.ACQUISITION:
        return GROUPS["acquisition"]
    if entry.site == Site.ENCODER:
        return GROUPS["encoder"]
    if any(kind in _PROMPT for kind in entry.needs):
        return GROUPS["prompt"]
    return GROUPS["attention" if entry.needs else "features"]

"""The plan name that stands for the uncompressed model."""

from __future__ import annotations

#: Name of the uncompressed model where plans are compared or chosen.
FULL_MODEL = "full model"


def is_full_model(text: str) -> bool:
    """Whether a plan's text names the uncompressed model: "full model" or "full-model", in any case."""
    return text.strip().lower().replace("-", " ") == FULL_MODEL

"""Activation checkpointing by the name that the installed transformers gives it."""

from __future__ import annotations

from typing import Any


def checkpoint(model: Any, *, reentrant: bool = False) -> None:
    """Let the layers of a model run again for their gradients."""
    options = {"use_reentrant": reentrant}
    if hasattr(model, "activation_checkpointing_enable"):  # since transformers 5.24
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)

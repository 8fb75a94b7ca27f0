"""Names of a LLaVA's weights: published models have others than transformers 5 saves, and vLLM reads the former."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

#: Towers whose weights transformers 5 saves without the name of the model inside.
_TOWERS = ("clip_vision_model", "siglip_vision_model")
_INSIDE = "vision_model."


def as_published(config: Any, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Weights under the names of published models, whichever of both they had.

    Args:
        config: Of the model.
        weights: Names and tensors, as a file holds them.
    """
    renamed = config.vision_config.model_type in _TOWERS
    for name, value in weights:
        before, tower, after = name.partition("vision_tower.")
        if renamed and tower and not after.startswith(_INSIDE):
            name = before + tower + _INSIDE + after
        yield name, value

"""Parameter names of LLaVA: vLLM reads those of published models, transformers 5 saves others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

#: Towers whose weights transformers 5 saves without the name of the model inside.
_TOWERS = ("clip_vision_model", "siglip_vision_model")
_INSIDE = "vision_model."


def as_published(config: Any, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield weights under the names of published models.

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

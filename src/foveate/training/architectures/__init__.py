"""The kinds of models that recipes can train."""

from __future__ import annotations

from typing import Any

from foveate.core.errors import FoveateError
from foveate.training.architectures.architecture import Architecture
from foveate.training.architectures.llava import Llava
from foveate.training.architectures.llava_uhd import LlavaUHD
from foveate.training.architectures.llava_video import LlavaVideo
from foveate.training.architectures.qwen2_5_vl import Qwen25VL

#: A model is of the first whose classes it has: those of LLaVA for clips derive from those of LLaVA.
ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in (LlavaUHD(), LlavaVideo(), Llava(), Qwen25VL())}


def architecture_named(name: str) -> Architecture:
    """The architecture that a recipe names.

    Raises:
        FoveateError: there is no such architecture.
    """
    if name not in ARCHITECTURES:
        raise FoveateError(f"model.new.architecture: {name!r} is not known; possible are {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]


def architecture_of(thing: Any) -> Architecture:
    """The architecture of a model or of a processor.

    Raises:
        FoveateError: models of this kind cannot be trained by recipes.
    """
    for architecture in ARCHITECTURES.values():
        if isinstance(thing, (architecture.model_class, architecture.processor_class)):
            return architecture
    raise FoveateError(f"{type(thing).__name__} cannot be trained here; possible are {', '.join(ARCHITECTURES)}.")


__all__ = ["ARCHITECTURES", "Architecture", "architecture_named", "architecture_of"]

"""EchoingPixels: audio-visual language models that read a part of their audio and visual tokens."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import transformers

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.models.echoing_pixels.configuration import EchoingPixelsConfig, EchoingPixelsTextConfig

if TYPE_CHECKING:
    from foveate.models.echoing_pixels.modeling import (
        EchoingPixelsForConditionalGeneration,
        EchoingPixelsModel,
        EchoingPixelsTextModel,
    )

__all__ = [
    "EchoingPixelsConfig",
    "EchoingPixelsForConditionalGeneration",
    "EchoingPixelsModel",
    "EchoingPixelsTextConfig",
    "EchoingPixelsTextModel",
    "register",
]


def __getattr__(name: str) -> Any:
    """Import the models when they are first used: not every version of `transformers` has what they extend.

    Raises:
        FoveateError: This one lacks it.
    """
    if name not in ("EchoingPixelsForConditionalGeneration", "EchoingPixelsModel", "EchoingPixelsTextModel"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not compat.HAS_OMNI_THINKER_MODEL:
        raise FoveateError(
            f"EchoingPixels needs transformers 5.21 or newer, and this is {transformers.__version__}: install it with "
            "`pip install -U transformers`."
        )
    return getattr(importlib.import_module(f"{__name__}.modeling"), name)


def register() -> None:
    """Make the Auto classes of `transformers` know EchoingPixels. Calling it again changes nothing.

    Versions before 5.21 have no place for it, and say that they do not recognize its `model_type`.
    """
    if not compat.HAS_OMNI_THINKER_MODEL:
        return
    from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping

    from foveate.models.echoing_pixels.modeling import EchoingPixelsForConditionalGeneration, EchoingPixelsModel
    from foveate.models.llava.released_weights import ReleasedKey

    AutoConfig.register(EchoingPixelsTextConfig.model_type, EchoingPixelsTextConfig, exist_ok=True)
    AutoConfig.register(EchoingPixelsConfig.model_type, EchoingPixelsConfig, exist_ok=True)
    AutoModel.register(EchoingPixelsConfig, EchoingPixelsModel, exist_ok=True)
    AutoModelForMultimodalLM.register(EchoingPixelsConfig, EchoingPixelsForConditionalGeneration, exist_ok=True)
    released = {
        r"^thinker\.model\.bidir_encoder\.layers\.": "model.language_model.refiner.",
        r"^thinker\.model\.compressor\.ln\.": "model.language_model.selector.norm.",
        r"^thinker\.model\.compressor\.score_head\.0\.": "model.language_model.selector.linear_1.",
        r"^thinker\.model\.compressor\.score_head\.2\.": "model.language_model.selector.linear_2.",
        r"^thinker\.model\.": "model.language_model.",
        r"^thinker\.(audio_tower|visual)\.": r"model.\1.",
        r"^thinker\.lm_head\.": "lm_head.",
    }
    register_checkpoint_conversion_mapping(
        EchoingPixelsConfig.model_type, [ReleasedKey(old, new) for old, new in released.items()], overwrite=True
    )

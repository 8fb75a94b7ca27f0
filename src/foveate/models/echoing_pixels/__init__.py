"""EchoingPixels: audio-visual language models that read a part of their audio and visual tokens."""

from foveate.models.echoing_pixels.configuration import EchoingPixelsConfig, EchoingPixelsTextConfig
from foveate.models.echoing_pixels.modeling import EchoingPixelsForConditionalGeneration, EchoingPixelsModel

__all__ = [
    "EchoingPixelsConfig",
    "EchoingPixelsForConditionalGeneration",
    "EchoingPixelsModel",
    "EchoingPixelsTextConfig",
    "register",
]


def register() -> None:
    """Make the Auto classes of `transformers` know EchoingPixels. Calling it again changes nothing."""
    from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping

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

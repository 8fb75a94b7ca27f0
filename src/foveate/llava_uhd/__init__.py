"""LLaVA-UHD v3: the flagship model, its processor and its checkpoints."""

from foveate.views import register as register_image_processor

from .checkpoint import register_released_keys
from .configuration import LlavaUHDConfig, ReleasedLlavaUHDConfig
from .modeling import LlavaUHDForConditionalGeneration, LlavaUHDModel
from .processing import LlavaUHDProcessor
from .tokenizer import byte_tokenizer

__all__ = [
    "LlavaUHDConfig",
    "LlavaUHDForConditionalGeneration",
    "LlavaUHDModel",
    "LlavaUHDProcessor",
    "byte_tokenizer",
    "register",
]


def register() -> None:
    """Make the Auto classes of `transformers` know LLaVA-UHD. Calling it again changes nothing."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    for config_class in (LlavaUHDConfig, ReleasedLlavaUHDConfig):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    register_released_keys(LlavaUHDConfig.model_type)
    AutoModel.register(LlavaUHDConfig, LlavaUHDModel, exist_ok=True)
    AutoModelForImageTextToText.register(LlavaUHDConfig, LlavaUHDForConditionalGeneration, exist_ok=True)
    register_image_processor()
    AutoProcessor.register(LlavaUHDConfig, LlavaUHDProcessor, exist_ok=True)

"""LLaVA-UHD v3: the flagship model, its processor and its checkpoints."""

from .configuration import LlavaUHDConfig
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
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageTextToText,
        AutoProcessor,
    )

    from foveate.views.image_processing import LlavaUHDImageProcessor

    AutoConfig.register(LlavaUHDConfig.model_type, LlavaUHDConfig, exist_ok=True)
    AutoModel.register(LlavaUHDConfig, LlavaUHDModel, exist_ok=True)
    AutoModelForImageTextToText.register(LlavaUHDConfig, LlavaUHDForConditionalGeneration, exist_ok=True)
    AutoImageProcessor.register(LlavaUHDConfig, LlavaUHDImageProcessor, exist_ok=True)
    AutoProcessor.register(LlavaUHDConfig, LlavaUHDProcessor, exist_ok=True)

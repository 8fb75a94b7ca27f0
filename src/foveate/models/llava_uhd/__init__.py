"""LLaVA-UHD v3: the flagship model, its processor and its checkpoints."""

from foveate.models.llava_uhd.checkpoint import register_released_keys
from foveate.models.llava_uhd.configuration import LlavaUHDConfig, ReleasedLlavaUHDConfig
from foveate.models.llava_uhd.image_processing import register as register_image_processor
from foveate.models.llava_uhd.modeling import LlavaUHDForConditionalGeneration, LlavaUHDModel
from foveate.models.llava_uhd.processing import LlavaUHDProcessor
from foveate.models.llava_uhd.tokenizer import byte_tokenizer

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

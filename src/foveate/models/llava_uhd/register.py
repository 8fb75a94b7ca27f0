"""LLaVA-UHD in the Auto classes of `transformers`."""

from __future__ import annotations

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from foveate.models.llava_uhd.checkpoint import register_released_keys
from foveate.models.llava_uhd.configuration import LlavaUHDConfig, ReleasedLlavaUHDConfig
from foveate.models.llava_uhd.image_processing import LlavaUHDImageProcessor
from foveate.models.llava_uhd.modeling import LlavaUHDForConditionalGeneration, LlavaUHDModel
from foveate.models.llava_uhd.processing import LlavaUHDProcessor


def register() -> None:
    """Make the Auto classes of `transformers` know LLaVA-UHD. Calling it again changes nothing."""
    for config_class in (LlavaUHDConfig, ReleasedLlavaUHDConfig):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    register_released_keys(LlavaUHDConfig.model_type)
    AutoModel.register(LlavaUHDConfig, LlavaUHDModel, exist_ok=True)
    AutoModelForImageTextToText.register(LlavaUHDConfig, LlavaUHDForConditionalGeneration, exist_ok=True)
    # For both backends of `transformers`: it is the same code with torchvision and without.
    backends: dict[str, type] = {"pil": LlavaUHDImageProcessor, "torchvision": LlavaUHDImageProcessor}
    AutoImageProcessor.register(LlavaUHDConfig, image_processor_classes=backends, exist_ok=True)
    AutoProcessor.register(LlavaUHDConfig, LlavaUHDProcessor, exist_ok=True)

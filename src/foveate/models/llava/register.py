"""LLaVA with any connector in the Auto classes of `transformers`."""

from __future__ import annotations

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from foveate.models.llava.configuration import RELEASED_CONFIGS, FoveateLlavaConfig
from foveate.models.llava.image_processing import ViewImageProcessor
from foveate.models.llava.modeling import FoveateLlavaForConditionalGeneration, FoveateLlavaModel
from foveate.models.llava.processing import FoveateLlavaProcessor
from foveate.models.llava.released_weights import register_released_keys


def register() -> None:
    """Make the Auto classes of `transformers` know LLaVA with a connector. Calling it again changes nothing."""
    for config_class in (FoveateLlavaConfig, *RELEASED_CONFIGS):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    register_released_keys(FoveateLlavaConfig.model_type)
    AutoModel.register(FoveateLlavaConfig, FoveateLlavaModel, exist_ok=True)
    AutoModelForImageTextToText.register(FoveateLlavaConfig, FoveateLlavaForConditionalGeneration, exist_ok=True)
    # Folders name it where they have it. For both backends of `transformers`: it is the same code.
    backends: dict[str, type] = {"pil": ViewImageProcessor, "torchvision": ViewImageProcessor}
    AutoImageProcessor.register(FoveateLlavaConfig, image_processor_classes=backends, exist_ok=True)
    AutoProcessor.register(FoveateLlavaConfig, FoveateLlavaProcessor, exist_ok=True)

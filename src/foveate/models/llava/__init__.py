"""LLaVA with any connector of foveate."""

from foveate.models.llava.configuration import FoveateLlavaConfig
from foveate.models.llava.image_processing import ViewImageProcessor
from foveate.models.llava.modeling import FoveateLlavaForConditionalGeneration, FoveateLlavaModel
from foveate.models.llava.processing import FoveateLlavaProcessor
from foveate.models.llava.register import register
from foveate.models.llava.swapping import swap_connector

__all__ = [
    "FoveateLlavaConfig",
    "FoveateLlavaForConditionalGeneration",
    "FoveateLlavaModel",
    "FoveateLlavaProcessor",
    "ViewImageProcessor",
    "register",
    "swap_connector",
]

"""LLaVA for clips, with any video connector of foveate."""

from foveate.models.llava_video.configuration import FoveateLlavaVideoConfig
from foveate.models.llava_video.modeling import FoveateLlavaVideoForConditionalGeneration, FoveateLlavaVideoModel
from foveate.models.llava_video.processing import FoveateLlavaVideoProcessor
from foveate.models.llava_video.register import register

__all__ = [
    "FoveateLlavaVideoConfig",
    "FoveateLlavaVideoForConditionalGeneration",
    "FoveateLlavaVideoModel",
    "FoveateLlavaVideoProcessor",
    "register",
]

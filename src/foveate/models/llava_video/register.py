"""LLaVA for clips in the Auto classes of `transformers`."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from foveate.models.llava_video.configuration import FoveateLlavaVideoConfig
from foveate.models.llava_video.modeling import FoveateLlavaVideoForConditionalGeneration, FoveateLlavaVideoModel
from foveate.models.llava_video.processing import FoveateLlavaVideoProcessor


def register() -> None:
    """Make the Auto classes of `transformers` know LLaVA for clips. Calling it again changes nothing."""
    AutoConfig.register(FoveateLlavaVideoConfig.model_type, FoveateLlavaVideoConfig, exist_ok=True)
    AutoModel.register(FoveateLlavaVideoConfig, FoveateLlavaVideoModel, exist_ok=True)
    AutoModelForImageTextToText.register(
        FoveateLlavaVideoConfig, FoveateLlavaVideoForConditionalGeneration, exist_ok=True
    )
    AutoProcessor.register(FoveateLlavaVideoConfig, FoveateLlavaVideoProcessor, exist_ok=True)

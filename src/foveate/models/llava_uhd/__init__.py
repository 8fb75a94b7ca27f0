"""LLaVA-UHD v3: the flagship model, its processor and its checkpoints."""

from foveate.models.llava_uhd.configuration import LlavaUHDConfig
from foveate.models.llava_uhd.modeling import LlavaUHDForConditionalGeneration, LlavaUHDModel
from foveate.models.llava_uhd.processing import LlavaUHDProcessor
from foveate.models.llava_uhd.register import register
from foveate.models.llava_uhd.tokenizer import byte_tokenizer

__all__ = [
    "LlavaUHDConfig",
    "LlavaUHDForConditionalGeneration",
    "LlavaUHDModel",
    "LlavaUHDProcessor",
    "byte_tokenizer",
    "register",
]

"""A small next-scale autoregressive image model, and compression of its KV cache."""

from foveate.models.next_scale.compressing import CompressedCache, calibrate, compress_cache
from foveate.models.next_scale.configuration import NextScaleConfig
from foveate.models.next_scale.modeling import NextScaleForImageGeneration

__all__ = [
    "CompressedCache",
    "NextScaleConfig",
    "NextScaleForImageGeneration",
    "calibrate",
    "compress_cache",
    "register",
]


def register() -> None:
    """Make the Auto classes of `transformers` know the next-scale model. Calling it again changes nothing."""
    from transformers import AutoConfig, AutoModel

    AutoConfig.register(NextScaleConfig.model_type, NextScaleConfig, exist_ok=True)
    AutoModel.register(NextScaleConfig, NextScaleForImageGeneration, exist_ok=True)

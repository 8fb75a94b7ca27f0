"""Trained encoders of images, with fewer tokens than patches or cheaper blocks."""

from foveate.models.encoders.configuration import EncoderConfig
from foveate.models.encoders.encoder import Encoder, EncoderOutput
from foveate.models.encoders.registry import (
    all_encoders,
    encoder_named,
    register,
    register_encoder,
    unregister_encoder,
)

__all__ = [
    "Encoder",
    "EncoderConfig",
    "EncoderOutput",
    "all_encoders",
    "encoder_named",
    "register",
    "register_encoder",
    "unregister_encoder",
]

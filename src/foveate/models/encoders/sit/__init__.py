"""SiT: a vision transformer that slims its tokens after some blocks, and its distillation from the full one."""

from foveate.models.encoders.sit.classification import SiTClassifierOutput, SiTForImageClassification
from foveate.models.encoders.sit.configuration import SiTConfig
from foveate.models.encoders.sit.conversion import convert_released_state
from foveate.models.encoders.sit.distillation import (
    FRD,
    FRDLoss,
    check_teacher,
    frd_loss,
    initialize_from_teacher,
    recovery_error,
)
from foveate.models.encoders.sit.modeling import SiTModel, SiTOutput

__all__ = [
    "FRD",
    "FRDLoss",
    "SiTClassifierOutput",
    "SiTConfig",
    "SiTForImageClassification",
    "SiTModel",
    "SiTOutput",
    "check_teacher",
    "convert_released_state",
    "frd_loss",
    "initialize_from_teacher",
    "recovery_error",
]

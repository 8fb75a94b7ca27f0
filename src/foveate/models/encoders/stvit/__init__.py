"""STViT: a vision transformer whose early stages attend among super tokens."""

from foveate.models.encoders.stvit.classification import STViTForImageClassification
from foveate.models.encoders.stvit.configuration import STViTConfig
from foveate.models.encoders.stvit.conversion import convert_released_state
from foveate.models.encoders.stvit.modeling import STViTModel

__all__ = ["STViTConfig", "STViTForImageClassification", "STViTModel", "convert_released_state"]

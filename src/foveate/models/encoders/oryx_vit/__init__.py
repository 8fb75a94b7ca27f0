"""OryxViT: a SigLIP for images of any size and proportions, without resizing them to a square."""

from foveate.models.encoders.oryx_vit.configuration import OryxViTConfig
from foveate.models.encoders.oryx_vit.conversion import convert_released_state
from foveate.models.encoders.oryx_vit.modeling import OryxViTModel

__all__ = ["OryxViTConfig", "OryxViTModel", "convert_released_state"]

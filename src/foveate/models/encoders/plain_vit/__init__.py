"""A plain vision transformer for patches of any size."""

from foveate.models.encoders.plain_vit.configuration import PlainViTConfig
from foveate.models.encoders.plain_vit.conversion import convert_vit_state
from foveate.models.encoders.plain_vit.modeling import PlainViTModel

__all__ = ["PlainViTConfig", "PlainViTModel", "convert_vit_state"]

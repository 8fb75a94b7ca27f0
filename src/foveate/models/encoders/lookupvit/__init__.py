"""LookupViT: most of the computation on a small map of compressed tokens."""

from foveate.models.encoders.lookupvit.configuration import LookupViTConfig
from foveate.models.encoders.lookupvit.modeling import LookupViTModel

__all__ = ["LookupViTConfig", "LookupViTModel"]

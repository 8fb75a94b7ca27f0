"""ConvLLaVA: a ConvNeXt with a fifth stage, whose last map has one token for 64 x 64 pixels."""

from foveate.models.encoders.convllava.configuration import ConvLLaVAConfig
from foveate.models.encoders.convllava.conversion import convert_clip_state, initialize_from_clip
from foveate.models.encoders.convllava.modeling import ConvLLaVAModel

__all__ = ["ConvLLaVAConfig", "ConvLLaVAModel", "convert_clip_state", "initialize_from_clip"]

"""foveate: multimodal models that read fewer visual tokens."""

from foveate import encoders, llava_uhd
from foveate.encoders import ViTUHDConfig, ViTUHDModel
from foveate.errors import FoveateError
from foveate.llava_uhd import LlavaUHDConfig, LlavaUHDForConditionalGeneration, LlavaUHDProcessor
from foveate.views.image_processing import LlavaUHDImageProcessor

__version__ = "0.1.0"

encoders.register()
llava_uhd.register()

__all__ = [
    "FoveateError",
    "LlavaUHDConfig",
    "LlavaUHDForConditionalGeneration",
    "LlavaUHDImageProcessor",
    "LlavaUHDProcessor",
    "ViTUHDConfig",
    "ViTUHDModel",
    "__version__",
]

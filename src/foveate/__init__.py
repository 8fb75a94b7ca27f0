"""foveate: multimodal models that read fewer visual tokens."""

from foveate import encoders
from foveate.encoders import ViTUHDConfig, ViTUHDModel
from foveate.errors import FoveateError

__version__ = "0.1.0"

encoders.register()

__all__ = ["FoveateError", "ViTUHDConfig", "ViTUHDModel", "__version__"]

"""Views: how pixels are read, resized and cut into patches before the encoder sees them."""

from .image_processing import LlavaUHDImageProcessor
from .images import open_image
from .native import native_size

__all__ = ["LlavaUHDImageProcessor", "native_size", "open_image", "register"]


def register() -> None:
    """Let `AutoImageProcessor` and `AutoProcessor` find `LlavaUHDImageProcessor` for LLaVA-UHD models.

    It is registered for both backends of `transformers`, because it is the same code with torchvision and without.
    """
    from transformers import AutoImageProcessor

    from foveate.llava_uhd.configuration import LlavaUHDConfig

    AutoImageProcessor.register(
        LlavaUHDConfig,
        image_processor_classes={"pil": LlavaUHDImageProcessor, "torchvision": LlavaUHDImageProcessor},
        exist_ok=True,
    )

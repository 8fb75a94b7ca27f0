"""Vision encoders: ViT-UHD and the methods that act inside a vision transformer."""

from foveate.models.vit_uhd.configuration import RELEASED_MODEL_TYPE, ViTUHDConfig
from foveate.models.vit_uhd.conversion import from_vit
from foveate.models.vit_uhd.vit_uhd import ViTUHDModel, ViTUHDOutput


def register() -> None:
    """Make `AutoConfig` and `AutoModel` know ViT-UHD and its released layout. Doing it twice changes nothing."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

    AutoConfig.register(ViTUHDConfig.model_type, ViTUHDConfig, exist_ok=True)
    CONFIG_MAPPING.register(RELEASED_MODEL_TYPE, ViTUHDConfig, exist_ok=True)
    AutoModel.register(ViTUHDConfig, ViTUHDModel, exist_ok=True)


__all__ = ["ViTUHDConfig", "ViTUHDModel", "ViTUHDOutput", "from_vit", "register"]

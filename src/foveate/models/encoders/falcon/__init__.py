"""FALCON's encoder: registers are what the crops of an image become, and they attend to each other across crops."""

from foveate.models.encoders.falcon.configuration import FalconVisionConfig
from foveate.models.encoders.falcon.conversion import convert_released_state
from foveate.models.encoders.falcon.crops import crop_grid, crop_positions, split_crops
from foveate.models.encoders.falcon.modeling import FalconVisionModel, FalconVisionOutput

__all__ = [
    "FalconVisionConfig",
    "FalconVisionModel",
    "FalconVisionOutput",
    "convert_released_state",
    "crop_grid",
    "crop_positions",
    "split_crops",
]

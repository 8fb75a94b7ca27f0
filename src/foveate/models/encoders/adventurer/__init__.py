"""Adventurer: an encoder of causal Mamba-2 blocks, whose cost is linear in the number of patches."""

from foveate.models.encoders.adventurer.classification import AdventurerForImageClassification
from foveate.models.encoders.adventurer.configuration import AdventurerConfig
from foveate.models.encoders.adventurer.conversion import convert_released_state
from foveate.models.encoders.adventurer.modeling import AdventurerModel

__all__ = ["AdventurerConfig", "AdventurerForImageClassification", "AdventurerModel", "convert_released_state"]

"""The encoder of PVC: a vision transformer whose last blocks also attend over the frames of a clip."""

from foveate.models.encoders.temporal_pvc.configuration import TemporalPVCConfig
from foveate.models.encoders.temporal_pvc.conversion import MADE_OF, with_temporal_blocks
from foveate.models.encoders.temporal_pvc.modeling import TemporalPVCModel

__all__ = ["MADE_OF", "TemporalPVCConfig", "TemporalPVCModel", "with_temporal_blocks"]

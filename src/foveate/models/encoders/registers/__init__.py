"""Registers for a pretrained vision transformer, which take the place of outlier tokens."""

from foveate.models.encoders.registers.configuration import RegistersConfig
from foveate.models.encoders.registers.modeling import RegistersModel
from foveate.models.encoders.registers.outliers import Outliers, norm_outliers
from foveate.models.encoders.registers.planted import plant_outliers

__all__ = ["Outliers", "RegistersConfig", "RegistersModel", "norm_outliers", "plant_outliers"]

"""Base classes of methods between the encoder and the language model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.core.method import Method, Site
from foveate.core.tokens import Grid


@dataclass(frozen=True)
class ConnectorMethod(Method):
    """A method that runs the nested connector of a model at another length: the budget is the number of tokens.

    For connectors that must run again at the other length, because the number of tokens changes what their projector
    reads. The runtime passes the budget to `get_image_features`; the connector decides which numbers are possible.
    """

    site: ClassVar[Site] = Site.CONNECTOR
    shortens_encoder: ClassVar[bool] = True
    #: `connector_type` of the models that it is for; None: every nested connector.
    connector: ClassVar[str | None] = None


@dataclass(frozen=True)
class RasterMethod(ConnectorMethod):
    """A method without weights that maps the raster of an image's features to a smaller raster.

    In models of other packages it acts where their family says (`Family.raster_features`): before the projector, or
    after the merger. In a model whose connector does the same (`connector`), that connector runs at the other length.
    Frames of a clip are rasters of their own. Positions that the language model reads are those of the smaller raster.
    """

    @abstractmethod
    def reduced_grid(self, grid: Grid, count: int | None) -> Grid:
        """Rows and columns of the smaller raster, none more than those of `grid`.

        Args:
            grid: Of the features.
            count: Tokens that shall stay, 1 to rows * columns; the smaller raster has as many or more, and the runtime
                leaves the excess out evenly. None leaves it to the method.
        """

    @abstractmethod
    def reduce(self, features: Tensor, grid: Grid, reduced: Grid) -> Tensor:
        """Map features (..., rows * columns, D) of `grid`, row-major, to those of `reduced`."""

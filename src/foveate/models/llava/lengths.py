"""Which part of a LLaVA has several lengths: its connector, or its encoder."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.connector import Connector
from foveate.models.encoders import EncoderConfig


class NestedEncoder:
    """An encoder that was trained at several lengths, together with the connector after it.

    It answers what a nested `Connector` answers: which numbers of tokens there are, and their grids. Its tokens are
    those of a model that is configured for this length.

    Args:
        vision: Configuration of the encoder, which has `length_grids`.
        connector: The connector, with or without weights.
    """

    nested: ClassVar[bool] = True
    length_schedule: ClassVar[Literal["all", "sampled"] | None] = "sampled"

    def __init__(self, vision: EncoderConfig, connector: Connector) -> None:
        self.name = vision.model_type
        self.connector = connector
        self.spatial = connector.spatial
        multiple = connector.multiple
        grids = (grid for grid in vision.length_grids() if not grid.rows % multiple and not grid.columns % multiple)
        #: Grids of the encoder by the number of tokens after the connector, ascending.
        self.grids = {connector.output_grid(grid).size: grid for grid in grids}

    def encoder_grid(self, budget: int) -> Grid:
        """Rows and columns of the encoder's tokens of which the connector makes so many.

        Raises:
            FoveateError: The encoder was not trained at this length.
        """
        if budget not in self.grids:
            raise FoveateError(
                f"the encoder {self.name} was not trained to give {budget} tokens; possible are "
                f"{', '.join(map(str, self.grids))}."
            )
        return self.grids[budget]

    def output_grid(self, grid: Grid, budget: int | None = None) -> Grid:
        """See `Connector.output_grid`."""
        return self.connector.output_grid(grid if budget is None else self.encoder_grid(budget))

    def training_lengths(self, grid: Grid) -> tuple[int, ...]:
        """See `Connector.training_lengths`."""
        return tuple(self.grids)


def nested_part(connector: Connector, vision: Any) -> Connector | NestedEncoder:
    """The part that a plan such as `nested:16` chooses the length of.

    The connector, also where it has one length; the encoder where that was trained at several and the connector is not
    nested.
    """
    if not connector.nested and isinstance(vision, EncoderConfig) and vision.length_grids():
        return NestedEncoder(vision, connector)
    return connector

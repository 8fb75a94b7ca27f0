"""Connectors of foveate in vLLM: which can be served, and their token counts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from foveate.core.errors import FoveateError, Refusal
from foveate.core.tokens import Grid, encoder_grid
from foveate.models.connectors import Connector, ConnectorOptions
from foveate.models.connectors.registry import check_same_connector, connector_of_sizes, options_of_config
from foveate.models.encoders import EncoderConfig
from foveate.models.llava import FoveateLlavaConfig, FoveateLlavaProcessor
from foveate.models.llava.layouts import PadLayout


@dataclass(frozen=True)
class ServedConnector:
    """A connector without weights, and the images that it reads.

    Args:
        name: `connector_type`.
        options: Its options.
        grid: Rows and columns of the patches of every image.
    """

    name: str
    options: ConnectorOptions
    grid: Grid

    @cached_property
    def connector(self) -> Connector:
        """The connector, which counts tokens."""
        return connector_of_sizes(self.name, dataclasses.asdict(self.options))

    @property
    def tokens(self) -> int:
        """Tokens of an image where no plan chooses another length."""
        return self.connector.output_grid(self.grid).size


def served_connector(config: Any) -> ServedConnector | None:
    """Read the connector of a model from its configuration.

    Returns:
        None where the model is no LLaVA with a connector of foveate.

    Raises:
        FoveateError: vLLM cannot run its encoder or its connector.
    """
    if config.model_type != FoveateLlavaConfig.model_type:
        return None
    vision = config.vision_config
    if isinstance(vision, EncoderConfig):
        raise FoveateError(
            Refusal(
                "encoder-not-served",
                f"the encoder of this model is {vision.model_type}, and vLLM runs those of CLIP and SigLIP",
                "foveate serve runs every encoder",
            )
        )
    connector = connector_of_sizes(config.connector_type, options_of_config(config))
    if connector.reads_text or connector.prefusion_layers:
        raise FoveateError(
            Refusal(
                "needs-prompt",
                f"the connector {connector.name} reads the prompt, and vLLM keeps the tokens of an image for all "
                "prompts",
                "foveate serve runs every connector",
            )
        )
    served = ServedConnector(
        connector.name, connector.options, encoder_grid(vision, vision.image_size, vision.image_size)
    )
    _ = served.tokens  # a grid that the connector cannot divide is refused here
    return served


def check_processor(config: Any, processor: FoveateLlavaProcessor) -> None:
    """Check that a processor gives what a model reads in vLLM: one view of one size for every image.

    Raises:
        FoveateError: It does not, or counts the tokens of another connector, or has another placeholder.
    """
    check_same_connector(config, processor)
    if processor.layout is not None and not isinstance(processor.layout, PadLayout):
        raise FoveateError(
            f"the processor makes several views of an image (layout {processor.layout.name}), which vLLM does not "
            "take; foveate serve does."
        )
    side, size = config.vision_config.image_size, processor._image_size()
    if (size["height"], size["width"]) != (side, side):
        raise FoveateError(
            f"the processor makes images of {size['height']} x {size['width']} pixels, and the encoder in vLLM reads "
            f"{side} x {side}."
        )
    if processor.image_token_id != config.image_token_index:
        raise FoveateError(
            f"the placeholder of the processor has the id {processor.image_token_id}, and that of the model "
            f"{config.image_token_index}: load the folder with foveate.load, and save both again."
        )

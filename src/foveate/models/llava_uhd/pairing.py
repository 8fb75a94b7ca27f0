"""Consistency of the model and the processor of LLaVA-UHD."""

from __future__ import annotations

from typing import Any

from foveate.core.errors import FoveateError
from foveate.models.connectors.registry import check_same_connector
from foveate.models.encoders import EncoderConfig
from foveate.models.llava_uhd.configuration import token_multiple
from foveate.models.llava_uhd.modeling import LlavaUHDForConditionalGeneration
from foveate.models.llava_uhd.processing import LlavaUHDProcessor


def pair(model: LlavaUHDForConditionalGeneration, processor: LlavaUHDProcessor) -> None:
    """Make a model take the processor's placeholder, which released configurations do not know.

    Raises:
        FoveateError: if the model's vocabulary lacks the placeholder, or the processor cuts images into
            patches or stages that are not the vision tower's or that the connector cannot divide, or they differ in
            their connectors or VoCo tokens.
    """
    vision, image_processor = model.config.vision_config, processor.image_processor
    _check_same_encoder(vision, processor.encoder_config)
    expected = f"patch_size {model.config.square_size} and num_stages {getattr(vision, 'num_stages', 0)}"
    found = f"patch_size {image_processor.patch_size} and num_stages {image_processor.num_stages}"
    if found != expected:
        raise FoveateError(f"the image processor has {found}, but the vision tower has {expected}")
    check_same_connector(model.config, processor)
    multiple = token_multiple(vision, processor.connector)
    if image_processor.token_multiple % multiple:
        raise FoveateError(
            f"the connector {processor.connector_type} needs sides of a multiple of {multiple} tokens: set "
            f"token_multiple of the image processor to {multiple}"
        )
    vocabulary = model.config.text_config.vocab_size
    if processor.image_token_id >= vocabulary:
        raise FoveateError(
            f"the placeholder {processor.image_token!r} has the id {processor.image_token_id}, which the "
            f"model's vocabulary (0 to {vocabulary - 1}) lacks: resize_token_embeddings first"
        )
    model.config.image_token_id = processor.image_token_id
    if model.config.num_voco_tokens != processor.num_voco_tokens:
        raise FoveateError(
            f"the processor writes {processor.num_voco_tokens} VoCo tokens after an image, and the model reads "
            f"{model.config.num_voco_tokens}"
        )


def _check_same_encoder(vision: Any, counted: EncoderConfig | None) -> None:
    """Check that a processor counts the tokens of the vision tower.

    Raises:
        FoveateError: it counts those of another encoder, or of a ViT-UHD.
    """
    kind = "vit_uhd" if counted is None else counted.model_type
    if kind != vision.model_type:
        raise FoveateError(f"the processor counts the tokens of {kind}, and the model has {vision.model_type}")
    if counted is None:
        return
    sides = (vision.image_size, 2 * vision.image_size)
    ours, theirs = ([one.output_grid(sides[0], side) for side in sides] for one in (vision, counted))
    if ours != theirs or vision.length_grids() != counted.length_grids():
        raise FoveateError(
            f"the processor counts {theirs[0].rows} x {theirs[0].columns} tokens of the encoder {kind} for an image of "
            f"{sides[0]} x {sides[0]} pixels, and the model has {ours[0].rows} x {ours[0].columns}, or they differ in "
            "the lengths that it was trained at"
        )

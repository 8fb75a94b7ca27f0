"""Consistency of the model and the processor of LLaVA-UHD."""

from __future__ import annotations

from foveate.core.errors import FoveateError
from foveate.models.connectors.registry import check_same_connector
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
    expected, found = (
        f"patch_size {part.patch_size} and num_stages {part.num_stages}" for part in (vision, image_processor)
    )
    if found != expected:
        raise FoveateError(f"the image processor has {found}, but the vision tower has {expected}")
    check_same_connector(model.config, processor)
    multiple = processor.connector.multiple
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

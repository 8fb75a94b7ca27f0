"""Whether an image is like those that a model was trained on."""

from __future__ import annotations

from typing import Any

from PIL import Image

from foveate.answering.text_size import text_height

#: Text counts as too small below this share of the height that the model was trained on: the estimate is not exact.
TOLERANCE = 0.9


def beyond_training(processor: Any, image: Image.Image) -> list[str]:
    """Return one sentence for each property of an image that the model was not trained on.

    Only processors that state `trained_size` or `trained_text_height` are checked (see `LlavaUHDImageProcessor`). Text
    is measured at the size at which the model reads the image.

    Args:
        processor: the processor of the model.
        image: the upright image.
    """
    limits: Any = getattr(processor, "image_processor", None)
    size, least = (getattr(limits, name, None) for name in ("trained_size", "trained_text_height"))
    sentences = []
    if size is not None and max(image.size) > size:
        sentences.append(
            f"the image is {image.width} x {image.height} px, and the model was trained on images of up to {size} px: "
            "reduce it, or crop it to what you ask about."
        )
    if least is not None:
        width, _ = limits.target_size(*image.size)
        height = text_height(image)
        if height is not None and (read := height * width / image.width) < TOLERANCE * least:
            sentences.append(
                f"most text is about {read:.0f} px high when the model reads it, and it was trained on capitals of at "
                f"least {least:g} px: crop the image to what you ask about and enlarge it."
            )
    return sentences

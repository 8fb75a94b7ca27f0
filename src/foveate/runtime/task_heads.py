"""What models without an output layer for text put on a core: embeddings for retrieval, classes of prompts or tokens.

They pair the core's hidden states with what they were given themselves, such as a mask (B, L), to find the last token
or to leave padding out. Under a plan the core therefore hands such a model as many hidden states as it was given
tokens: one that was left out has the state of the one before it that stayed. Embeddings are taken apart again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveate.core import sequence


def has_task_head(model: Any, core: nn.Module) -> bool:
    """Whether a model puts something else on its core than an output layer for text."""
    return model is not core and not model.can_generate()


def last_kept_positions(columns: Tensor, length: int) -> Tensor:
    """(B, L) for every column of the long sequence the place in the short one of the last that stayed up to it.

    Args:
        columns: (B, P) of the short sequence, -1 for padding.
        length: L. Columns before the first that stayed get its place.
    """
    batch, short = columns.shape
    order = torch.arange(short, device=columns.device).expand(batch, -1)
    place = columns.new_full((batch, length + 1), -1)
    place.scatter_(1, torch.where(columns < 0, length, columns), order)
    first = (columns >= 0).to(torch.uint8).argmax(dim=1, keepdim=True)
    return place[:, :length].cummax(dim=1).values.maximum(first)


def expand_hidden(hidden: Tensor, columns: Tensor, length: int) -> Tensor:
    """Hidden states (B, P, D) of a short sequence as (B, L, D) of the long one."""
    return sequence.gather(hidden, last_kept_positions(columns, length))


def select_embeddings(embeddings: Tensor, columns: Tensor) -> Tensor:
    """Embeddings (B, L, d) of the long sequence as (B, P, d) of the short one; those of padding are 0."""
    return sequence.gather(embeddings, columns).masked_fill((columns < 0)[..., None], 0)


def embed_images(core: Any, call: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """ColQwen2 asks the tower itself for an image's tokens; here they come from where plans look at them.

    Args:
        core: The Qwen2-VL inside.
        call: What the model is called with: pixels (images, most patches, ...), filled up, and `image_grid_thw`.

    Returns:
        The call with `inputs_embeds` in place of ids and pixels, and the output of the encoder.
    """
    grid, ids = call["image_grid_thw"], call["input_ids"]
    pixels = torch.cat(
        [image_pixels[: int(count)] for image_pixels, count in zip(call["pixel_values"], grid.prod(dim=1), strict=True)]
    )
    output = core.get_image_features(pixels, grid, return_dict=True)
    embeds = core.get_input_embeddings()(ids)
    features = torch.cat(list(output.pooler_output)).to(embeds)
    embeds = embeds.masked_scatter((ids == core.config.image_token_id)[..., None], features)
    remaining = {
        name: value for name, value in call.items() if name not in ("input_ids", "pixel_values", "image_grid_thw")
    }
    return remaining | {"inputs_embeds": embeds}, output

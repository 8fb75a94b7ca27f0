"""Models with a head for retrieval or classification instead of a language-modelling head.

They pair the core's hidden states with their own inputs, such as a mask (B, L), to find the last token
or to mask padding. Under a plan the core therefore returns as many hidden states as it got
tokens: a removed token gets the state of the last kept one before it. Embeddings are reduced to the kept tokens again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveate.core import sequence


def has_task_head(model: Any, core: nn.Module) -> bool:
    """Whether a model has another head than a language-modelling one."""
    return model is not core and not model.can_generate()


def last_kept_positions(columns: Tensor, length: int) -> Tensor:
    """(B, L) for every column of the full sequence, the position in the pruned one of the last kept column up to it.

    Args:
        columns: (B, P) of the pruned sequence, -1 for padding.
        length: L. Columns before the first kept one get its position.
    """
    batch, short = columns.shape
    order = torch.arange(short, device=columns.device).expand(batch, -1)
    place = columns.new_full((batch, length + 1), -1)
    place.scatter_(1, torch.where(columns < 0, length, columns), order)
    first = (columns >= 0).to(torch.uint8).argmax(dim=1, keepdim=True)
    return place[:, :length].cummax(dim=1).values.maximum(first)


def expand_hidden(hidden: Tensor, columns: Tensor, length: int) -> Tensor:
    """Expand hidden states (B, P, D) of a pruned sequence to (B, L, D) of the full one."""
    return sequence.gather(hidden, last_kept_positions(columns, length))


def select_embeddings(embeddings: Tensor, columns: Tensor) -> Tensor:
    """Select embeddings (B, P, d) of a pruned sequence from (B, L, d) of the full one; those of padding are 0."""
    return sequence.gather(embeddings, columns).masked_fill((columns < 0)[..., None], 0)


def embed_images(core: Any, call: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Encode the images of a ColQwen2 call through the core, where plans act, instead of its own call of the tower.

    Args:
        core: The Qwen2-VL inside.
        call: Arguments of the model: padded pixels (images, most patches, ...) and `image_grid_thw`.

    Returns:
        The arguments with `inputs_embeds` in place of ids and pixels, and the output of the encoder.
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

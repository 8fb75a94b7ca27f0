"""Pre-fusion of LLaVA-Mini: the text of a prompt reads all patches of its images, before the language model.

A few decoder layers with weights of their own read [patches, tokens, text] with causal attention. Their outputs at the
tokens and at the text replace these in the input of the language model; the patches are dropped. Text is the
instructions: answers, padding and placeholders are not read, and answers keep their embeddings.

LLaVA-Mini (Zhang et al., arXiv 2501.03895). Of several images of a prompt, as of the frames of a video, each is fused
with the text by itself, and the fused text is averaged. The text is read without gradient to its embeddings.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.prompts import Prompts


def build_prefusion(text_config: Any, num_layers: int) -> Any:
    """New decoder layers of the kind that a language model has, without its embedding and its last norm.

    Raises:
        FoveateError: Language models of this kind are built otherwise.
    """
    config = copy.deepcopy(text_config)
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:num_layers]
    config.vocab_size, config.pad_token_id = 1, None  # the embedding is removed
    layers: Any = AutoModel.from_config(config)
    if not hasattr(layers, "embed_tokens") or not hasattr(layers, "norm"):
        raise FoveateError(f"pre-fusion needs a language model that is built like Llama, not {config.model_type}.")
    layers.embed_tokens = layers.norm = nn.Identity()
    return layers


def fuse(layers: Any, prompts: Prompts, patches: Tensor, tokens: Tensor) -> Tensor:
    """Embeddings of prompts for the language model: tokens in their places, and fused text.

    Args:
        layers: The decoder layers (`build_prefusion`).
        prompts: The prompts.
        patches: `(n, P, d)`, of every image, mapped to the width of the language model.
        tokens: `(n, c, d)`, of every image, in the order of their placeholders.

    Returns:
        `(B, L, d)`.

    Raises:
        FoveateError: `Prompts.rows_of_images` raises it.
    """
    embeds = prompts.embeds
    batch, length, width = embeds.shape
    rows = prompts.rows_of_images([tokens.shape[1]] * len(tokens)).to(embeds.device)
    places, is_text = prompts.gathered(prompts.instructions[rows])
    text = embeds[rows].detach().take_along_dim(places.unsqueeze(-1), dim=1)
    context = torch.cat([patches.to(text.dtype), tokens.to(text.dtype), text], dim=1)
    mask = torch.cat([is_text.new_ones(len(rows), context.shape[1] - text.shape[1]), is_text], dim=1)
    fused = layers(inputs_embeds=context, attention_mask=mask.long(), use_cache=False, return_dict=True)
    _, read_tokens, read_text = fused.last_hidden_state.split([patches.shape[1], tokens.shape[1], text.shape[1]], dim=1)
    # The mean over the images of each prompt, in float32.
    index = (rows[:, None] * length + places)[is_text]
    total = embeds.new_zeros(batch * length, width, dtype=torch.float32)
    total = total.index_add(0, index, read_text[is_text].float()).view(batch, length, width)
    images = rows.bincount(minlength=batch)
    mean = total / images.clamp(min=1)[:, None, None]
    replaced = prompts.instructions & (images > 0)[:, None]
    embeds = torch.where(replaced.unsqueeze(-1), mean.to(embeds.dtype), embeds)
    return embeds.masked_scatter(prompts.placeholders.unsqueeze(-1), read_tokens.to(embeds.dtype))


def stitched(features: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Grid]:
    """Features of sub-images in one grid.

    Args:
        features: `(n, k k + 1, N, D)`, the sub-images row-major, and the whole image last.
        grid: Rows and columns of each of them.

    Returns:
        The stitched features `(n, k k N, D)`, row-major over the image; those of the whole image `(n, N, D)`; and the
        grid of the stitched ones.

    Raises:
        FoveateError: The number of sub-images is no square.
    """
    side = round((features.shape[1] - 1) ** 0.5)
    if side < 1 or side**2 + 1 != features.shape[1]:
        raise FoveateError(
            f"an image is k x k sub-images and the whole one, which are 2, 5, 10, ... and not {features.shape[1]}."
        )
    parts = features[:, :-1].unflatten(1, (side, side)).unflatten(3, grid)  # (n, k, k, rows, columns, D)
    large = Grid(side * grid.rows, side * grid.columns)
    return parts.transpose(2, 3).flatten(1, 4), features[:, -1], large

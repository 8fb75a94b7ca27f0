"""VoCo-LLaMA: compression of an image into the keys and values of a few tokens, by the language model itself.

After every image stand n VoCo tokens, one trained embedding at n positions. They see the image; what comes after them
sees them in its place. Trained with nothing but the answers' loss under this mask, they learn to hold what answers
need. Where a cache is used the image's keys and values are then really gone: a conversation holds n entries for an
image, and every further question is answered from them.

"VoCo-LLaMA: Towards Vision Compression with Large Language Models" (Ye et al., CVPR 2025, arXiv 2406.12275). The mask:
the query at q may see the key at k <= q, unless k is of an image whose VoCo tokens end before q. The authors' code
hides all that stands before the first VoCo token, the system prompt too, knows one image with two VoCo tokens, and
trains without compression where attention is not SDPA; here the image alone is hidden, as the paper writes, every image
has its VoCo tokens, and attention that cannot follow the mask is refused. Positions are those of the whole sequence.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from foveate import compat
from foveate.core import sequence
from foveate.core.errors import FoveateError
from foveate.kv_cache.pruned_cache import (
    PrunedCacheState,
    Reader,
    attach_state,
    detach_state,
    physical_length,
    state_for,
)

VOCO_TOKEN = "<voco>"


def closed_images(image: Tensor, count: int) -> Tensor:
    """How many images stand with all their VoCo tokens before every position, (B, L) int64.

    Args:
        image: (B, L) bool, where image tokens stand; every run of them is one image.
        count: VoCo tokens after every image.
    """
    last = image.clone()
    last[:, :-1] &= ~image[:, 1:]
    before = last.long().cumsum(dim=1)
    closed = torch.zeros_like(before)
    closed[:, count + 1 :] = before[:, : -count - 1]
    return closed


def voco_mask(image: Tensor, count: int, key_mask: Tensor) -> Tensor:
    """Which keys every query may see, (B, 1, L, P + L) bool: one mask for all layers and heads.

    Args:
        image: (B, L) bool, where image tokens stand among the new tokens.
        count: VoCo tokens after every image.
        key_mask: (B, P + L), 0 for padding, of what a cache holds and of the new tokens. A cache holds no image tokens.
    """
    length = image.shape[1]
    past = key_mask.shape[1] - length
    closed = closed_images(image, count)
    positions = torch.arange(length, device=image.device)
    allowed = positions[:, None] >= positions
    allowed = allowed & (~image[:, None] | (closed[:, :, None] == closed[:, None]))
    allowed = torch.cat([allowed.new_ones(*allowed.shape[:2], past), allowed], dim=2) & (key_mask[:, None] > 0)
    allowed[:, positions, positions + past] = True  # padding too: what sees nothing is no number
    return allowed[:, None]


def check_voco(image: Tensor, voco: Tensor, count: int) -> None:
    """Raise FoveateError unless `count` VoCo tokens (B, L) follow every image (B, L)."""
    last = image.clone()
    last[:, :-1] &= ~image[:, 1:]
    rows, columns = last.nonzero(as_tuple=True)
    follow = columns[:, None] + torch.arange(1, count + 1, device=image.device)
    if bool((follow >= image.shape[1]).any()) or not bool(voco[rows[:, None], follow].all()):
        raise FoveateError(
            f"this model reads an image through {count} VoCo tokens right after it, and a prompt has an image without "
            "them: let the processor write the prompts, and pass each as a whole (no prefill_chunk_size)."
        )


def read_through_voco(text: Any, image: Tensor, voco: Tensor, count: int, kwargs: dict[str, Any]) -> Any:
    """Call a language model whose text sees images through their VoCo tokens, and empty its cache of images.

    Args:
        text: The language model.
        image: (B, L) bool, where image tokens stand.
        voco: (B, L) bool, where VoCo tokens stand.
        count: VoCo tokens after every image.
        kwargs: What it is called with.

    Returns:
        Its output for all L positions.

    Raises:
        FoveateError: an image has no VoCo tokens, or the attention or the cache cannot do without images.
    """
    embeds, cache = kwargs["inputs_embeds"], compat.cache_in(kwargs)
    reader = Reader(weakref.ref(text), f"{count} VoCo tokens an image", (count,))
    state, images = state_for(cache, reader), bool(image.any())
    if state is None and not images:
        return text(**kwargs)
    implementation = compat.attention_name(text.config)
    if "flash" in implementation or "flex" in implementation:
        raise FoveateError(f"VoCo tokens need attention with a mask, 'sdpa' or 'eager', and not {implementation!r}.")
    if not all(isinstance(layer, DynamicLayer) and not layer.is_sliding for layer in getattr(cache, "layers", ())):
        raise FoveateError("images are taken out of a cache that grows (DynamicCache) in layers without a window.")
    check_voco(image, voco, count)
    batch, length = embeds.shape[:2]
    past = 0 if cache is None else int(cache.get_seq_length())
    if state is None:
        state = PrunedCacheState.of_full_cache(batch, past, embeds.device, reader)
    if len(state.columns) != batch:
        raise FoveateError(f"a cache of {len(state.columns)} conversations cannot go on with a batch of {batch}.")
    key_mask = torch.ones(batch, past + length, dtype=torch.int64, device=embeds.device)
    given_mask = sequence.key_mask(kwargs.get("attention_mask"), past + length)
    if given_mask is not None:
        key_mask[:, past + length - given_mask.shape[1] :] = given_mask
    new = torch.arange(past, past + length, device=embeds.device).expand(batch, -1)
    allowed = voco_mask(image, count, sequence.gather_mask(key_mask, torch.cat([state.columns, new], dim=1)))
    if "eager" in implementation:
        least = torch.finfo(embeds.dtype).min
        allowed = torch.zeros_like(allowed, dtype=embeds.dtype).masked_fill(~allowed, least)
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = new[:1]
    if cache is not None:
        attach_state(cache, state)
    with physical_length(cache):
        output = text(**{**kwargs, "attention_mask": allowed, "position_ids": positions})
    output_cache = compat.cache_of(output)
    if output_cache is not None and int(output_cache.get_seq_length()) > past:
        _forget(output_cache, state, image, key_mask[:, past:])
        attach_state(output_cache, state)
    elif cache is not None and state.complete:  # with gradient checkpointing layers write to no cache
        detach_state(cache)
    return output


def _forget(cache: Any, state: Any, image: Tensor, key_mask: Tensor) -> None:
    """Take the keys and values of new image tokens (B, L) out of every layer, and note what stays."""
    batch, length = image.shape
    held = state.columns.shape[1]
    if not bool(image.any()):
        columns = torch.arange(length, device=image.device).expand(batch, -1)
        state.extend(columns, length, columns.new_zeros(batch, 1), torch.zeros_like(columns, dtype=torch.bool))
        return
    kept = ~image
    counts = kept.sum(dim=1)
    longest = int(counts.max())
    # What goes comes first, so that rows that lose more are padded on the left.
    order = kept.to(torch.uint8).argsort(dim=1, stable=True)[:, length - longest :]
    padding = torch.arange(longest, device=image.device) < (longest - counts)[:, None]
    columns = order.masked_fill(padding, -1)
    earlier = torch.arange(held, device=image.device).expand(batch, -1)
    indices = torch.cat([earlier, order + held], dim=1)[:, None, :, None]
    for layer in cache.layers:
        for name in ("keys", "values"):
            full = getattr(layer, name)
            setattr(layer, name, full.gather(2, indices.expand(-1, full.shape[1], -1, full.shape[3])))
    state.extend(columns, length, image.sum(dim=1, keepdim=True), torch.zeros_like(columns, dtype=torch.bool))


def add_voco_tokens(model: Any, processor: Any, count: int, seed: int = 0) -> None:
    """Give a LLaVA-UHD and its processor VoCo tokens; the model must then be trained with them.

    The embedding is drawn with the spread of the others; the global random state is left alone.

    Args:
        model: A `LlavaUHDForConditionalGeneration`.
        processor: Its processor, which writes the tokens after every image from now on.
        count: VoCo tokens after every image, 1 or more.
        seed: Of the embedding.

    Raises:
        FoveateError: the model is of another kind, or `count` is below 1.
    """
    if model.config.model_type != "llava_uhd":
        raise FoveateError(f"VoCo tokens are for llava-uhd models, not for {model.config.model_type}.")
    if count < 1:
        raise FoveateError(f"an image is read through 1 VoCo token or more, not {count}.")
    tokenizer = processor.tokenizer
    if VOCO_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([VOCO_TOKEN], special_tokens=True)
        token = tokenizer.convert_tokens_to_ids(VOCO_TOKEN)
        size = model.config.text_config.vocab_size
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            if token >= size:
                model.resize_token_embeddings(token + 1, mean_resizing=False)
            weight = model.get_input_embeddings().weight
            weight[token] = torch.randn(weight.shape[1]).to(weight) * weight[:size].std() + weight[:size].mean(dim=0)
    model.config.voco_token_id = tokenizer.convert_tokens_to_ids(VOCO_TOKEN)
    model.config.num_voco_tokens = processor.num_voco_tokens = count

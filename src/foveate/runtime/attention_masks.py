"""Attention masks of a call of the language model: padding, packed samples, and masks of any form.

Training without padding packs several samples into one row, and marks them by position ids that restart (with no
mask), by the boundaries that flash attention takes, or by a 4D mask. What a method sees of a sequence, and the mask
of the pruned one, follow from what is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.masking_utils import create_masks_for_generate

from foveate import compat
from foveate.core import sequence
from foveate.core.attention import may_attend
from foveate.core.errors import FoveateError
from foveate.families import Family

#: Arguments that hold the sample boundaries in calls of models with flash attention.
FLASH_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


@dataclass(frozen=True)
class SequenceMasks:
    """Which tokens attend to which, for L new columns and those in the cache.

    Args:
        padding_mask: (B, past + L) 0 for padding.
        length: New columns L.
        sample_ids: (B, L) the sample of each new column; None: every row is one sample.
        pair_mask: (B, L, past + L) bool, where attention is neither causal nor causal in each sample.
        user_masks: 4D masks that the user gave, by layer type or one for all, which are pruned with the sequence; None:
            the mask is made from the other fields.
    """

    padding_mask: Tensor
    length: int
    sample_ids: Tensor | None = None
    pair_mask: Tensor | None = None
    user_masks: Any = None

    @property
    def packed(self) -> bool:
        """Whether a mask must be made that separates samples."""
        return self.sample_ids is not None and self.user_masks is None

    def same_sample(self, row: int, columns: Tensor) -> Tensor | None:
        """(L,) bool, the new columns in the same sample as an image at `columns`; None: the whole row.

        Raises:
            FoveateError: the image is not within one sample.
        """
        return same_sample(self.sample_ids, self.pair_mask, row, columns)


def same_sample(sample_ids: Tensor | None, pair_mask: Tensor | None, row: int, columns: Tensor) -> Tensor | None:
    """See `SequenceMasks.same_sample`."""
    if sample_ids is not None:
        image_samples = sample_ids[row, columns]
        if len(image_samples) and bool((image_samples != image_samples[0]).any()):
            raise FoveateError(
                "an image lies in two of the samples that are packed into its row; give every image one sample."
            )
        return (
            sample_ids[row] == image_samples[0]
            if len(image_samples)
            else torch.zeros_like(sample_ids[row], dtype=torch.bool)
        )
    if pair_mask is not None:
        new = pair_mask[row][:, pair_mask.shape[2] - pair_mask.shape[1] :]
        return new[:, columns].any(dim=1) | new[columns].any(dim=0)
    return None


def read_masks(
    family: Family,
    core: Any,
    attention_mask: Any,
    kwargs: Mapping[str, Any],
    types: Tensor | None,
    images: bool,
    cache: Any,
    past: int,
) -> SequenceMasks:
    """Read the masks of a call of the language model.

    Args:
        family: The family of the model.
        core: The model.
        attention_mask: The mask argument of the core, in any form.
        kwargs: What the core calls its language model with.
        types: Token types that the core was called with, if any.
        images: Whether it was called with images.
        cache: What the language model will write to; None: nothing.
        past: Columns before the new ones.

    Raises:
        FoveateError: the mask has a form that cannot be pruned, or samples are packed in a way that the language model
            ignores.
    """
    embeds: Tensor = kwargs["inputs_embeds"]
    batch, length = embeds.shape[:2]
    core_mask = kwargs.get("attention_mask")
    if attention_mask is None and isinstance(core_mask, Tensor) and core_mask.ndim == 2:
        attention_mask = core_mask
    padding_mask = torch.ones(batch, past + length, dtype=torch.int64, device=embeds.device)
    if attention_mask is None or (isinstance(attention_mask, Tensor) and attention_mask.ndim == 2):
        if attention_mask is not None:  # cached columns that it leaves out count as real
            # Models read a longer mask, such as one of a static cache's length, from its first column on.
            given_columns = attention_mask[:, : past + length]
            padding_mask[:, past + length - given_columns.shape[1] :] = given_columns.to(padding_mask)
        # Families that make masks in the core do not know a cache that the language model makes itself.
        visible_cache = cache if type(family).mask is Family.mask else compat.cache_in(kwargs)
        sample_ids = _sample_ids(family, core, attention_mask, kwargs, visible_cache)
        if sample_ids is not None:
            _check_layers(family.text(core))
        return SequenceMasks(padding_mask, length, sample_ids)
    forms = dict(attention_mask) if isinstance(attention_mask, Mapping) else {"full_attention": attention_mask}
    # Layers with linear attention get a padding mask only.
    linear_mask = forms.pop("linear_attention") if _has_linear_mask(forms) else None
    for mask in forms.values():
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 4):
            shape = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"type {type(mask).__name__}"
            raise FoveateError(
                f"an attention mask of {shape} cannot be pruned; give one of (batch, length) or of (batch, 1, "
                "queries, keys), boolean or additive."
            )
    pairs = {kind: _pairs(mask, batch, length, past) for kind, mask in forms.items()}
    full_pairs = pairs.get("full_attention", next(iter(pairs.values())))
    visible = _visible_columns(full_pairs)
    if (linear_mask is None or torch.equal(linear_mask > 0, visible[:, -linear_mask.shape[1] :])) and _is_model_mask(
        family, core, kwargs, types, images, cache, visible, pairs, isinstance(attention_mask, Mapping)
    ):
        return SequenceMasks(visible.long(), length)
    _check_layers(family.text(core))
    sample_ids = None if past else _causal_samples(full_pairs, visible)
    return SequenceMasks(visible.long(), length, sample_ids, full_pairs if sample_ids is None else None, attention_mask)


# Packed samples


def _sample_ids(
    family: Family, core: Any, attention_mask: Tensor | None, kwargs: Mapping[str, Any], cache: Any
) -> Tensor | None:
    """(B, L) sample of each column, as the language model would separate them; None where it would not."""
    embeds: Tensor = kwargs["inputs_embeds"]
    batch, length = embeds.shape[:2]
    text: Any = family.text(core)
    name = compat.attention_name(text.config)
    flash = "flash" in name
    edges = kwargs.get("cu_seq_lens_q")
    positions = kwargs.get("position_ids")
    text_positions = family.text_positions(positions)
    from_positions = None
    if (
        attention_mask is None
        and text_positions is not None
        and text_positions.shape[-1] == length
        and (flash or cache is None)
    ):
        jumps = text_positions[:, 1:] != text_positions[:, :-1] + 1
        if bool(jumps.any()) and (batch == 1 or not flash):
            from_positions = F.pad(jumps.cumsum(dim=1), (1, 0)).expand(batch, -1)
    if edges is not None:
        columns = torch.arange(length, device=embeds.device)
        from_edges = torch.searchsorted(edges.to(embeds.device).to(columns), columns, right=True)[None] - 1
        if flash:
            return from_edges if bool((from_edges != from_edges[:, :1]).any()) else None
        if bool((from_edges != from_edges[:, :1]).any()) and (
            from_positions is None or not _same_boundaries(from_edges, from_positions)
        ):
            raise FoveateError(
                f"cu_seq_lens_q says that samples are packed into a row, which {name} attention ignores; give "
                "position_ids that restart for every sample, no attention_mask and use_cache=False, too."
            )
    if (
        from_positions is None
        and text_positions is None
        and positions is not None
        and attention_mask is None
        and cache is None
    ):
        first = positions[0] if positions.ndim == 3 else positions
        if bool((first[:, 1:] < first[:, :-1]).any()):
            raise FoveateError(
                f"position_ids restart within a row, and {type(text).__name__} separates samples only by "
                "position_ids of (4, batch, length): text positions, then time, height and width."
            )
    return from_positions


def _check_layers(text: Any) -> None:
    """Raise FoveateError for layers that read a row as one sample and ignore masks."""
    if "linear_attention" in (getattr(text.config, "layer_types", None) or ()):
        raise FoveateError(
            f"linear-attention layers of {type(text).__name__} read a row as one causal sample; give every sample its "
            "own row, and a mask of (batch, length)."
        )


def _same_boundaries(first: Tensor, second: Tensor) -> bool:
    """Whether two sets of sample ids (B, L) have the same boundaries."""
    return torch.equal((first[:, 1:] != first[:, :-1]).expand(len(second), -1), second[:, 1:] != second[:, :-1])


def packed_positions(sample_ids: Tensor, padding: Tensor) -> Tensor:
    """(B, P) position ids that restart at every sample and have no gaps.

    Args:
        sample_ids: (B, P) the sample of every position.
        padding: (B, P) bool.
    """
    sample_ids = sample_ids.masked_fill(padding, -1)
    place = torch.arange(sample_ids.shape[1], device=sample_ids.device).expand(len(sample_ids), -1)
    begins = F.pad(sample_ids[:, 1:] != sample_ids[:, :-1], (1, 0), value=True)
    return place - torch.where(begins, place, 0).cummax(dim=1).values


def separate_samples(masks: Any, sample_ids: Tensor, padding: Tensor, added: bool, dtype: torch.dtype) -> Any:
    """Masks in which no sample attends to another, by layer type or one for all.

    Args:
        masks: The model's masks for one sample per row.
        sample_ids: (B, P) the sample of every position.
        padding: (B, P) bool.
        added: Whether the result is additive rather than boolean.
        dtype: Dtype of additive masks.
    """
    if isinstance(masks, Mapping):
        return {kind: separate_samples(mask, sample_ids, padding, added, dtype) for kind, mask in masks.items()}
    batch, count = sample_ids.shape
    allowed = _pairs(masks, batch, count, 0).to(sample_ids.device) & (sample_ids[:, None] == sample_ids[:, :, None])
    allowed = ((allowed & ~padding[:, None]) | padding[:, :, None])[
        :, None
    ]  # a row that attends to nothing would be NaN
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min) if added else allowed


def flash_arguments(sample_ids: Tensor) -> dict[str, Any]:
    """Flash attention's boundary arguments for the samples (1, P) of a row."""
    begins = (sample_ids[0, 1:] != sample_ids[0, :-1]).nonzero().flatten() + 1
    ends = torch.tensor([sample_ids.shape[1]], device=sample_ids.device)
    edges = torch.cat([ends.new_zeros(1), begins, ends]).to(torch.int32)
    longest = int(edges.diff().max())
    return {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": longest, "max_length_k": longest}


# 4D masks


def _pairs(mask: Tensor | None, batch: int, length: int, past: int) -> Tensor:
    """(B, L, past + L) bool, a 4D mask of any form as boolean pairs; None is causal."""
    total = past + length
    if mask is None:
        pairs = torch.ones(length, total, dtype=torch.bool).tril(past)
        return pairs.expand(batch, -1, -1)
    if mask.shape[2] != length:
        raise FoveateError(f"an attention mask of shape {tuple(mask.shape)} does not fit {length} new tokens.")
    pairs = may_attend(mask).any(dim=1).expand(batch, -1, -1)  # allowed in any head
    missing = total - pairs.shape[2]  # windows drop the first keys; static caches are longer
    return F.pad(pairs, (missing, 0)) if missing > 0 else pairs[:, :, :total]


def _has_linear_mask(forms: Mapping[str, Any]) -> bool:
    """Whether the masks by layer type include a padding mask (B, L) or None for linear attention."""
    mask = forms.get("linear_attention")
    return "linear_attention" in forms and len(forms) > 1 and (mask is None or getattr(mask, "ndim", 0) == 2)


def _visible_columns(pairs: Tensor) -> Tensor:
    """(B, past + L) bool, the columns that any query attends to.

    Left padding is often written as attending to everything, itself included: such query rows do not count.
    """
    past = pairs.shape[2] - pairs.shape[1]
    full = pairs.all(dim=2)
    by_others = (pairs & ~full[..., None]).any(dim=1)
    idle = (full & ~by_others[:, past:]).to(torch.uint8).cumprod(dim=1).bool()
    idle &= ~idle.all(dim=1, keepdim=True)
    return (pairs & ~idle[..., None]).any(dim=1)


def _is_model_mask(
    family: Family,
    core: Any,
    kwargs: Mapping[str, Any],
    types: Tensor | None,
    images: bool,
    cache: Any,
    padding_mask: Tensor,
    pairs: Mapping[str, Tensor],
    by_kind: bool,
) -> bool:
    """Whether masks equal those that the model makes from padding; then they are made anew for the pruned sequence.

    `generate` passes such masks with a static cache.
    """
    batch, length = kwargs["inputs_embeds"].shape[:2]
    past = padding_mask.shape[1] - length
    arguments = compat.with_cache({**kwargs, "attention_mask": padding_mask.long()}, cache)
    if types is not None and types.shape[-1] != padding_mask.shape[1]:  # of the new tokens alone
        types = F.pad(types, (padding_mask.shape[1] - types.shape[-1], 0), value=family.answer_type)
    model_mask = family.mask(core, arguments, types, images)
    if isinstance(model_mask, Tensor) and model_mask.ndim == 2:
        model_mask = create_masks_for_generate(
            family.text(core).config, arguments["inputs_embeds"], model_mask, cache, arguments.get("position_ids")
        )
    if isinstance(model_mask, Mapping) and by_kind:
        expected = {kind: model_mask[kind] for kind in pairs if kind in model_mask}
    elif isinstance(model_mask, Mapping):
        expected = {
            kind: expected_mask
            for kind, expected_mask in model_mask.items()
            if expected_mask is None or isinstance(expected_mask, Tensor)
        }
    else:
        expected = dict.fromkeys(pairs, model_mask)
    if not expected or any(
        expected_mask is not None and expected_mask.ndim != 4 for expected_mask in expected.values()
    ):
        return False
    real = padding_mask[:, past:, None]
    for kind, expected_mask in expected.items():
        pair_mask = pairs.get(kind, next(iter(pairs.values())))
        if not torch.equal(_pairs(expected_mask, batch, length, past).to(pair_mask.device) & real, pair_mask & real):
            return False
    return True


def _causal_samples(pairs: Tensor, visible: Tensor) -> Tensor | None:
    """(B, L) sample of each column if a mask (B, L, L) is causal within samples and nothing else; None otherwise."""
    length = pairs.shape[1]
    place = torch.arange(length, device=pairs.device)
    first = torch.where(pairs, place, length).amin(dim=2)
    real = visible & (first < length)
    first = torch.where(real, first, -1).cummax(dim=1).values
    expected = (place <= place[:, None]) & (place >= first[..., None]) & visible[:, None]
    if not torch.equal(expected & real[..., None], pairs & real[..., None]):
        return None
    return F.pad((first[:, 1:] != first[:, :-1]).cumsum(dim=1), (1, 0))


def prune_masks(
    masks: SequenceMasks, columns: Tensor, keys: Tensor, config: Any, dtype: torch.dtype, cache: Any
) -> Any:
    """Prune the masks that the user gave.

    Args:
        masks: Masks of the full sequence.
        columns: (B, P) the new columns that are kept.
        keys: (B, N) the columns in the cache, then the new ones.
        config: Configuration of the language model.
        dtype: Dtype of the hidden states.
        cache: The cache of the call, if any.

    Raises:
        FoveateError: the cache is static and has sliding windows.
    """
    total = masks.padding_mask.shape[1]
    capacity = _capacity(cache)
    window = getattr(config, "sliding_window", None)

    def pruned(kind: str, mask: Tensor | None) -> Tensor | None:
        layer_keys = keys
        if kind == "sliding_attention" and window is not None and cache is not None:
            if capacity is not None:
                raise FoveateError(
                    "4D masks cannot be pruned for a static cache with sliding windows; use a dynamic one."
                )
            before = keys.shape[1] - columns.shape[1]
            layer_keys = keys[:, max(before - window + 1, 0) :]
        if mask is None:
            if bool((keys >= 0).all()):
                return None
            pairs = _pairs(None, len(columns), masks.length, total - masks.length).to(columns.device)
            mask = (pairs & (masks.padding_mask[:, None] > 0))[:, None]
            if "eager" in compat.attention_name(config):
                mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        offset = max(total - mask.shape[3], 0)
        places = torch.where(layer_keys < offset, -1, layer_keys - offset)
        pruned_mask = sequence.gather_pairs(mask.to(columns.device), columns, places)
        if capacity is None:
            return pruned_mask
        lowest = False if pruned_mask.dtype == torch.bool else torch.finfo(pruned_mask.dtype).min
        return F.pad(pruned_mask, (0, capacity - pruned_mask.shape[3]), value=lowest)

    if isinstance(masks.user_masks, Mapping):
        return {kind: pruned(kind, mask) for kind, mask in masks.user_masks.items()}
    return pruned("full_attention", masks.user_masks)


def _capacity(cache: Any) -> int | None:
    """Length of a static cache's first layer; None: the cache is dynamic."""
    layers = getattr(cache, "layers", None)
    return getattr(layers[0], "max_cache_len", None) if layers else None

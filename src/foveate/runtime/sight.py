"""Who may see whom in a call of the language model: padding, samples packed into one row, and masks of any form.

Training without padding writes several samples into one row, and says so by position ids that begin anew (with no
mask), by the edges that flash attention takes, or by a mask of pairs. What a method is shown of a sequence, and the
mask of the shorter one, follow from what is read here.
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

#: What says where samples begin, in calls of models with flash attention.
EDGES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


@dataclass(frozen=True)
class Sight:
    """Who may see whom, of L new columns and those that a cache holds.

    Args:
        seen: (B, past + L) 0 for padding.
        length: New columns L.
        blocks: (B, L) the sample that each new column is of; None: every row is one sample.
        allowed: (B, L, past + L) bool, where that is neither causal nor causal in each sample.
        masks: Masks of pairs that a user gave, by kind of layer or one for all, which the shorter sequence obeys;
            None: the mask follows from the others.
    """

    seen: Tensor
    length: int
    blocks: Tensor | None = None
    allowed: Tensor | None = None
    masks: Any = None

    @property
    def packed(self) -> bool:
        """Whether a mask must be made that keeps samples apart."""
        return self.blocks is not None and self.masks is None

    def company(self, row: int, columns: Tensor) -> Tensor | None:
        """(L,) bool, the new columns of the sample that an image at `columns` is of; None: all of the row.

        Raises:
            FoveateError: it is not within one sample.
        """
        return company(self.blocks, self.allowed, row, columns)


def company(blocks: Tensor | None, allowed: Tensor | None, row: int, columns: Tensor) -> Tensor | None:
    """See `Sight.company`."""
    if blocks is not None:
        own = blocks[row, columns]
        if len(own) and bool((own != own[0]).any()):
            raise FoveateError("an image lies in two of the samples that are packed into its row.")
        return blocks[row] == own[0] if len(own) else torch.zeros_like(blocks[row], dtype=torch.bool)
    if allowed is not None:
        new = allowed[row][:, allowed.shape[2] - allowed.shape[1] :]
        return new[:, columns].any(dim=1) | new[columns].any(dim=0)
    return None


def sight_of(
    family: Family,
    core: Any,
    given: Any,
    kwargs: Mapping[str, Any],
    types: Tensor | None,
    images: bool,
    cache: Any,
    past: int,
) -> Sight:
    """Who may see whom in a call.

    Args:
        family: The family of the model.
        core: The model.
        given: The mask that the core was called with, in any form.
        kwargs: What the core calls its language model with.
        types: Token types that the core was called with.
        images: Whether it was called with images.
        cache: What the language model will write to; None: nothing.
        past: Columns before the new ones.

    Raises:
        FoveateError: the mask has a form that no shorter one can be made of, or samples are packed in a way that the
            language model does not read.
    """
    embeds: Tensor = kwargs["inputs_embeds"]
    batch, length = embeds.shape[:2]
    made = kwargs.get("attention_mask")
    if given is None and isinstance(made, Tensor) and made.ndim == 2:
        given = made
    ones = torch.ones(batch, past + length, dtype=torch.int64, device=embeds.device)
    if given is None or (isinstance(given, Tensor) and given.ndim == 2):
        if given is not None:  # what it does not say of older columns is that they count
            own = given[:, -(past + length) :]
            ones[:, past + length - own.shape[1] :] = own.to(ones)
        # Families that make their masks in the core know nothing of a cache that the language model makes for itself.
        known = cache if type(family).mask is Family.mask else compat.cache_in(kwargs)
        blocks = _blocks(family, core, given, kwargs, known)
        if blocks is not None:
            _check_layers(family.text(core))
        return Sight(ones, length, blocks)
    forms = dict(given) if isinstance(given, Mapping) else {"full_attention": given}
    # Layers with linear attention are told of padding alone.
    padding = forms.pop("linear_attention") if _tells_padding(forms) else None
    for mask in forms.values():
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 4):
            shape = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"type {type(mask).__name__}"
            raise FoveateError(
                f"an attention mask of {shape} cannot be shortened; give one of (batch, length) or of (batch, 1, "
                "queries, keys), bool or added."
            )
    pairs = {kind: _pairs(mask, batch, length, past) for kind, mask in forms.items()}
    main = pairs.get("full_attention", next(iter(pairs.values())))
    seen = _seen(main)
    if (padding is None or torch.equal(padding > 0, seen[:, -padding.shape[1] :])) and _standard(
        family, core, kwargs, types, images, cache, seen, pairs, isinstance(given, Mapping)
    ):
        return Sight(seen.long(), length)
    _check_layers(family.text(core))
    blocks = None if past else _causal_blocks(main, seen)
    return Sight(seen.long(), length, blocks, main if blocks is None else None, given)


# Packed samples


def _blocks(family: Family, core: Any, given: Tensor | None, kwargs: Mapping[str, Any], cache: Any) -> Tensor | None:
    """(B, L) the samples of each row, as the language model would tell them apart; None where it would not."""
    embeds: Tensor = kwargs["inputs_embeds"]
    batch, length = embeds.shape[:2]
    text: Any = family.text(core)
    name = compat.attention_name(text.config)
    flash = "flash" in name
    edges = kwargs.get("cu_seq_lens_q")
    positions = kwargs.get("position_ids")
    own = family.text_positions(positions)
    found = None
    if given is None and own is not None and own.shape[-1] == length and (flash or cache is None):
        jumps = own[:, 1:] != own[:, :-1] + 1
        if bool(jumps.any()) and (batch == 1 or not flash):
            found = F.pad(jumps.cumsum(dim=1), (1, 0)).expand(batch, -1)
    if edges is not None:
        within = torch.arange(length, device=embeds.device)
        told = torch.searchsorted(edges.to(embeds.device).to(within), within, right=True)[None] - 1
        if flash:
            return told if bool((told != told[:, :1]).any()) else None
        if bool((told != told[:, :1]).any()) and (found is None or not _same_blocks(told, found)):
            raise FoveateError(
                f"cu_seq_lens_q says that samples are packed into a row, which {name} attention does not read; give "
                "position_ids that begin anew for every sample, no attention_mask and use_cache=False, too."
            )
    if found is None and own is None and positions is not None and given is None and cache is None:
        first = positions[0] if positions.ndim == 3 else positions
        if bool((first[:, 1:] < first[:, :-1]).any()):
            raise FoveateError(
                f"position_ids begin anew within a row, and {type(text).__name__} tells samples apart only by "
                "position_ids of (4, batch, length): those of plain text before those of time, height and width."
            )
    return found


def _check_layers(text: Any) -> None:
    """Raise FoveateError for layers that read a row as one sample, whatever a mask says."""
    if "linear_attention" in (getattr(text.config, "layer_types", None) or ()):
        raise FoveateError(
            f"layers of {type(text).__name__} with linear attention read a row as one causal sample; give every sample "
            "a row of its own, and a mask of (batch, length)."
        )


def _same_blocks(one: Tensor, other: Tensor) -> bool:
    """Whether two numberings (B, L) begin new samples at the same columns."""
    return torch.equal((one[:, 1:] != one[:, :-1]).expand(len(other), -1), other[:, 1:] != other[:, :-1])


def packed_positions(blocks: Tensor, padding: Tensor) -> Tensor:
    """(B, P) position ids that begin anew at every sample and have no gaps, by which models tell samples apart.

    Args:
        blocks: (B, P) the sample of every position.
        padding: (B, P) bool.
    """
    blocks = blocks.masked_fill(padding, -1)
    place = torch.arange(blocks.shape[1], device=blocks.device).expand(len(blocks), -1)
    begins = F.pad(blocks[:, 1:] != blocks[:, :-1], (1, 0), value=True)
    return place - torch.where(begins, place, 0).cummax(dim=1).values


def apart(masks: Any, blocks: Tensor, padding: Tensor, added: bool, dtype: torch.dtype) -> Any:
    """Masks of rows, by kind of layer or one for all, in which no sample sees another.

    Args:
        masks: As the model makes them of one sample a row.
        blocks: (B, P) the sample of every position.
        padding: (B, P) bool.
        added: Whether masks are added to logits.
        dtype: Of masks that are.
    """
    if isinstance(masks, Mapping):
        return {kind: apart(mask, blocks, padding, added, dtype) for kind, mask in masks.items()}
    batch, count = blocks.shape
    seen = _pairs(masks, batch, count, 0).to(blocks.device) & (blocks[:, None] == blocks[:, :, None])
    seen = ((seen & ~padding[:, None]) | padding[:, :, None])[:, None]  # what sees nothing is no number
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min) if added else seen


def edges_of(blocks: Tensor) -> dict[str, Any]:
    """What flash attention is told of the samples (1, P) of a row."""
    begins = (blocks[0, 1:] != blocks[0, :-1]).nonzero().flatten() + 1
    ends = torch.tensor([blocks.shape[1]], device=blocks.device)
    edges = torch.cat([ends.new_zeros(1), begins, ends]).to(torch.int32)
    longest = int(edges.diff().max())
    return {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": longest, "max_length_k": longest}


# Masks of pairs


def _pairs(mask: Tensor | None, batch: int, length: int, past: int) -> Tensor:
    """(B, L, past + L) bool, who sees whom by a mask of any form; None is causal."""
    total = past + length
    if mask is None:
        own = torch.ones(length, total, dtype=torch.bool).tril(past)
        return own.expand(batch, -1, -1)
    if mask.shape[2] != length:
        raise FoveateError(f"an attention mask of shape {tuple(mask.shape)} is not one for {length} new tokens.")
    own = may_attend(mask).any(dim=1).expand(batch, -1, -1)  # of some head
    missing = total - own.shape[2]  # a window has forgotten what came first; a static cache has room behind
    return F.pad(own, (missing, 0)) if missing > 0 else own[:, :, :total]


def _tells_padding(forms: Mapping[str, Any]) -> bool:
    """Whether masks by kind of layer hold one of padding (B, L), or None, for linear attention beside others."""
    mask = forms.get("linear_attention")
    return "linear_attention" in forms and len(forms) > 1 and (mask is None or getattr(mask, "ndim", 0) == 2)


def _seen(pairs: Tensor) -> Tensor:
    """(B, past + L) bool, what is seen by anybody.

    Padding on the left is often written so that it sees everything, itself too: such rows do not count.
    """
    past = pairs.shape[2] - pairs.shape[1]
    full = pairs.all(dim=2)
    by_others = (pairs & ~full[..., None]).any(dim=1)
    idle = (full & ~by_others[:, past:]).to(torch.uint8).cumprod(dim=1).bool()
    idle &= ~idle.all(dim=1, keepdim=True)
    return (pairs & ~idle[..., None]).any(dim=1)


def _standard(
    family: Family,
    core: Any,
    kwargs: Mapping[str, Any],
    types: Tensor | None,
    images: bool,
    cache: Any,
    seen: Tensor,
    pairs: Mapping[str, Tensor],
    by_kind: bool,
) -> bool:
    """Whether masks are only what the model itself makes of padding: then those of the shorter sequence are made anew.

    `generate` hands such masks over where a cache is of fixed size.
    """
    batch, length = kwargs["inputs_embeds"].shape[:2]
    past = seen.shape[1] - length
    arguments = compat.with_cache({**kwargs, "attention_mask": seen.long()}, cache)
    if types is not None and types.shape[-1] != seen.shape[1]:  # of the new tokens alone
        types = F.pad(types, (seen.shape[1] - types.shape[-1], 0), value=family.answer_type)
    own = family.mask(core, arguments, types, images)
    if isinstance(own, Tensor) and own.ndim == 2:
        own = create_masks_for_generate(
            family.text(core).config, arguments["inputs_embeds"], own, cache, arguments.get("position_ids")
        )
    if isinstance(own, Mapping) and by_kind:
        expected = {kind: own[kind] for kind in pairs if kind in own}
    elif isinstance(own, Mapping):
        expected = {kind: mask for kind, mask in own.items() if mask is None or isinstance(mask, Tensor)}
    else:
        expected = dict.fromkeys(pairs, own)
    if not expected or any(mask is not None and mask.ndim != 4 for mask in expected.values()):
        return False
    real = seen[:, past:, None]
    for kind, mask in expected.items():
        given = pairs.get(kind, next(iter(pairs.values())))
        if not torch.equal(_pairs(mask, batch, length, past).to(given.device) & real, given & real):
            return False
    return True


def _causal_blocks(pairs: Tensor, seen: Tensor) -> Tensor | None:
    """(B, L) the samples of each row where a mask (B, L, L) is causal within each and nothing else; None elsewhere."""
    length = pairs.shape[1]
    place = torch.arange(length, device=pairs.device)
    first = torch.where(pairs, place, length).amin(dim=2)
    real = seen & (first < length)
    first = torch.where(real, first, -1).cummax(dim=1).values
    expected = (place <= place[:, None]) & (place >= first[..., None]) & seen[:, None]
    if not torch.equal(expected & real[..., None], pairs & real[..., None]):
        return None
    return F.pad((first[:, 1:] != first[:, :-1]).cumsum(dim=1), (1, 0))


def shorten_masks(sight: Sight, columns: Tensor, keys: Tensor, config: Any, dtype: torch.dtype, cache: Any) -> Any:
    """The masks that a user gave, for the shorter sequence.

    Args:
        sight: Of the long sequence.
        columns: (B, P) the new columns that stay.
        keys: (B, N) all columns that the cache holds and the new ones.
        config: Of the language model.
        dtype: Of the hidden states.
        cache: What the language model writes to.

    Raises:
        FoveateError: a cache of fixed size with windows has no room for such masks.
    """
    total = sight.seen.shape[1]
    room = _room(cache)
    window = getattr(config, "sliding_window", None)

    def shorter(kind: str, mask: Tensor | None) -> Tensor | None:
        held = keys
        if kind == "sliding_attention" and window is not None and cache is not None:
            if room is not None:
                raise FoveateError(
                    "masks of pairs cannot be shortened for a static cache with sliding windows; use a dynamic one."
                )
            before = keys.shape[1] - columns.shape[1]
            held = keys[:, max(before - window + 1, 0) :]
        if mask is None:
            if bool((keys >= 0).all()):
                return None
            pairs = _pairs(None, len(columns), sight.length, total - sight.length).to(columns.device)
            mask = (pairs & (sight.seen[:, None] > 0))[:, None]
            if "eager" in compat.attention_name(config):
                mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        offset = max(total - mask.shape[3], 0)
        places = torch.where(held < offset, -1, held - offset)
        short = sequence.gather_pairs(mask.to(columns.device), columns, places)
        if room is None:
            return short
        least = False if short.dtype == torch.bool else torch.finfo(short.dtype).min
        return F.pad(short, (0, room - short.shape[3]), value=least)

    if isinstance(sight.masks, Mapping):
        return {kind: shorter(kind, mask) for kind, mask in sight.masks.items()}
    return shorter("full_attention", sight.masks)


def _room(cache: Any) -> int | None:
    """Entries that a cache of fixed size has in its first layer; None: it grows."""
    layers = getattr(cache, "layers", None)
    return getattr(layers[0], "max_cache_len", None) if layers else None

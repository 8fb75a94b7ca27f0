"""The seam before the language model: here the sequence gets shorter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.encoders.merging.unmerging import sequence_groups
from foveate.errors import FoveateError
from foveate.families import Family
from foveate.plan import Plan
from foveate.runtime import sequence
from foveate.runtime.cache import Kept, inside, kept_of, mark
from foveate.runtime.carried import carried_ids, carrying
from foveate.runtime.choosing import Frame
from foveate.runtime.sequence import Chosen, Shorter
from foveate.runtime.virtual_unmerging import virtual_unmerging


@dataclass
class Seam:
    """Calls a language model with a shorter sequence than it would have got.

    Args:
        family: The family of the model.
        core: The model without its output layer.
        plan: For messages.
        renumber: Close the gaps in positions that left-out tokens leave, where positions have one axis.
        virtual: Merged tokens attend as if they had not been merged (DyMU); the sequence keeps its length.
    """

    family: Family
    core: Any
    plan: Plan
    renumber: bool
    virtual: bool

    def forward(
        self, original: Callable[..., Any], frame: Frame, chosen: list[Chosen], kwargs: dict[str, Any]
    ) -> tuple[Any, Tensor | None]:
        """Call the language model with what stays.

        Args:
            original: Its forward.
            frame: The pass.
            chosen: What stays of every image of the pass.
            kwargs: What the core calls the language model with.

        Returns:
            Its output, and the columns (B, P) of the short sequence; None where nothing got shorter.

        Raises:
            FoveateError: the cache is of other conversations than these.
        """
        embeds = kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        kept = kept_of(cache)
        if kept is None and all(image.changes_nothing for image in chosen):
            return original(**kwargs), None
        if self.virtual:
            with virtual_unmerging(self.family.text(self.core), _groups(chosen, embeds)):
                return original(**kwargs), None
        batch, length = embeds.shape[:2]
        past = 0 if cache is None else int(cache.get_seq_length())
        if kept is None:
            earlier = torch.arange(past, device=embeds.device).expand(batch, -1)
            kept = Kept(earlier, past, torch.zeros(batch, 1, dtype=torch.int64, device=embeds.device))
        if len(kept.columns) != batch:
            raise FoveateError(f"a cache of {len(kept.columns)} conversations cannot go on with a batch of {batch}.")
        mask = frame.arguments.get("attention_mask")
        seen = sequence.key_mask(kwargs.get("attention_mask") if mask is None else mask, past + length)
        seen = _of_length(seen, batch, past + length, embeds.device)
        short = sequence.kept_columns(batch, length, chosen, seen[:, past:], embeds.device)
        kwargs |= self._shortened(frame, kwargs, short, chosen, kept, seen)
        if cache is not None:
            mark(cache, kept)
        with inside(cache), carrying(self.family.text(self.core), self._carried(short, chosen, frame, kwargs)):
            output = original(**kwargs)
        kept.extend(short.columns, length, short.total)
        made = getattr(output, "past_key_values", None)
        if made is not None and made is not cache:
            mark(made, kept)
        return output, short.columns

    def _carried(self, short: Shorter, chosen: list[Chosen], frame: Frame, kwargs: dict[str, Any]) -> list[Tensor]:
        """Position ids for every member that a token carries the position of; none where each has only its own."""
        if all(image.selection.positions is None for image in chosen):
            return []
        if self.renumber:
            raise FoveateError(f"{self.plan} gives tokens several positions of the original sequence; leave them so.")
        long = frame.positions
        if long is None:
            long = torch.arange(int(short.columns.max()) + 1, device=short.columns.device)[None]
        return carried_ids(kwargs["position_ids"], long, short.columns, chosen)

    def _shortened(
        self, frame: Frame, kwargs: dict[str, Any], shorter: Shorter, chosen: list[Chosen], kept: Kept, seen: Tensor
    ) -> dict[str, Any]:
        """The arguments of the language model that differ for the short sequence."""
        embeds, columns = kwargs["inputs_embeds"], shorter.columns
        length, past = embeds.shape[1], kept.length
        short: dict[str, Any] = {"inputs_embeds": sequence.shorten_features(embeds, columns, chosen)}
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(past, past + length, device=embeds.device)[None]
        gone = shorter.gone + kept.gone if self.renumber else None
        short["position_ids"] = sequence.gather_positions(positions, columns, gone)
        everything = torch.cat([kept.columns, torch.where(columns < 0, -1, columns + past)], dim=1)
        short["attention_mask"] = sequence.gather_mask(seen, everything)

        if kwargs.get("visual_pos_masks") is not None:
            planes, visual = sequence.shorten_planes(
                kwargs["deepstack_visual_embeds"], kwargs["visual_pos_masks"], columns, chosen
            )
            short |= {"deepstack_visual_embeds": planes, "visual_pos_masks": visual}
        if kwargs.get("per_layer_inputs") is not None:
            short["per_layer_inputs"] = sequence.gather(kwargs["per_layer_inputs"], columns)
        types = next(
            (frame.arguments[n] for n in ("token_type_ids", "mm_token_type_ids") if frame.arguments.get(n) is not None),
            None,
        )
        if types is not None and types.shape[-1] == length:
            types = sequence.gather_mask(types, columns)
        elif types is not None and types.shape[-1] == past + length:
            types = sequence.gather_mask(types, everything)
        with inside(kwargs.get("past_key_values")):
            arguments = {**kwargs, **short}
            short["attention_mask"] = self.family.mask(self.core, arguments, types)
        return short


def _groups(chosen: list[Chosen], embeds: Tensor) -> Tensor:
    """Which positions (B, L) of a sequence are one row after merging."""
    image = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    order = sorted(chosen, key=lambda one: (one.row, int(one.columns[0])))
    for one in order:
        image[one.row, one.columns] = True
    return sequence_groups(image, [one.selection.members(len(one.columns)) for one in order])


def _of_length(seen: Tensor | None, batch: int, length: int, device: Any) -> Tensor:
    """A mask (B, length) of all cached and new positions; what it does not say of the older ones is that they count."""
    ones = torch.ones(batch, length, dtype=torch.int64, device=device)
    if seen is not None:
        ones[:, length - seen.shape[1] :] = seen
    return ones

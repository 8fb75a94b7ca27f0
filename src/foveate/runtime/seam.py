"""The seam before the language model: here the sequence gets shorter."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from foveate.encoders.merging.unmerging import sequence_groups
from foveate.errors import FoveateError
from foveate.families import Family
from foveate.plan import Plan
from foveate.runtime import compat, sequence
from foveate.runtime.cache import Kept, Reader, inside, kept_for, mark, unmark
from foveate.runtime.carried import Carrying, carried_ids
from foveate.runtime.choosing import Frame
from foveate.runtime.layers import LayerSeam
from foveate.runtime.passes import Pass, Placed
from foveate.runtime.patches import Patches
from foveate.runtime.report import ImageReport
from foveate.runtime.sequence import Chosen, Shorter
from foveate.runtime.virtual_unmerging import VirtualUnmerging


@dataclass
class Seam:
    """Calls a language model with a shorter sequence than it would have got.

    Args:
        family: The family of the model.
        core: The model without its output layer.
        plan: For messages.
        renumber: Close the gaps in positions that left-out tokens leave, where positions have one axis.
        virtual: Merged tokens attend as if they had not been merged (DyMU); the sequence keeps its length.
        layers: The seam inside the language model, where the plan has steps there.
    """

    family: Family
    core: Any
    plan: Plan
    renumber: bool
    virtual: bool
    layers: LayerSeam | None = None
    carried: Carrying = field(init=False)
    unmerged: VirtualUnmerging | None = field(init=False)

    def __post_init__(self) -> None:
        text = self.family.text(self.core)
        self.carried = Carrying(text)
        self.unmerged = VirtualUnmerging(text) if self.virtual else None

    def attach(self, patches: Patches) -> None:
        """Install what works inside the language model, until `patches` are undone."""
        self.carried.attach(patches)
        if self.unmerged is not None:
            self.unmerged.attach(patches)

    @cached_property
    def reader(self) -> Reader:
        """Who goes on with the caches that are shortened here: the same plan, also when it was attached anew."""
        inner = None if self.layers is None else self.layers.contiguous
        settings = (str(self.plan), self.renumber, inner)
        return Reader(weakref.ref(self.core), f"the plan '{self.plan}'", settings)

    def forward(
        self,
        original: Callable[..., Any],
        frame: Frame,
        chosen: list[Chosen],
        reports: list[ImageReport],
        kwargs: dict[str, Any],
    ) -> tuple[Any, Tensor | None, list[ImageReport]]:
        """Call the language model with what stays.

        Args:
            original: Its forward.
            frame: The pass.
            chosen: What stays of every image of the pass.
            reports: One for every image.
            kwargs: What the core calls the language model with.

        Returns:
            Its output; the columns (B, P) of the short sequence, None where nothing got shorter; and the reports, with
            what happened inside.

        Raises:
            FoveateError: the cache is of other conversations than these, or of another plan.
        """
        embeds = kwargs["inputs_embeds"]
        kept = kept_for(compat.cache_in(kwargs), self.reader)
        inner = self.layers is not None and bool(chosen)
        if kept is None and not inner and all(image.changes_nothing for image in chosen):
            return original(**kwargs), None, _read_whole(reports)
        if self.unmerged is not None:
            with self.unmerged.unmerging(_groups(chosen, embeds)):
                return original(**kwargs), None, _read_whole(reports)
        # Where the model would make a cache of its own, it is made here: what the layers do to it must be known.
        cache = compat.cache_for_call(self.family.text(self.core), kwargs)
        kwargs = compat.with_cache(kwargs, cache)
        batch, length = embeds.shape[:2]
        past = 0 if cache is None else int(cache.get_seq_length())
        if kept is None:
            kept = Kept.of_all(batch, past, embeds.device, self.reader)
        if len(kept.columns) != batch:
            raise FoveateError(f"a cache of {len(kept.columns)} conversations cannot go on with a batch of {batch}.")
        mask = frame.arguments.get("attention_mask")
        seen = sequence.key_mask(kwargs.get("attention_mask") if mask is None else mask, past + length)
        seen = _of_length(seen, batch, past + length, embeds.device)
        short = sequence.kept_columns(batch, length, chosen, seen[:, past:], embeds.device)
        everything = torch.cat([kept.columns, torch.where(short.columns < 0, -1, short.columns + past)], dim=1)
        kwargs |= self._shortened(frame, kwargs, short, chosen, kept, everything, seen)
        if cache is not None:
            mark(cache, kept)
        found = self._pass(short, chosen, reports, frame, kept, sequence.gather_mask(seen, everything), kwargs)
        with (
            inside(cache),
            self.carried.carrying(self._carried(short, chosen, frame, kwargs)),
            nullcontext() if self.layers is None else self.layers.passing(found),
        ):
            output = original(**kwargs)
        columns = short.columns
        if self.layers is not None:
            last = found.finish()
            columns = sequence.gather(columns, last).masked_fill(last < 0, -1)
        training = self.family.text(self.core).training
        if cache is not None and training and int(cache.get_seq_length()) == past:
            if kept.whole:
                unmark(cache)  # with gradient checkpointing layers write to no cache
        else:
            compat.check_cache_returned(output, cache)
            kept.extend(short.columns, length, short.total, found.visual)
        return output, columns, _counted(reports, chosen, short, found)

    def _pass(
        self,
        short: Shorter,
        chosen: list[Chosen],
        reports: list[ImageReport],
        frame: Frame,
        kept: Kept,
        seen: Tensor,
        kwargs: dict[str, Any],
    ) -> Pass:
        """What the seam inside the language model must know of this call."""
        columns = short.columns
        copies = len(chosen) // len(reports) if reports else 1
        images = []
        for number, image in enumerate(chosen):
            report = reports[number // copies]
            places = torch.searchsorted(columns[image.row].contiguous(), image.kept)
            measured = frame.encoded[report.modality].measured[report.number]
            images.append(Placed(number // copies, image.row, places, image.selection.indices, measured, report.layout))
        positions = kwargs["position_ids"]
        if positions.ndim == 3 and len(positions) == 4:  # those of plain text stand before the three of M-RoPE
            positions = positions[1:]
        decided = next(iter(frame.encoded.values())).inside if images else {}
        asking = None if frame.asking is None else sequence.gather_mask(frame.asking.to(columns.device), columns)
        cache, entered = compat.cache_in(kwargs), kwargs["inputs_embeds"].detach()
        return Pass(columns.shape[1], images, seen, asking, positions, kept, cache, entered, decided)

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
        self,
        frame: Frame,
        kwargs: dict[str, Any],
        shorter: Shorter,
        chosen: list[Chosen],
        kept: Kept,
        everything: Tensor,
        seen: Tensor,
    ) -> dict[str, Any]:
        """The arguments of the language model that differ for the short sequence."""
        embeds, columns = kwargs["inputs_embeds"], shorter.columns
        length, past = embeds.shape[1], kept.length
        short: dict[str, Any] = {"inputs_embeds": sequence.shorten_features(embeds, columns, chosen)}
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(past, past + length, device=embeds.device)[None]
        elif positions.shape[-1] != length:  # M-RoPE counts what a mask tells of, which is the whole conversation
            raise FoveateError(
                f"the model made {positions.shape[-1]} positions for {length} new tokens, which fails without a plan "
                "too; call generate() with the ids of the whole conversation, or pass position_ids."
            )
        gone = shorter.gone + kept.gone if self.renumber else None
        short["position_ids"] = sequence.gather_positions(positions, columns, gone)
        short["attention_mask"] = sequence.gather_mask(seen, everything)

        if kwargs.get("visual_pos_masks") is not None:
            planes, visual = sequence.shorten_planes(
                kwargs["deepstack_visual_embeds"], kwargs["visual_pos_masks"], columns, chosen
            )
            short |= {"deepstack_visual_embeds": planes, "visual_pos_masks": visual}
        if kwargs.get("per_layer_inputs") is not None:
            short["per_layer_inputs"] = sequence.gather(kwargs["per_layer_inputs"], columns)
        types = self._types(frame, columns, length, kept, everything)
        images = frame.arguments.get("pixel_values") is not None
        with inside(compat.cache_in(kwargs)):
            arguments = {**kwargs, **short}
            short["attention_mask"] = self.family.mask(self.core, arguments, types, images)
        return short

    def _types(self, frame: Frame, columns: Tensor, length: int, kept: Kept, everything: Tensor) -> Tensor | None:
        """(B, P) token types of all positions of the short sequence; None where the model was given none.

        A pass that goes on with a cache may bring the types of the new tokens alone: what was read before is in no
        block with them, whatever it was.
        """
        names = ("token_type_ids", "mm_token_type_ids")
        types = next((frame.arguments[name] for name in names if frame.arguments.get(name) is not None), None)
        if types is None or types.shape[-1] == kept.length + length:
            return None if types is None else sequence.gather_mask(types, everything)
        if types.shape[-1] != length:
            raise FoveateError(
                f"the model was given {types.shape[-1]} token types for {length} new tokens after {kept.length}: give "
                "those of the new ones, or of all."
            )
        new = sequence.gather_mask(types, columns)
        before = new.new_full((len(new), kept.columns.shape[1]), self.family.answer_type)
        return torch.cat([before, new], dim=1)


def _read_whole(reports: list[ImageReport]) -> list[ImageReport]:
    """Reports of a pass in which the language model was given every token."""
    return [replace(report, read=report.tokens_in) for report in reports]


def _counted(reports: list[ImageReport], chosen: list[Chosen], short: Shorter, found: Pass) -> list[ImageReport]:
    """Reports with what happened inside, and with the tokens that were in the sequences of the pass."""

    def left(columns: Tensor, row: int, places: Tensor) -> int:
        return int(torch.isin(places, columns[row]).sum())

    copies = len(chosen) // len(reports) if reports else 1
    result = []
    for number, report in enumerate(reports):
        image, placed = chosen[number * copies], found.images[number * copies]
        layers, before = [], left(short.columns, image.row, image.columns)
        read = before
        for layer in found.reports.get(number, ()):
            kept = left(found.shorts[layer.layer].columns, placed.row, placed.places)
            layers.append(replace(layer, tokens_in=before, tokens_kept=kept))
            before = kept
        result.append(replace(report, layers=tuple(layers), read=read))
    return result


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

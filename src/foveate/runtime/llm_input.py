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
from transformers.masking_utils import create_masks_for_generate

from foveate import compat
from foveate.core import sequence
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.core.sequence import PlacedSelection, PrunedSequence
from foveate.core.unmerging import sequence_groups
from foveate.families import Family
from foveate.kv_cache.cache_view import PrunedCacheState, Reader, attach_state, kept_for, physical_length, unmark
from foveate.runtime.decoder_hooks import DecoderHooks
from foveate.runtime.forward_state import ImageSpan, LLMForwardState
from foveate.runtime.multi_position_rope import Carrying, carried_ids
from foveate.runtime.patches import Patches
from foveate.runtime.report import ImageReport
from foveate.runtime.select_tokens import ForwardContext
from foveate.runtime.sight import EDGES, Sight, apart, edges_of, packed_positions, shorten_masks, sight_of
from foveate.runtime.virtual_unmerging import VirtualUnmerging

#: Arguments of a language model whose meaning is known. Others must not be as long as the sequence.
KNOWN = (
    "inputs_embeds",
    "input_ids",
    "position_ids",
    "attention_mask",
    *compat.CACHE_NAMES,
    "cache_position",
    "visual_pos_masks",
    "deepstack_visual_embeds",
    "per_layer_inputs",
    "token_type_ids",
    "mm_token_type_ids",
    "seq_idx",
    *EDGES,
    # Of the output layer and the loss, which come later: language models read none of them.
    "labels",
    "shift_labels",
    "num_items_in_batch",
    "logits_to_keep",
)


@dataclass
class LLMInputHook:
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
    layers: DecoderHooks | None = None
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

    def sight(self, frame: ForwardContext, kwargs: dict[str, Any]) -> Sight:
        """Who may see whom in a call of the language model with these arguments."""
        cache = compat.cache_for_call(self.family.text(self.core), kwargs)
        past = 0 if cache is None else int(cache.get_seq_length())
        given, types = frame.arguments.get("attention_mask"), _given_types(frame)
        return sight_of(self.family, self.core, given, kwargs, types, _brings_images(frame), cache, past)

    def forward(
        self,
        original: Callable[..., Any],
        frame: ForwardContext,
        chosen: list[PlacedSelection],
        reports: list[ImageReport],
        kwargs: dict[str, Any],
    ) -> tuple[Any, Read | None, list[ImageReport]]:
        """Call the language model with what stays.

        Args:
            original: Its forward.
            frame: The pass.
            chosen: What stays of every image of the pass.
            reports: One for every image.
            kwargs: What the core calls the language model with.

        Returns:
            Its output; what it read of the sequence, None where nothing got shorter; and the reports, with what
            happened inside.

        Raises:
            FoveateError: the cache is of other conversations than these, or of another plan; or an argument is of the
                long sequence and of no known meaning.
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
            kept = PrunedCacheState.of_all(batch, past, embeds.device, self.reader)
        if len(kept.columns) != batch:
            raise FoveateError(f"a cache of {len(kept.columns)} conversations cannot go on with a batch of {batch}.")
        sight = frame.sight or self.sight(frame, kwargs)
        seen = sight.seen
        stretches = sequence.stretches_of(kwargs.get("position_ids"))
        if stretches is not None:
            stretches = stretches.expand(batch, -1) if stretches.shape[-1] == length else None
        short = sequence.kept_columns(batch, length, chosen, seen[:, past:], embeds.device, stretches)
        everything = torch.cat([kept.columns, torch.where(short.columns < 0, -1, short.columns + past)], dim=1)
        kwargs |= self._shortened(frame, kwargs, short, chosen, kept, everything, sight)
        if cache is not None:
            attach_state(cache, kept)
        found = self._pass(short, chosen, reports, frame, kept, everything, sight, kwargs)
        with (
            physical_length(cache),
            self.carried.carrying(self._carried(short, chosen, frame, kwargs)),
            nullcontext() if self.layers is None else self.layers.calls.passing(found),
        ):
            output = original(**kwargs)
        layers = {}
        columns = short.columns
        if self.layers is not None:
            last = found.finish()
            layers = {n: _within(columns, one.columns) for n, one in found.shorts.items()}
            columns = _within(columns, last)
        training = self.family.text(self.core).training
        if cache is not None and training and int(cache.get_seq_length()) == past:
            if kept.whole:
                unmark(cache)  # with gradient checkpointing layers write to no cache
        else:
            compat.check_cache_returned(output, cache)
            kept.extend(short.columns, length, short.total, found.visual)
        read = Read(short.columns, columns, layers, sight.blocks, length)
        return output, read, _counted(reports, chosen, short, found)

    def _pass(
        self,
        short: PrunedSequence,
        chosen: list[PlacedSelection],
        reports: list[ImageReport],
        frame: ForwardContext,
        kept: PrunedCacheState,
        everything: Tensor,
        sight: Sight,
        kwargs: dict[str, Any],
    ) -> LLMForwardState:
        """What the seam inside the language model must know of this call."""
        columns = short.columns
        copies = len(chosen) // len(reports) if reports else 1
        images = []
        for number, image in enumerate(chosen):
            report = reports[number // copies]
            places = torch.searchsorted(columns[image.row].contiguous(), image.kept)
            measured = frame.encoded[report.modality].measured[report.number]
            indices, positions = image.selection.indices, image.selection.positions
            sources = None if positions is None else places[:, None]  # what rotates them holds all that they carry
            images.append(ImageSpan(number // copies, image.row, places, indices, measured, report.layout, sources))
        positions = kwargs["position_ids"]
        if positions.ndim == 3 and len(positions) == 4:  # those of plain text stand before the three of M-RoPE
            positions = positions[1:]
        decided = next(iter(frame.encoded.values())).inside if images else {}
        asking = None if frame.asking is None else sequence.gather_mask(frame.asking.to(columns.device), columns)
        cache, entered = compat.cache_in(kwargs), kwargs["inputs_embeds"].detach()
        seen = sequence.gather_mask(sight.seen, everything)
        blocks = None if sight.blocks is None else sequence.gather(sight.blocks, columns).masked_fill(columns < 0, -1)
        allowed = sight.allowed
        if allowed is not None:
            allowed = sequence.gather_pairs(allowed[:, None], columns, everything)[:, 0]
        return LLMForwardState(
            columns.shape[1], images, seen, asking, positions, kept, cache, entered, decided, blocks, allowed
        )

    def _carried(
        self, short: PrunedSequence, chosen: list[PlacedSelection], frame: ForwardContext, kwargs: dict[str, Any]
    ) -> list[Tensor]:
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
        frame: ForwardContext,
        kwargs: dict[str, Any],
        shorter: PrunedSequence,
        chosen: list[PlacedSelection],
        kept: PrunedCacheState,
        everything: Tensor,
        sight: Sight,
    ) -> dict[str, Any]:
        """The arguments of the language model that differ for the short sequence."""
        embeds, columns = kwargs["inputs_embeds"], shorter.columns
        length, past = embeds.shape[1], kept.length
        if not all(image.changes_nothing for image in chosen):
            self._check_known(kwargs, length)
        short: dict[str, Any] = {"inputs_embeds": sequence.shorten_features(embeds, columns, chosen)}
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(past, past + length, device=embeds.device)[None]
        elif positions.shape[-1] != length:  # M-RoPE counts what a mask tells of, which is the whole conversation
            raise FoveateError(
                f"the model made {positions.shape[-1]} positions for {length} new tokens, which fails without a plan "
                "too; call generate() with the ids of the whole conversation, or pass position_ids."
            )
        gone = shorter.removed + kept.gone if self.renumber else None
        short["position_ids"] = sequence.gather_positions(positions, columns, gone)

        if kwargs.get("visual_pos_masks") is not None:
            planes, visual = sequence.shorten_planes(
                kwargs["deepstack_visual_embeds"], kwargs["visual_pos_masks"], columns, chosen
            )
            short |= {"deepstack_visual_embeds": planes, "visual_pos_masks": visual}
        if kwargs.get("per_layer_inputs") is not None:
            short["per_layer_inputs"] = sequence.gather(kwargs["per_layer_inputs"], columns)
        for name in ("seq_idx", "token_type_ids", "mm_token_type_ids"):
            if isinstance(kwargs.get(name), Tensor) and kwargs[name].shape[-1] == length:
                short[name] = sequence.gather_mask(kwargs[name], columns)
        if isinstance(kwargs.get("cache_position"), Tensor):
            held = kept.columns.shape[1]
            short["cache_position"] = torch.arange(held, held + columns.shape[1], device=columns.device)
        return short | self._masks(frame, {**kwargs, **short}, columns, kept, everything, sight)

    def _masks(
        self,
        frame: ForwardContext,
        arguments: dict[str, Any],
        columns: Tensor,
        kept: PrunedCacheState,
        everything: Tensor,
        sight: Sight,
    ) -> dict[str, Any]:
        """The mask of the short sequence, and what flash attention is told instead."""
        text: Any = self.family.text(self.core)
        embeds, cache = arguments["inputs_embeds"], compat.cache_in(arguments)
        if sight.masks is not None:
            return {
                "attention_mask": shorten_masks(sight, columns, everything, text.config, embeds.dtype, cache),
                **dict.fromkeys(name for name in EDGES if name in arguments),
            }
        types, images = self._types(frame, columns, kept, everything, sight), _brings_images(frame)
        past = everything.shape[1] - columns.shape[1]
        if not sight.packed:
            arguments["attention_mask"] = sequence.gather_mask(sight.seen, everything)
            with physical_length(cache):
                mask = self.family.mask(self.core, arguments, types, images)
            # A row that is one sample needs no edges.
            return {"attention_mask": mask, **dict.fromkeys(name for name in EDGES if name in arguments)}
        if past:
            raise FoveateError("samples that are packed into a row cannot go on from a cache.")
        blocks = sequence.gather(sight.blocks, columns)  # ty: ignore[invalid-argument-type]
        arguments = compat.with_cache(arguments, None)
        name = compat.attention_name(text.config)
        if "flash" in name or "flex" in name:
            arguments |= {"attention_mask": None, "position_ids": packed_positions(blocks, columns < 0)}
        else:
            arguments["attention_mask"] = sequence.gather_mask(sight.seen, everything)
        mask = self.family.mask(self.core, arguments, types, images)
        if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
            mask = create_masks_for_generate(text.config, embeds, mask, None, arguments["position_ids"])
        if "flash" in name:
            return {"attention_mask": mask, **edges_of(blocks)}
        if "flex" in name:
            return {"attention_mask": mask}
        return {"attention_mask": apart(mask, blocks, columns < 0, "eager" in name, embeds.dtype)}

    def _types(
        self, frame: ForwardContext, columns: Tensor, kept: PrunedCacheState, everything: Tensor, sight: Sight
    ) -> Tensor | None:
        """(B, P) token types of all positions of the short sequence; None where the model was given none.

        A pass that goes on with a cache may bring the types of the new tokens alone. What was read before has the types
        that it came with, or that of answers.
        """
        types, total = _given_types(frame), sight.seen.shape[1]
        if types is None:
            return None
        if types.shape[-1] == total:
            kept.types = sequence.gather_mask(types, everything)
            return kept.types
        if types.shape[-1] != sight.length:
            raise FoveateError(
                f"the model was given {types.shape[-1]} token types for {sight.length} new tokens after "
                f"{total - sight.length}: give those of the new ones, or of all."
            )
        new = sequence.gather_mask(types, columns)
        before = new.new_full((len(new), everything.shape[1] - columns.shape[1]), self.family.answer_type)
        if kept.types is not None:
            before[:, : kept.types.shape[1]] = kept.types
        kept.types = torch.cat([before, new], dim=1)
        return kept.types

    def _check_known(self, kwargs: dict[str, Any], length: int) -> None:
        """Raise FoveateError for an argument that is as long as the sequence and of no known meaning."""
        for name, value in kwargs.items():
            if name in KNOWN or not isinstance(value, Tensor) or length not in value.shape:
                continue
            raise FoveateError(
                f"{self.plan} shortens a sequence of {length} tokens, and the language model is given {name} of shape "
                f"{tuple(value.shape)}, of which foveate does not know how it gets shorter; leave it out."
            )


@dataclass(frozen=True)
class Read:
    """What a call of the language model read of a sequence of L new columns.

    Args:
        entered: (B, P) the columns that entered the first layer, -1 for padding.
        columns: (B, P') those that left the last one.
        layers: By the first layer of each stretch of layers that read fewer: (B, p) the columns that they read.
        blocks: (B, L) the sample that each column is of; None: every row is one.
        length: L.
    """

    entered: Tensor
    columns: Tensor
    layers: dict[int, Tensor]
    blocks: Tensor | None
    length: int

    def of_layer(self, number: int) -> Tensor:
        """(B, p) the columns that a layer read; -1 is what enters the first one."""
        first = max((first for first in self.layers if first <= number), default=None)
        return self.entered if first is None else self.layers[first]

    @cached_property
    def shorter(self) -> bool:
        """Whether anything was left out."""
        if self.columns.shape[1] != self.length:
            return True
        return not bool((self.columns == torch.arange(self.length, device=self.columns.device)).all())


def _within(columns: Tensor, places: Tensor) -> Tensor:
    """Columns (B, P) at places (B, p), -1 for padding of either."""
    return sequence.gather(columns, places).masked_fill(places < 0, -1)


def _given_types(frame: ForwardContext) -> Tensor | None:
    """Token types that the core was called with."""
    given = (frame.arguments.get(name) for name in ("token_type_ids", "mm_token_type_ids"))
    return next((types for types in given if types is not None), None)


def _brings_images(frame: ForwardContext) -> bool:
    """Whether the core was called with images, and not with what was made of them before."""
    return frame.arguments.get("pixel_values") is not None


def _read_whole(reports: list[ImageReport]) -> list[ImageReport]:
    """Reports of a pass in which the language model was given every token."""
    return [replace(report, read=report.tokens_in) for report in reports]


def _counted(
    reports: list[ImageReport], chosen: list[PlacedSelection], short: PrunedSequence, found: LLMForwardState
) -> list[ImageReport]:
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


def _groups(chosen: list[PlacedSelection], embeds: Tensor) -> Tensor:
    """Which positions (B, L) of a sequence are one row after merging."""
    image = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    order = sorted(chosen, key=lambda one: (one.row, int(one.columns[0])))
    for one in order:
        image[one.row, one.columns] = True
    return sequence_groups(image, [one.selection.members(len(one.columns)) for one in order])

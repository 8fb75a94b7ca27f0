"""Hook that prunes the input sequence of the language model."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.masking_utils import create_masks_for_generate

from foveate import compat
from foveate.core import sequence
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.core.sequence import PlacedSelection, PrunedSequence
from foveate.core.unmerging import sequence_groups
from foveate.families import Family
from foveate.kv_cache.pruned_cache import (
    PrunedCacheState,
    Reader,
    attach_state,
    detach_state,
    physical_length,
    state_for,
)
from foveate.runtime.attention_masks import (
    FLASH_ARGUMENTS,
    SequenceMasks,
    flash_arguments,
    packed_positions,
    prune_masks,
    read_masks,
    separate_samples,
)
from foveate.runtime.decoder_hooks import DecoderHooks
from foveate.runtime.forward_state import ImageSpan, LLMForwardState
from foveate.runtime.multi_position_rope import MultiPositionRoPE, member_position_ids
from foveate.runtime.patches import Patches
from foveate.runtime.raster_positions import raster_positions, shift_of_rasters
from foveate.runtime.report import ImageReport
from foveate.runtime.select_tokens import ForwardContext
from foveate.runtime.virtual_unmerging import VirtualUnmerging

#: Arguments of a language model that are handled; no other tensor argument may be as long as the sequence.
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
    *FLASH_ARGUMENTS,
    # Used by the output layer and the loss; language models do not read them.
    "labels",
    "shift_labels",
    "num_items_in_batch",
    "logits_to_keep",
)


@dataclass
class LLMInputHook:
    """Hook that calls a language model with the pruned sequence.

    Args:
        family: The family of the model.
        core: The model without its output layer.
        plan: The plan, for messages.
        renumber: Close the position gaps of removed tokens, where positions have one axis.
        virtual: Merged tokens attend as if unmerged (DyMU's virtual unmerging); the sequence keeps its length.
        layers: Hooks inside the language model, if the plan has steps there.
    """

    family: Family
    core: Any
    plan: Plan
    renumber: bool
    virtual: bool
    layers: DecoderHooks | None = None
    rope: MultiPositionRoPE = field(init=False)
    unmerging: VirtualUnmerging | None = field(init=False)

    def __post_init__(self) -> None:
        text = self.family.text(self.core)
        self.rope = MultiPositionRoPE(text)
        self.unmerging = VirtualUnmerging(text) if self.virtual else None

    def attach(self, patches: Patches) -> None:
        """Install the hooks inside the language model, until `patches` are undone."""
        self.rope.attach(patches)
        if self.unmerging is not None:
            self.unmerging.attach(patches)

    @cached_property
    def reader(self) -> Reader:
        """Owner of the caches that are pruned here: the same plan, also when it is attached again."""
        inner = None if self.layers is None else self.layers.contiguous
        settings = (str(self.plan), self.renumber, inner)
        return Reader(weakref.ref(self.core), f"the plan '{self.plan}'", settings)

    def sequence_masks(self, context: ForwardContext, kwargs: dict[str, Any]) -> SequenceMasks:
        """Masks of a call of the language model with these arguments."""
        cache = compat.cache_for_call(self.family.text(self.core), kwargs)
        past = 0 if cache is None else int(cache.get_seq_length())
        attention_mask, types = context.arguments.get("attention_mask"), _token_types_of(context)
        return read_masks(
            self.family, self.core, attention_mask, kwargs, types, _has_pixel_values(context), cache, past
        )

    def forward(
        self,
        original: Callable[..., Any],
        context: ForwardContext,
        selections: list[PlacedSelection],
        reports: list[ImageReport],
        kwargs: dict[str, Any],
    ) -> tuple[Any, ReadColumns | None, list[ImageReport]]:
        """Call the language model with the kept tokens.

        Args:
            original: The forward of the language model.
            context: The forward pass of the core.
            selections: The selections of all images of the pass.
            reports: One report per image.
            kwargs: Arguments of the language model.

        Returns:
            Its output; the columns that it read, None where nothing was pruned; and the reports, completed for the
            layers.

        Raises:
            FoveateError: the cache is of other conversations or of another plan; or an unknown argument is as long as
                the full sequence.
        """
        embeds = kwargs["inputs_embeds"]
        cache_state = state_for(compat.cache_in(kwargs), self.reader)
        inner = self.layers is not None and bool(selections)
        if cache_state is None and not inner and all(image.changes_nothing for image in selections):
            return original(**kwargs), None, _without_pruning(reports)
        if self.unmerging is not None:
            with self.unmerging.active(_groups(selections, embeds)):
                return original(**kwargs), None, _without_pruning(reports)
        # The cache that the model would make is made here, so that its state can be tracked.
        cache = compat.cache_for_call(self.family.text(self.core), kwargs)
        kwargs = compat.with_cache(kwargs, cache)
        batch, length = embeds.shape[:2]
        past = 0 if cache is None else int(cache.get_seq_length())
        if cache_state is None:
            cache_state = PrunedCacheState.of_full_cache(batch, past, embeds.device, self.reader)
        if len(cache_state.columns) != batch:
            raise FoveateError(
                f"a cache of {len(cache_state.columns)} conversations cannot go on with a batch of {batch}."
            )
        masks = context.masks or self.sequence_masks(context, kwargs)
        padding_mask = masks.padding_mask
        stretches = sequence.stretches_of(kwargs.get("position_ids"))
        if stretches is not None:
            stretches = stretches.expand(batch, -1) if stretches.shape[-1] == length else None
        pruned = sequence.kept_columns(batch, length, selections, padding_mask[:, past:], embeds.device, stretches)
        all_columns = torch.cat(
            [cache_state.columns, torch.where(pruned.columns < 0, -1, pruned.columns + past)], dim=1
        )
        # What this pass adds to the state is kept apart until it has succeeded, so that it can be repeated if it fails.
        next_state = copy.copy(cache_state)
        kwargs |= self._pruned_arguments(context, kwargs, pruned, selections, next_state, all_columns, masks)
        if cache is not None:
            attach_state(cache, cache_state)
        state = self._forward_state(pruned, selections, reports, context, cache_state, all_columns, masks, kwargs)
        with (
            physical_length(cache),
            self.rope.use_positions(self._member_positions(pruned, selections, context, kwargs)),
            nullcontext() if self.layers is None else self.layers.calls.active(state),
        ):
            output = original(**kwargs)
        layers = {}
        columns = pruned.columns
        if self.layers is not None:
            last = state.finish()
            layers = {n: _within(columns, sequence_.columns) for n, sequence_ in state.sequences.items()}
            columns = _within(columns, last)
        training = self.family.text(self.core).training
        if cache is not None and training and int(cache.get_seq_length()) == past:
            if cache_state.complete:
                detach_state(cache)  # with gradient checkpointing layers write to no cache
        else:
            compat.check_cache_returned(output, cache)
            cache_state.token_types, cache_state.raster_shift = next_state.token_types, next_state.raster_shift
            cache_state.extend(pruned.columns, length, pruned.total, state.visual)
        read = ReadColumns(pruned.columns, columns, layers, masks.sample_ids, length)
        return output, read, _with_token_counts(reports, selections, pruned, state)

    def _forward_state(
        self,
        pruned: PrunedSequence,
        selections: list[PlacedSelection],
        reports: list[ImageReport],
        context: ForwardContext,
        cache_state: PrunedCacheState,
        all_columns: Tensor,
        masks: SequenceMasks,
        kwargs: dict[str, Any],
    ) -> LLMForwardState:
        """The state of this call for the hooks inside the language model."""
        columns = pruned.columns
        copies = len(selections) // len(reports) if reports else 1
        images = []
        for number, image in enumerate(selections):
            report = reports[number // copies]
            places = torch.searchsorted(columns[image.row].contiguous(), image.kept)
            measured = context.encoded[report.modality].measured[report.number]
            indices, positions = image.selection.indices, image.selection.positions
            sources = None if positions is None else places[:, None]  # their rotation combines all their positions
            images.append(ImageSpan(number // copies, image.row, places, indices, measured, report.layout, sources))
        positions = kwargs["position_ids"]
        if positions.ndim == 3 and len(positions) == 4:  # text positions before the three of M-RoPE
            positions = positions[1:]
        decisions = next(iter(context.encoded.values())).decisions if images else {}
        query_mask = (
            None if context.query_mask is None else sequence.gather_mask(context.query_mask.to(columns.device), columns)
        )
        cache, input_embeds = compat.cache_in(kwargs), kwargs["inputs_embeds"].detach()
        padding_mask = sequence.gather_mask(masks.padding_mask, all_columns)
        sample_ids = (
            None
            if masks.sample_ids is None
            else sequence.gather(masks.sample_ids, columns).masked_fill(columns < 0, -1)
        )
        pair_mask = masks.pair_mask
        if pair_mask is not None:
            pair_mask = sequence.gather_pairs(pair_mask[:, None], columns, all_columns)[:, 0]
        return LLMForwardState(
            columns.shape[1],
            images,
            padding_mask,
            query_mask,
            positions,
            cache_state,
            cache,
            input_embeds,
            decisions,
            sample_ids,
            pair_mask,
        )

    def _member_positions(
        self, pruned: PrunedSequence, selections: list[PlacedSelection], context: ForwardContext, kwargs: dict[str, Any]
    ) -> list[Tensor]:
        """Position ids per member of merged tokens; empty where every token has one position."""
        if all(image.selection.positions is None for image in selections):
            return []
        if self.renumber:
            raise FoveateError(
                f"{self.plan} gives tokens several original positions; leave positions='contiguous' out."
            )
        positions = context.positions
        if positions is None:
            positions = torch.arange(int(pruned.columns.max()) + 1, device=pruned.columns.device)[None]
        return member_position_ids(kwargs["position_ids"], positions, pruned.columns, selections)

    def _pruned_arguments(
        self,
        context: ForwardContext,
        kwargs: dict[str, Any],
        pruned: PrunedSequence,
        selections: list[PlacedSelection],
        cache_state: PrunedCacheState,
        all_columns: Tensor,
        masks: SequenceMasks,
    ) -> dict[str, Any]:
        """Arguments of the language model that change for the pruned sequence."""
        embeds, columns = kwargs["inputs_embeds"], pruned.columns
        length, past = embeds.shape[1], cache_state.length
        if not all(image.changes_nothing for image in selections):
            self._check_known(kwargs, length)
        arguments: dict[str, Any] = {"inputs_embeds": sequence.shorten_features(embeds, columns, selections)}
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(past, past + length, device=embeds.device)[None]
        elif positions.shape[-1] != length:  # M-RoPE made positions of the mask's whole conversation
            raise FoveateError(
                f"the model made {positions.shape[-1]} positions for {length} new tokens, which fails without a plan "
                "too; call generate() with the ids of the whole conversation, or pass position_ids."
            )
        elif past and not compat.PLACES_IMAGES_AFTER_CACHE:
            _check_image_positions(context, positions)
        removed = pruned.removed + cache_state.num_pruned if self.renumber else None
        arguments["position_ids"] = sequence.gather_positions(positions, columns, removed)
        if self.renumber and positions.ndim == 3:
            arguments["position_ids"] = self._raster_positions(
                positions, columns, arguments["position_ids"], selections, cache_state, masks
            )

        if kwargs.get("visual_pos_masks") is not None:
            planes, visual = sequence.shorten_planes(
                kwargs["deepstack_visual_embeds"], kwargs["visual_pos_masks"], columns, selections
            )
            arguments |= {"deepstack_visual_embeds": planes, "visual_pos_masks": visual}
        if kwargs.get("per_layer_inputs") is not None:
            arguments["per_layer_inputs"] = sequence.gather(kwargs["per_layer_inputs"], columns)
        for name in ("seq_idx", "token_type_ids", "mm_token_type_ids"):
            if isinstance(kwargs.get(name), Tensor) and kwargs[name].shape[-1] == length:
                arguments[name] = sequence.gather_mask(kwargs[name], columns)
        if isinstance(kwargs.get("cache_position"), Tensor):
            num_cached = cache_state.columns.shape[1]
            arguments["cache_position"] = torch.arange(num_cached, num_cached + columns.shape[1], device=columns.device)
        return arguments | self._masks(context, {**kwargs, **arguments}, columns, cache_state, all_columns, masks)

    def _raster_positions(
        self,
        positions: Tensor,
        columns: Tensor,
        pruned: Tensor,
        selections: list[PlacedSelection],
        cache_state: PrunedCacheState,
        masks: SequenceMasks,
    ) -> Tensor:
        """Positions of several axes, in which images have those of their smaller raster, if they became smaller."""
        smaller = any(image.selection.raster is not None for image in selections)
        if not smaller and cache_state.raster_shift is None:
            return pruned
        positions = positions.expand(-1, len(columns), -1)
        shift = shift_of_rasters(positions, selections, masks.sample_ids)
        if cache_state.raster_shift is not None:
            shift = shift + cache_state.raster_shift.to(shift)
        cache_state.raster_shift = shift[:, -1:]
        return raster_positions(positions, shift, columns, pruned, selections)

    def _masks(
        self,
        context: ForwardContext,
        arguments: dict[str, Any],
        columns: Tensor,
        cache_state: PrunedCacheState,
        all_columns: Tensor,
        masks: SequenceMasks,
    ) -> dict[str, Any]:
        """The mask of the pruned sequence, or the boundaries that flash attention takes instead."""
        text: Any = self.family.text(self.core)
        embeds, cache = arguments["inputs_embeds"], compat.cache_in(arguments)
        if masks.user_masks is not None:
            return {
                "attention_mask": prune_masks(masks, columns, all_columns, text.config, embeds.dtype, cache),
                **dict.fromkeys(name for name in FLASH_ARGUMENTS if name in arguments),
            }
        types, images = (
            self._pruned_token_types(context, columns, cache_state, all_columns, masks),
            _has_pixel_values(context),
        )
        past = all_columns.shape[1] - columns.shape[1]
        if not masks.packed:
            arguments["attention_mask"] = sequence.gather_mask(masks.padding_mask, all_columns)
            with physical_length(cache):
                mask = self.family.mask(self.core, arguments, types, images)
            # A row of one sample needs no boundaries.
            return {"attention_mask": mask, **dict.fromkeys(name for name in FLASH_ARGUMENTS if name in arguments)}
        if past:
            raise FoveateError("samples that are packed into a row cannot go on from a cache.")
        sample_ids = sequence.gather(masks.sample_ids, columns)  # ty: ignore[invalid-argument-type]
        arguments = compat.with_cache(arguments, None)
        name = compat.attention_name(text.config)
        if "flash" in name or "flex" in name:
            arguments |= {"attention_mask": None, "position_ids": packed_positions(sample_ids, columns < 0)}
        else:
            arguments["attention_mask"] = sequence.gather_mask(masks.padding_mask, all_columns)
        mask = self.family.mask(self.core, arguments, types, images)
        if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
            mask = create_masks_for_generate(text.config, embeds, mask, None, arguments["position_ids"])
        if "flash" in name:
            return {"attention_mask": mask, **flash_arguments(sample_ids)}
        if "flex" in name:
            return {"attention_mask": mask}
        return {"attention_mask": separate_samples(mask, sample_ids, columns < 0, "eager" in name, embeds.dtype)}

    def _pruned_token_types(
        self,
        context: ForwardContext,
        columns: Tensor,
        cache_state: PrunedCacheState,
        all_columns: Tensor,
        masks: SequenceMasks,
    ) -> Tensor | None:
        """(B, P) token types of all positions of the pruned sequence; None where the model got none.

        A pass that continues from a cache may have the types of the new tokens only. Cached tokens keep the types that
        they came with, or get that of answers.
        """
        types, total = _token_types_of(context), masks.padding_mask.shape[1]
        if types is None:
            return None
        past = total - masks.length
        if not compat.SLICES_MM_TOKEN_TYPES and past < types.shape[-1] < total:
            # Of assisted decoding, without the types of the candidates, which are text.
            types = F.pad(types, (0, total - types.shape[-1]), value=self.family.answer_type)
        if types.shape[-1] == total:
            cache_state.token_types = sequence.gather_mask(types, all_columns)
            return cache_state.token_types
        if types.shape[-1] != masks.length:
            raise FoveateError(
                f"the model was given {types.shape[-1]} token types for {masks.length} new tokens after {past}: give "
                "those of the new ones, or of all."
            )
        new = sequence.gather_mask(types, columns)
        cached = new.new_full((len(new), all_columns.shape[1] - columns.shape[1]), self.family.answer_type)
        if cache_state.token_types is not None:
            cached[:, : cache_state.token_types.shape[1]] = cache_state.token_types
        cache_state.token_types = torch.cat([cached, new], dim=1)
        return cache_state.token_types

    def _check_known(self, kwargs: dict[str, Any], length: int) -> None:
        """Raise FoveateError for an unknown argument that is as long as the sequence."""
        for name, value in kwargs.items():
            if name in KNOWN or not isinstance(value, Tensor) or length not in value.shape:
                continue
            raise FoveateError(
                f"{self.plan} prunes a sequence of {length} tokens, and the language model gets {name} of shape "
                f"{tuple(value.shape)}, which foveate cannot prune; leave it out."
            )


@dataclass(frozen=True)
class ReadColumns:
    """The columns that a call of the language model read, of a sequence of L new ones.

    Args:
        input_columns: (B, P) the columns that entered the first layer, -1 for padding.
        columns: (B, P') the columns in the output of the last layer.
        layers: By the first layer of each segment: (B, p) the columns that its layers read.
        sample_ids: (B, L) the sample of each column; None: every row is one.
        length: L.
    """

    input_columns: Tensor
    columns: Tensor
    layers: dict[int, Tensor]
    sample_ids: Tensor | None
    length: int

    def of_layer(self, number: int) -> Tensor:
        """(B, p) the columns that a layer read; -1 is the input of the first one."""
        first = max((first for first in self.layers if first <= number), default=None)
        return self.input_columns if first is None else self.layers[first]

    @cached_property
    def shorter(self) -> bool:
        """Whether any token was removed."""
        if self.columns.shape[1] != self.length:
            return True
        return not bool((self.columns == torch.arange(self.length, device=self.columns.device)).all())


def _within(columns: Tensor, places: Tensor) -> Tensor:
    """Columns (B, P) at positions (B, p), -1 for padding of either."""
    return sequence.gather(columns, places).masked_fill(places < 0, -1)


def _token_types_of(context: ForwardContext) -> Tensor | None:
    """Token types that the core was called with."""
    candidates = (context.arguments.get(name) for name in ("token_type_ids", "mm_token_type_ids"))
    return next((types for types in candidates if types is not None), None)


def _check_image_positions(context: ForwardContext, positions: Tensor) -> None:
    """Raise FoveateError if images that follow a cache have the positions of text that `generate` makes.

    Args:
        context: The call of the core.
        positions: (B, L), or (axes, B, L): one axis from `generate`, three or four where a caller gives them.
    """
    counts = [layout.count for encoded in context.encoded.values() for layout in encoded.layouts]
    if positions.ndim == 3 and len(positions) == 1 and max(counts, default=0) > 1:
        raise FoveateError(
            "this version of transformers gives a new image after a cache the positions of text; pass position_ids, "
            "run the whole conversation without a cache, or install transformers 5.23 or newer."
        )


def _has_pixel_values(context: ForwardContext) -> bool:
    """Whether the core was called with pixels, rather than with encoded images."""
    return context.arguments.get("pixel_values") is not None


def _without_pruning(reports: list[ImageReport]) -> list[ImageReport]:
    """Reports of a pass in which the language model read every token."""
    return [replace(report, read=report.tokens_in) for report in reports]


def _with_token_counts(
    reports: list[ImageReport], selections: list[PlacedSelection], pruned: PrunedSequence, state: LLMForwardState
) -> list[ImageReport]:
    """Reports with the layers' steps, and with tokens as counted in the sequences of the pass."""

    def count_remaining(columns: Tensor, row: int, places: Tensor) -> int:
        return int(torch.isin(places, columns[row]).sum())

    copies = len(selections) // len(reports) if reports else 1
    result = []
    for number, report in enumerate(reports):
        selection, span = selections[number * copies], state.images[number * copies]
        layers, remaining = [], count_remaining(pruned.columns, selection.row, selection.columns)
        read = remaining
        for layer in state.reports.get(number, ()):
            remaining_here = count_remaining(state.sequences[layer.layer].columns, span.row, span.places)
            layers.append(replace(layer, tokens_in=remaining, tokens_kept=remaining_here))
            remaining = remaining_here
        result.append(replace(report, layers=tuple(layers), read=read))
    return result


def _groups(selections: list[PlacedSelection], embeds: Tensor) -> Tensor:
    """(B, L) merged row of each position of a sequence."""
    image = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    order = sorted(selections, key=lambda selection: (selection.row, int(selection.columns[0])))
    for selection in order:
        image[selection.row, selection.columns] = True
    return sequence_groups(image, [selection.selection.members(len(selection.columns)) for selection in order])

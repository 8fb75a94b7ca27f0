"""`compress`: attach a plan to a live model, and take it off again.

Three functions of a model are wrapped, each as an attribute of the instance so that removing it is all it takes to
leave: the forward of the outer model (labels), that of the core (which tokens are an image's), that of the language
model (the seam: here the sequence gets shorter), and the functions that encode images (layout and probes).
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from foveate.encoders.merging.unmerging import sequence_groups
from foveate.errors import FoveateError
from foveate.families import Family, ImageLayout, family_of
from foveate.families.family import grid_crop
from foveate.plan import Plan, Step
from foveate.runtime import sequence
from foveate.runtime.cache import Kept, inside, kept_of, mark
from foveate.runtime.carried import carried_ids, carrying
from foveate.runtime.first_layer import queries_and_keys, text_to_visual
from foveate.runtime.probe import OF_ATTENTION, OF_OUTPUT, Probe
from foveate.runtime.report import ImageReport, Journal, Report, StepReport
from foveate.runtime.sequence import Chosen, Shorter
from foveate.runtime.virtual_unmerging import virtual_unmerging
from foveate.runtime.vit_merging import Merging, merging
from foveate.tokens import Need, Selection, Tower, VisualTokens
from foveate.views.reduction import places, reduced_grid

MODALITIES = ("image", "video")
#: Kinds of needs that are read off the prompt.
OF_PROMPT = ("instruction", "text_feature", "first_layer_attention")

_attached: WeakKeyDictionary[nn.Module, Handle] = WeakKeyDictionary()
_lock = threading.Lock()


def compress(
    model: Any,
    plan: Any,
    budget: Any = None,
    *,
    positions: Literal["original", "contiguous"] | None = None,
    text_features: Tensor | None = None,
) -> Handle:
    """Make a live model read fewer visual tokens, until the handle is restored.

        with foveate.compress(model, "divprune:25%") as handle:
            model.generate(**inputs)
        print(handle.report())

    Args:
        model: A model of `transformers` of a family foveate knows (`foveate.families.families()`), also wrapped by
            PEFT or in a pipeline. Nothing is copied.
        plan: Text such as `"divprune:64"` or `"hiprune(alpha=0.1):25%"`, a `Plan`, or a method object.
        budget: For a method object: tokens (int), a fraction (float) or text ("25%").
        positions: Positions of what stays: "original" keeps those of the long sequence, "contiguous" closes the gaps.
            By default what the method's paper does. Models with M-RoPE always keep the original ones.
        text_features: (prompts, d) or (d,), the prompts in the space of the encoder's [CLS] token, for methods that
            compare images with a contrastive text encoder.

    Returns:
        The handle: a context manager with `report()` and `restore()`.

    Raises:
        FoveateError: the plan cannot be read, the model is of no known family or lacks what a method needs, or
            something is attached already.
    """
    return Handle(_unwrapped(model), Plan.of(plan, budget), positions, text_features)


def handle_of(model: Any) -> Handle | None:
    """The handle of the plan attached to a model, None where none is."""
    model = _unwrapped(model)
    try:
        core = family_of(model).core(model)
    except FoveateError:  # of a family that nothing can be attached to
        return None
    return _attached.get(core)


def _unwrapped(model: Any) -> nn.Module:
    """The model of `transformers` inside a pipeline, a PEFT model or a compiled module."""
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):
        model = model.model
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            break
    if not isinstance(model, nn.Module):
        raise FoveateError(f"a model of transformers can be compressed, not a {type(model).__name__}.")
    return model


@dataclass
class Encoded:
    """One call of an encoder: layouts and measurements of its images."""

    layouts: list[ImageLayout]
    measured: list[dict[Need, Tensor]]
    merged: list[Selection] | None = None  # what merging inside the encoder left of every image
    prompt: Tensor | None = None  # ids of the prompt that was chosen for, and what was chosen
    chosen: list[tuple[Selection, ImageReport]] = field(default_factory=list)

    def goes_on(self, ids: Tensor | None) -> bool:
        """Whether ids (B, L) are the prompt that was chosen for and something written after it.

        Without a cache `generate` passes the growing text through the model at every step. What a method chose for
        the prompt stays chosen, as it does with a cache.
        """
        before = self.prompt
        if before is None or ids is None or len(before) != len(ids) or before.shape[1] >= ids.shape[1]:
            return False
        return torch.equal(ids[:, : before.shape[1]], before)


@dataclass
class Frame:
    """One forward pass of the core, in one thread."""

    arguments: Mapping[str, Any]
    positions: Tensor | None = None  # what the language model was given
    encoded: dict[str, Encoded] = field(default_factory=dict)


class Handle:
    """A plan attached to a model. Made by `compress`; a context manager that restores the model when left."""

    def __init__(self, model: nn.Module, plan: Plan, positions: str | None, text_features: Tensor | None) -> None:
        self.model = model
        self.plan = plan
        self.family: Family = family_of(model)
        self._core: Any = self.family.core(model)
        self._text_features = text_features
        self._journal = Journal()
        self._local = threading.local()
        self._undo: list[Callable[[], None]] = []
        self._notes: tuple[str, ...] = ()
        _check_sites(plan, self.family)
        last = plan.steps[-1].method
        self._virtual = bool(getattr(plan.steps[0].method, "virtual", False))
        if self._virtual and len(plan.steps) > 1:
            raise FoveateError(
                f"{plan.steps[0].method.name} attends as if nothing had been merged, so nothing can go after it; give "
                "it virtual=False."
            )
        self._renumber = (positions or last.positions) == "contiguous"
        self.tower: Tower = self.family.tower(self._core)
        self._needs = self._all_needs()
        with _lock:
            if self._core in _attached:
                raise FoveateError(
                    f"the plan '{_attached[self._core].plan}' is attached to this model already; restore it first, or "
                    "join both plans with +."
                )
            _attached[self._core] = self
        try:
            self._attach()
        except BaseException:
            self.restore()
            raise

    # What a user calls

    def report(self, everything: bool = False) -> Report:
        """What happened to the images of this thread's last call; `everything`: of all calls that are remembered."""
        return Report(str(self.plan), self._journal.all() if everything else self._journal.last())

    def restore(self) -> None:
        """Leave the model exactly as it was. Doing it twice changes nothing."""
        while self._undo:
            self._undo.pop()()
        with _lock:
            if _attached.get(self._core) is self:
                del _attached[self._core]

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.restore()

    def __repr__(self) -> str:
        return f"<{self.plan} on {type(self.model).__name__}>"

    # Attaching

    def _attach(self) -> None:
        blocks = self.family.blocks(self._core)
        attentions = [self.family.attention(block) for block in blocks]
        self._probe = Probe(attentions, blocks, self._needs, self.tower.has_cls)
        self._undo.append(self._probe.detach)
        self._probe.attach()
        self._merging: Merging | None = None
        first = self.plan.steps[0]
        if first.method.site == "in-encoder":
            budget = first.budget
            merging_tower = merging(
                self.family.vision_tower(self._core),
                first.method,
                None if budget is None else budget.of,
                output_layer=self.tower.last_used,
                cls=self.tower.has_cls,
            )
            self._merging = merging_tower.__enter__()
            self._undo.append(lambda: merging_tower.__exit__(None, None, None) and None)
        if self.model is not self._core:
            self._wrap(self.model, "forward", self._outer)
        self._wrap(self._core, "forward", self._inner)
        self._wrap(self.family.text(self._core), "forward", self._seam)
        for modality in MODALITIES:
            name = f"get_{modality}_features"
            if hasattr(self._core, name):
                self._wrap(self._core, name, functools.partial(self._encode, modality))

    def _wrap(self, module: nn.Module, name: str, around: Callable[..., Any]) -> None:
        """Replace a method of an instance by `around(original, *args, **kwargs)`."""
        original = getattr(module, name)
        own = vars(module).get(name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        def undo() -> None:
            if own is None:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = own

        vars(module)[name] = wrapped
        self._undo.append(undo)

    def _all_needs(self) -> tuple[Need, ...]:
        needs: dict[Need, None] = {}
        notes: dict[str, None] = {}
        for step in self.plan.steps:
            if step.method.site != "before-lm":
                continue
            for need in step.method.needs(self.tower):
                if need.kind.startswith("cls") and not self.tower.has_cls:
                    if not (need.kind == "cls_attention" and need.substitute):
                        raise FoveateError(
                            f"{step.method.name} needs the encoder's [CLS] token ({need.kind}), and "
                            f"{self.family.title} has none."
                        )
                    notes[f"{step.method.name}: attention received in place of [CLS] attention"] = None
                if need.kind == "text_feature" and self._text_features is None:
                    raise FoveateError(
                        f"{step.method.name} compares the image with the prompt in the space of a contrastive text "
                        "encoder: pass text_features=... to compress."
                    )
                if need.kind not in (*OF_ATTENTION, *OF_OUTPUT, *OF_PROMPT):
                    raise FoveateError(f"{step.method.name} needs {need.kind}, which no probe of a live model gives.")
                first = self.plan.steps[0].method
                if first.site != "before-lm" and need.kind in (*OF_ATTENTION, *OF_OUTPUT):
                    raise FoveateError(
                        f"{step.method.name} needs {need.kind} of every patch, and after {first.name} there are fewer; "
                        "join it with a method that needs nothing of the encoder."
                    )
                needs[need] = None
        self._notes = tuple(notes)
        return tuple(needs)

    # Encoding

    def _encode(self, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if getattr(self._local, "encoding", False):
            return original(*args, **kwargs)  # some models encode clips by their function for images
        self._local.encoding = True
        try:
            return self._encode_once(modality, original, *args, **kwargs)
        finally:
            self._local.encoding = False

    def _encode_once(self, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(original).bind(*args, **kwargs).arguments
        call = {**call, **call.pop("kwargs", {})}
        if self.plan.steps[0].method.site == "view":
            return self._note(modality, *self._encode_smaller(modality, original, call))
        with self._probe.encoding() as found:
            output = original(*args, **kwargs)
        if not hasattr(output, "pooler_output"):  # asked for a tuple: none of our callers
            return output
        layouts = self.family.layouts(self._core, modality, call, output)
        measured: list[dict[Need, Tensor]] = [{} for _ in layouts]
        for need, values in found.items():
            value = torch.cat(values)
            if need.kind == "cls_feature":
                for image, own in zip(measured, self.family.per_image(self._core, call, value), strict=True):
                    image[need] = own
                continue
            flat = value[:, None] if value.ndim == 1 else value
            for image, own in zip(measured, self.family.spread(self._core, modality, call, output, flat), strict=True):
                image[need] = own[:, 0] if value.ndim == 1 else own
        merged = None if self._merging is None else self._merging.selections
        return self._note(modality, output, Encoded(layouts, measured, merged))

    def _encode_smaller(self, modality: str, original: Callable[..., Any], call: dict[str, Any]) -> tuple[Any, Encoded]:
        """Encode reduced images; their tokens stand among zeros in a raster of the size that the prompt expects."""
        step = self.plan.steps[0]
        grids = self.family.grids(self._core, modality, call)
        if grids is None or step.budget is None:
            raise FoveateError(f"{step.method.name} reduces images that are one raster, and these are not.")
        counts = [step.budget.of(grid.size) for grid in grids]
        smaller = [reduced_grid(grid, count) for grid, count in zip(grids, counts, strict=True)]
        if smaller == grids:
            output = original(**call)
        else:
            output = original(**self.family.shrink(self._core, modality, call, smaller))
        planes = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        features: list[list[Tensor]] = [[] for _ in planes]
        layouts, merged = [], []
        for image, (grid, small, count) in enumerate(zip(grids, smaller, counts, strict=True)):
            rows, at = (index.to(planes[0][image].device) for index in places(grid, small, count))
            for plane, spread in zip(planes, features, strict=True):
                own = plane[image]
                spread.append(own.new_zeros(grid.size, own.shape[-1]).index_copy(0, at, own[rows]))
            layouts.append(ImageLayout(grid.size, grid_crop(*grid, at.device)))
            merged.append(Selection(at))
        output.pooler_output = features[0]
        if len(planes) > 1:
            output.deepstack_features = features[1:]
        return output, Encoded(layouts, [{} for _ in layouts], merged)

    def _note(self, modality: str, output: Any, encoded: Encoded) -> Any:
        """Remember what an output was made of, until the pass that reads it."""
        frame = self._frame
        if frame is not None:
            frame.encoded[modality] = encoded
        else:  # `generate` encodes before the first forward pass and hands the output on
            output.foveate_encoded = encoded
            self._pending[modality] = encoded
        return output

    @property
    def _pending(self) -> dict[str, Encoded]:
        """What this thread encoded last outside of a forward pass."""
        if not hasattr(self._local, "pending"):
            self._local.pending = {}
        return self._local.pending

    @property
    def _frame(self) -> Frame | None:
        return getattr(self._local, "frame", None)

    @contextmanager
    def _in_frame(self, frame: Frame) -> Any:
        before = self._frame
        self._local.frame = frame
        try:
            yield
        finally:
            self._local.frame = before

    # Forward passes

    def _outer(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.get("labels")
        self._local.columns = None
        if labels is None:
            return original(*args, **kwargs)
        # The loss over a sequence that is shortened on the way can only be taken afterwards.
        given = kwargs.get("return_dict")
        output = original(*args, **{**kwargs, "labels": None, "return_dict": True})
        columns = self._local.columns
        if columns is not None:
            labels = sequence.shorten_labels(labels.to(columns.device), columns)
        text = self.model.config.get_text_config()
        extra = {name: kwargs[name] for name in ("num_items_in_batch",) if name in kwargs}
        loss = self.model.loss_function(  # ty: ignore[call-non-callable]
            logits=output.logits, labels=labels, vocab_size=text.vocab_size, **extra
        )
        output = type(output)(**{**output, "loss": loss})
        return output if given is not False else output.to_tuple()

    def _inner(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(original).bind(*args, **kwargs).arguments
        frame = Frame({**call, **call.pop("kwargs", {})})
        for modality, output in (frame.arguments.get("mm_encoder_outputs") or {}).items():
            if output is None or modality not in MODALITIES:
                continue
            # Hooks that move arguments to a device make new outputs, which know nothing of where they come from.
            encoded = getattr(output, "foveate_encoded", self._pending.get(modality))
            if encoded is None:
                raise FoveateError(f"the {modality}s were encoded before the plan was attached; encode them again.")
            frame.encoded[modality] = encoded
        with self._in_frame(frame):
            return original(*args, **kwargs)

    def _seam(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        frame, embeds = self._frame, kwargs.get("inputs_embeds")
        if frame is None or embeds is None:
            return original(*args, **kwargs)
        cache = kwargs.get("past_key_values")
        kept = kept_of(cache)
        frame.positions = kwargs.get("position_ids")
        chosen = self._choose(frame, embeds)
        if not chosen and self._virtual:
            return original(*args, **kwargs)
        if kept is None and all(image.changes_nothing for image in chosen):
            return original(*args, **kwargs)
        if self._virtual:
            with virtual_unmerging(self.family.text(self._core), _groups(chosen, embeds)):
                return original(*args, **kwargs)
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
        self._local.columns = short.columns
        with inside(cache), carrying(self.family.text(self._core), self._carried(short, chosen, frame, kwargs)):
            output = original(*args, **kwargs)
        kept.extend(short.columns, length, short.total)
        made = getattr(output, "past_key_values", None)
        if made is not None and made is not cache:
            mark(made, kept)
        return output

    def _carried(self, short: Shorter, chosen: list[Chosen], frame: Frame, kwargs: dict[str, Any]) -> list[Tensor]:
        """Position ids for every member that a token carries the position of; none where each has only its own."""
        if all(image.selection.positions is None for image in chosen):
            return []
        if self._renumber:
            raise FoveateError(f"{self.plan} gives tokens several positions of the original sequence; leave them so.")
        long = frame.positions
        if long is None:
            long = torch.arange(short.columns.max() + 1, device=short.columns.device)[None]
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
        gone = shorter.gone + kept.gone if self._renumber else None
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
        with inside(kwargs.get("past_key_values")):
            arguments = {**kwargs, **short}
            short["attention_mask"] = self.family.mask(self._core, arguments, types)
        return short

    # Choosing

    def _choose(self, frame: Frame, embeds: Tensor) -> list[Chosen]:
        """Selections of all images whose tokens are in this pass."""
        chosen: list[Chosen] = []
        reports: list[ImageReport] = []
        for modality, encoded in frame.encoded.items():
            places = self._placeholders(frame, modality)
            if places is None or not encoded.layouts:
                continue
            ids = frame.arguments.get("input_ids")
            if not encoded.goes_on(ids):
                encoded.prompt, encoded.chosen = ids, []
            for number, rows in enumerate(_rows_of_images(places, [layout.count for layout in encoded.layouts])):
                row, columns = rows[0]
                if number == len(encoded.chosen):
                    encoded.chosen.append(self._select(frame, modality, encoded, number, row, columns, embeds))
                selection, report = encoded.chosen[number]
                chosen += [Chosen(r, c, selection) for r, c in rows]
                reports.append(report)
        if reports:
            self._journal.write(reports)
        return chosen

    def _placeholders(self, frame: Frame, modality: str) -> Tensor | None:
        """Where the tokens of a modality stand (B, L), None where there are none."""
        token = self.family.placeholder(self._core, modality)
        if token is None:
            return None
        ids, embeds = frame.arguments.get("input_ids"), frame.arguments.get("inputs_embeds")
        if ids is not None:
            return ids == token
        own = self._core.get_input_embeddings()(torch.tensor(token, device=embeds.device))
        return (embeds == own).all(dim=-1)

    def _select(
        self,
        frame: Frame,
        modality: str,
        encoded: Encoded,
        number: int,
        row: int,
        columns: Tensor,
        embeds: Tensor,
    ) -> tuple[Selection, ImageReport]:
        layout = encoded.layouts[number]
        measured = dict(encoded.measured[number])
        for need in self._needs:
            if need.kind == "instruction":
                measured[need] = embeds[row, self._text_places(frame, row, columns, embeds.shape[1])].detach()
            elif need.kind == "first_layer_attention":
                measured[need] = self._first_layer(frame, row, columns, embeds)
            elif need.kind == "text_feature" and self._text_features is not None:
                features = self._text_features
                measured[need] = features if features.ndim == 1 else features[min(row, len(features) - 1)]
        tokens = VisualTokens(
            embeds[row, columns].detach(),
            layout.crops,
            {need: value.to(embeds.device) for need, value in measured.items()},
            layout.separators,
            layout.size,
            number,
            self.tower,
        )
        whole = Selection(torch.arange(len(tokens), device=embeds.device))
        steps = []
        for step in self.plan.steps:
            if encoded.merged is not None and step is self.plan.steps[0]:
                # The tower gave every patch the feature of the row it went into: one of each row is enough.
                found = encoded.merged[number]
                merges = found.assignment is not None
                features = tokens.features[found.indices] if merges else None
                whole = Selection(found.indices, features, found.assignment, found.weights)
                steps.append(StepReport(str(step), step.method.site, len(tokens), len(whole), 0.0))
                tokens = tokens.take(whole)
                continue
            start = time.perf_counter()
            with torch.no_grad():
                own = step.method(tokens, _count(step, len(tokens)))
            spent = 1000 * (time.perf_counter() - start)
            steps.append(StepReport(str(step), step.method.site, len(tokens), len(own), spent))
            whole = whole.then(own, layout.count)
            if step is not self.plan.steps[-1]:
                tokens = tokens.take(own)
        return whole, ImageReport(number, modality, row, layout, whole, tuple(steps), self._notes)

    def _text_places(self, frame: Frame, row: int, columns: Tensor, length: int) -> Tensor:
        """(T,) the places of the text after an image, of all text where none comes after it."""
        text = torch.ones(length, dtype=torch.bool, device=columns.device)
        seen = sequence.key_mask(frame.arguments.get("attention_mask"), length)
        if seen is not None and seen.shape[1] >= length:
            text &= seen[row, -length:].to(columns.device) > 0
        for modality in MODALITIES:
            places = self._placeholders(frame, modality)
            if places is not None:
                text &= ~places[row]
        after = text.clone()
        after[: int(columns[-1]) + 1] = False
        return (after if bool(after.any()) else text).nonzero().flatten()

    def _first_layer(self, frame: Frame, row: int, columns: Tensor, embeds: Tensor) -> Tensor:
        """Attention that the text pays to an image's tokens in the first decoder layer, (N,)."""
        positions = frame.positions
        if positions is not None and positions.shape[-2] > 1:
            positions = positions[..., row : row + 1, :]
        found = queries_and_keys(self.family.text(self._core), embeds[row : row + 1].detach(), positions)
        query, key, scaling = found
        seen = sequence.key_mask(frame.arguments.get("attention_mask"), embeds.shape[1])
        own = None if seen is None or seen.shape[1] < embeds.shape[1] else seen[row].to(embeds.device)
        rows = self._text_places(frame, row, columns, embeds.shape[1])
        return text_to_visual(query[0], key[0], scaling, rows, columns, own)


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


def _count(step: Step, count: int) -> int | None:
    return None if step.budget is None else step.budget.of(count)


def _check_sites(plan: Plan, family: Family) -> None:
    """Raise FoveateError for an order of steps that tokens cannot meet, or a site that the family lacks."""
    for place, step in enumerate(plan.steps):
        method = step.method
        if method.site == "in-encoder":
            if place:
                raise FoveateError(f"{method.name} acts inside the encoder: it must come first in a plan.")
            if not family.patchwise:
                raise FoveateError(
                    f"{method.name} merges inside the encoder, which needs every patch to become one token of the "
                    f"language model; in {family.title} it does not."
                )
        elif method.site == "view":
            if place:
                raise FoveateError(f"{method.name} acts on the image: it must come first in a plan.")
            if type(family).grids is Family.grids:
                raise FoveateError(f"{method.name} cannot reduce the images of {family.title}; the processor can.")
        elif method.site != "before-lm":
            raise FoveateError(f"{method.name} acts {method.site}, where nothing can be attached.")


def _rows_of_images(places: Tensor, counts: list[int]) -> list[list[tuple[int, Tensor]]]:
    """For every image the sequences that hold it, with its columns.

    A row holds whole images, in order. Where `generate` repeats prompts for beams or several answers, each image is
    in as many neighbouring rows.

    Args:
        places: (B, L) bool, where image tokens stand.
        counts: Tokens of every encoded image, in order.

    Raises:
        FoveateError: the placeholders are not those of these images.
    """
    per_row = places.sum(dim=1).tolist()
    total, encoded = sum(per_row), sum(counts)
    if not encoded or total % encoded:
        raise FoveateError(
            f"the prompts have {total} placeholders for {encoded} visual tokens: images must be encoded with the "
            "prompt they belong to, all of it at once (no prefill_chunk_size)."
        )
    copies = total // encoded
    found: list[list[tuple[int, Tensor]]] = [[] for _ in counts]
    rows = [row for row, count in enumerate(per_row) if count]
    image = 0
    for first in range(0, len(rows), copies):
        group = rows[first : first + copies]
        columns = [places[row].nonzero().flatten() for row in group]
        start = 0
        while start < len(columns[0]) and image < len(counts):
            stop = start + counts[image]
            for row, own in zip(group, columns, strict=True):
                found[image].append((row, own[start:stop]))
            start, image = stop, image + 1
        if start != len(columns[0]):
            raise FoveateError("the placeholders of each prompt must be those of whole images, in order.")
    return found

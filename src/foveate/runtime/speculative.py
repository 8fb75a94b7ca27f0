"""`speculate`: speculative decoding of a live model with a draft.

`generate` of `transformers` encodes images, makes the cache, and decides when to stop.
Only its loop is replaced (by its argument `custom_generate`). The text is that of greedy decoding: a drafted
token is accepted if the model itself would have generated it, and logits processors and stopping criteria are called
token by token.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from foveate import compat
from foveate.core.errors import FoveateError, Refusal
from foveate.core.in_attention import SparseMethod
from foveate.core.in_mlp import NeuronMethod
from foveate.families import Family, family_of
from foveate.methods.decoding.draft import Drafter, Session, Target
from foveate.methods.decoding.kinds import load_draft
from foveate.methods.decoding.tree import Shape, Tree
from foveate.runtime.attach import Handle, _unwrapped, handle_of
from foveate.runtime.patches import NotCopyable, Patches
from foveate.runtime.report import REMEMBERED
from foveate.runtime.select_tokens import MODALITIES

#: Attribute of a model that holds its `SpeculationHandle`.
_SPECULATION = "_foveate_speculation"
#: Attribute that holds its VASparse handle (`foveate.runtime.contrastive`).
VASPARSE = "_foveate_vasparse"


@dataclass(frozen=True)
class Speculation:
    """Report on a draft in one call of `generate`.

    Attributes:
        tokens: Generated tokens.
        passes: Passes of the model after the one over the prompt, which gave the first token.
        drafted: Verified tokens of every pass.
        accepted: Accepted tokens of every pass; the model adds one of its own, unless the text
            ended before.
        seconds: Seconds of the whole loop, the prompt included.
        draft_seconds: Seconds in the draft.
    """

    tokens: int
    passes: int
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    seconds: float
    draft_seconds: float

    @property
    def acceptance_length(self) -> float:
        """Mean number of tokens per pass after the prompt; 1 is the model alone."""
        return (self.tokens - 1) / self.passes if self.passes else 1.0

    def as_json(self) -> dict[str, Any]:
        """The report in plain types."""
        return {
            "tokens": self.tokens,
            "passes": self.passes,
            "drafted": sum(self.drafted),
            "accepted": sum(self.accepted),
            "acceptance_length": self.acceptance_length,
            "seconds": self.seconds,
            "draft_seconds": self.draft_seconds,
        }


def speculate(
    model: Any,
    draft: Drafter | str | os.PathLike[str],
    *,
    depth: int | None = None,
    top_k: int | None = None,
    tokens: int | None = None,
) -> SpeculationHandle:
    """Speed up a live model's `generate` with a draft, until the handle is restored.

        with foveate.speculate(model, "draft") as handle:
            model.generate(**inputs, max_new_tokens=100)
        print(handle.report().acceptance_length)

    The text is that of greedy decoding without the draft (up to rounding where two tokens are equally likely: a pass
    over many tokens adds up in another order than one over a single token). One conversation at a time; sampling, beams
    and batches are refused.

    With a plan of `compress`, attached before or after, the text is that of greedy decoding under the plan: the model
    reads the prompt as the plan says, and the draft reads the remaining tokens. A chain is drafted then. Methods whose
    generated tokens depend on how many are read at a time (`corematching`, `zipvl`), and plans in models with sliding
    windows, are refused when a text begins.

    Args:
        model: A model of `transformers` of a known family, also wrapped by PEFT.
        draft: A draft from `load_draft`, or the folder that `foveate train-method` wrote.
        depth: Tokens of the longest drafted path; default: that of the draft.
        top_k: Tokens drafted after each token; 1 drafts a chain, which every attention implementation verifies.
        tokens: Tokens of the whole tree.

    Returns:
        The handle: a context manager with `report()` and `restore()`.

    Raises:
        FoveateError: the draft cannot be read, is for another model, or one is attached already.
    """
    net = _unwrapped(model)
    drafter = draft if isinstance(draft, Drafter) else load_draft(draft)
    options = {"depth": depth, "top_k": top_k, "tokens": tokens}
    shape = Shape(**{**vars(drafter.shape), **{name: value for name, value in options.items() if value is not None}})
    # With a plan a chain is drafted by default; an explicit tree is refused.
    chain = None if top_k or tokens else Shape(depth=shape.depth, top_k=1, tokens=shape.depth)
    return SpeculationHandle(net, drafter, shape, chain)


class SpeculationHandle(NotCopyable):
    """Handle of a draft attached to a model, made by `speculate`; a context manager that restores the model on exit."""

    def __init__(self, model: Any, drafter: Drafter, shape: Shape, chain: Shape | None = None) -> None:
        self.family = family_of(model)
        self.model, self.shape, self.chain = model, shape, chain
        self.core = self.family.core(model)
        self.reports: deque[Speculation] = deque(maxlen=REMEMBERED)
        if _SPECULATION in vars(model) or VASPARSE in vars(model):
            raise FoveateError(
                Refusal("attached-already", "a draft or vasparse is attached to this model already", "restore it first")
            )
        drafter.check(model)
        self.drafter = drafter.eval() if isinstance(drafter, torch.nn.Module) else drafter
        self._local = threading.local()
        self._recorder = PassRecorder()
        self._patches = Patches()
        self._patches.set(model, _SPECULATION, self)
        self._patches.wrap(model, "generate", self._generate)
        self._recorder.attach(self._patches, self.family.text(self.core))

    def shape_beside(self, plan: Handle | None) -> Shape:
        """Shape of the drafts: a chain under a plan."""
        return self.shape if plan is None or self.chain is None else self.chain

    def _check_plan(self) -> None:
        """Raise FoveateError where drafts do not work with the attached plan."""
        handle = handle_of(self.model)
        if handle is None:
            return
        if self.shape_beside(handle).top_k > 1:
            raise FoveateError(
                f"under the plan '{handle.plan}' drafts are verified as a chain: leave top_k and tokens "
                "out, or give top_k=1."
            )
        for step in handle.plan.decoder_steps:
            if isinstance(step.method, SparseMethod | NeuronMethod):
                raise FoveateError(
                    f"under {step.method.name} a generated token depends on how many are read at a time, so a "
                    "draft would change the text; leave the draft or the plan out."
                )

    def report(self) -> Speculation:
        """Report on this thread's last call of `generate`; on that of any thread if it made none.

        Raises:
            FoveateError: nothing has been generated yet.
        """
        if not self.reports:
            raise FoveateError("nothing has been generated with this draft yet; call generate first.")
        return getattr(self._local, "report", self.reports[-1])

    def restore(self) -> None:
        """Restore the model to its original state; a second call changes nothing."""
        self._patches.undo()

    def __enter__(self) -> SpeculationHandle:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.restore()

    def __repr__(self) -> str:
        return f"<a draft for {type(self.model).__name__}>"

    def _generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("assistant_model") is not None or kwargs.get("custom_generate") is not None:
            raise FoveateError("a draft is attached to this model; leave assistant_model and custom_generate out.")
        # `generate` passes a streamer to its own loops only.
        loop = functools.partial(self._write, kwargs.get("streamer"))
        return generate(*args, **kwargs, custom_generate=loop)

    def _write(
        self,
        streamer: Any,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:
        """The loop that `generate` calls."""
        _check(model, input_ids, generation_config, model_kwargs)
        self._check_plan()
        start = time.perf_counter()
        state = _GenerationState(self, input_ids, logits_processor, stopping_criteria, streamer)
        with self._recorder.recording() as recorded:
            state.read(recorded, generation_config, model_kwargs)
            while not state.ended:
                state.verify(recorded)
        if streamer is not None:
            streamer.end()
        self._local.report = Speculation(
            state.ids.shape[1] - input_ids.shape[1],
            len(state.accepted),
            tuple(state.drafted),
            tuple(state.accepted),
            time.perf_counter() - start,
            state.draft_seconds,
        )
        self.reports.append(self._local.report)
        return state.ids


def target_of(model: Any) -> Target:
    """The embeddings and output layer of a model, which its drafts share."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    stored = head.weight.dtype
    precision = stored if stored.is_floating_point else model.dtype  # quantised weights are stored as whole numbers
    return Target(
        lambda ids: embedding(ids[None])[0],
        lambda features: head(features.to(precision)),
    )


def prompt_mask(family: Family, core: Any, ids: Tensor) -> Tensor:
    """(L,) bool, True for image and video positions of a prompt."""
    visual = torch.zeros_like(ids, dtype=torch.bool)
    for modality in MODALITIES:
        placeholder = family.placeholder(core, modality)
        if placeholder is not None:
            visual |= ids == placeholder
    return visual


@dataclass
class RecordedPass:
    """Recorded inputs and last hidden states of a language model, (1, L, d) of every call."""

    embeds: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)

    def take(self) -> tuple[Tensor, Tensor]:
        """Embeddings (L, d) and features (L, d) since the last call of this method."""
        recorded = torch.cat(self.embeds, dim=1)[0], torch.cat(self.features, dim=1)[0]
        self.embeds.clear()
        self.features.clear()
        return recorded


class PassRecorder:
    """Hooks that record a language model's inputs and last hidden states, separately for each thread."""

    def __init__(self) -> None:
        self._local = threading.local()

    def attach(self, patches: Patches, text: torch.nn.Module) -> None:
        """Install the hooks, until `patches` are undone."""
        patches.before(text, self._before, with_kwargs=True)
        patches.after(text, self._after)

    @contextmanager
    def recording(self) -> Generator[RecordedPass]:
        """Record this thread's calls of the language model while the context is open."""
        recorded = self._local.recorded = RecordedPass()
        try:
            yield recorded
        finally:
            self._local.recorded = None

    def _before(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        recorded: RecordedPass | None = getattr(self._local, "recorded", None)
        if recorded is not None:
            recorded.embeds.append(kwargs["inputs_embeds"])

    def _after(self, module: Any, args: Any, output: Any) -> None:
        recorded: RecordedPass | None = getattr(self._local, "recorded", None)
        if recorded is not None:
            recorded.features.append(output.last_hidden_state)


@contextmanager
def record_passes(text: torch.nn.Module) -> Generator[RecordedPass]:
    """Record this thread's calls of a language model while the context is open."""
    recorder = PassRecorder()
    with Patches() as patches, recorder.recording() as recorded:
        recorder.attach(patches, text)
        yield recorded


class _GenerationState:
    """State of one call of `generate`."""

    def __init__(
        self, handle: SpeculationHandle, ids: Tensor, logits_processor: Any, stopping_criteria: Any, streamer: Any
    ) -> None:
        self.handle, self.model = handle, handle.model
        self.ids = ids
        self.processors, self.criteria, self.streamer = logits_processor, stopping_criteria, streamer
        self.target = target_of(self.model)
        self.session: Session = handle.drafter.session(self.target)
        self.ended = False
        self.drafted: list[int] = []
        self.accepted: list[int] = []
        self.draft_seconds = 0.0

    # The model's side

    def read(self, recorded: RecordedPass, generation_config: Any, model_kwargs: dict[str, Any]) -> None:
        """Read the prompt and generate the first token."""
        ids = self.ids
        self.output = self.model._prefill(ids, generation_config, model_kwargs)
        self.cache = compat.cache_of(self.output)
        kinds = {type(layer) for layer in self.cache.layers}
        if odd := kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
            names = ", ".join(sorted(kind.__name__ for kind in odd))
            raise FoveateError(
                f"a draft needs a cache of keys and values that can be cropped; this model's has {names}."
            )
        # From here on sliding windows must keep what they drop, so that they can be cropped.
        self.recording = DynamicSlidingWindowLayer in kinds
        plan = handle_of(self.model)
        if self.recording and plan is not None:
            raise FoveateError(
                f"this model has sliding windows, which cannot be cropped under the plan '{plan.plan}'; "
                "leave the draft or the plan out."
            )
        if self.recording:
            self.cache.activate_past_recording()
        token = self._write_next(self.output.logits[:, -1])
        embeds, features = recorded.take()
        if isinstance(self.handle.drafter, torch.nn.Module):
            # The device of the activations: offloaded weights are on another one.
            self.handle.drafter.to(features.device)
        visual = prompt_mask(self.handle.family, self.handle.core, ids[0, -len(embeds) :])
        mask = model_kwargs.get("attention_mask")
        real = visual.new_ones(len(embeds)) if mask is None else mask[0, -len(embeds) :].bool()
        if plan is not None and plan.columns is not None:  # the draft reads the output of the last layer
            columns = plan.columns[0]
            features, columns = features[columns >= 0], columns[columns >= 0]
            embeds, visual, real = embeds[columns], visual[columns], real[columns]
        following = torch.cat([embeds[1:], self.target.embed(token)])
        features, following, visual = features[real], following[real], visual[real]
        self._extend(features, following, visual)
        self.kwargs = self._extended(model_kwargs, 1)

    def verify(self, recorded: RecordedPass) -> None:
        """Draft tokens, verify them in one pass, and write the accepted ones and one more."""
        start = time.perf_counter()
        tree = self.session.propose(self.handle.shape_beside(handle_of(self.model)))
        chain = tree.is_chain
        self.draft_seconds += time.perf_counter() - start
        count, past = len(tree), self.ids.shape[1] - 1
        inputs = self.model.prepare_inputs_for_generation(
            torch.cat([self.ids, tree.tokens[None]], dim=1),
            next_sequence_length=count + 1,
            **self._extended(self.kwargs, count),
        )
        if "logits_to_keep" in inputs:
            inputs["logits_to_keep"] = count + 1
        if not chain:
            inputs |= self._as_tree(tree, inputs, past)
        self.output = self.model(**inputs, return_dict=True)
        _, features = recorded.take()
        path = self._walk(tree, self.output.logits[:, -count - 1 :])
        kept = torch.tensor([0, *(place + 1 for place in path)], device=features.device)
        self._keep(kept, past, count + 1, chain)
        self.kwargs = self._extended(self.kwargs, len(kept))
        self.drafted.append(count)
        written = self.ids[0, -len(kept) :]
        # The last token is a drafted one only if the text ended with it.
        last = tree.child(path[-1] if path else -1, int(written[-1])) if self.ended else None
        self.accepted.append(len(path) + (last is not None))
        if not self.ended:
            visual = torch.zeros(len(kept), dtype=torch.bool, device=features.device)
            self._extend(features[kept], self.target.embed(written), visual)

    def _extend(self, features: Tensor, following: Tensor, visual: Tensor) -> None:
        start = time.perf_counter()
        self.session.extend(features, following, visual)
        self.draft_seconds += time.perf_counter() - start

    def _walk(self, tree: Tree, logits: Tensor) -> list[int]:
        """Write tokens from the root on while the model agrees, and one more; returns the accepted places."""
        path: list[int] = []
        place: int | None = -1
        while place is not None:
            token = self._write_next(logits[:, place + 1])
            # The last token of the text is never read: the cache holds all before it.
            place = None if self.ended else tree.child(place, int(token))
            if place is not None:
                path.append(place)
        return path

    def _write_next(self, logits: Tensor) -> Tensor:
        """Write the most probable token (1,) of logits (1, V)."""
        scores = self.processors(self.ids, logits.to(copy=True, dtype=torch.float32, device=self.ids.device))
        token = scores.argmax(dim=-1)
        self.ids = torch.cat([self.ids, token[None]], dim=1)
        if self.streamer is not None:
            self.streamer.put(token.cpu())
        self.ended = bool(self.criteria(self.ids, None).all())
        return token

    def _extended(self, kwargs: dict[str, Any], count: int) -> dict[str, Any]:
        """Arguments of a pass over `count` more tokens of text."""
        types = kwargs.get("token_type_ids")
        kwargs = self.model._update_model_kwargs_for_generation(self.output, dict(kwargs), num_new_tokens=count)
        if types is not None:  # all as the last one, not as the last `count`
            kwargs["token_type_ids"] = torch.cat([types, types[:, -1:].expand(-1, count)], dim=1)
        return kwargs

    def _as_tree(self, tree: Tree, inputs: dict[str, Any], past: int) -> dict[str, Any]:
        """Mask and positions for a tree of tokens."""
        text: Any = self.handle.family.text(self.handle.core)
        implementation = compat.attention_name(text.config)
        if implementation not in ("sdpa", "eager") or self.recording or "position_ids" not in inputs:
            raise FoveateError(
                "a tree of tokens is verified by models without sliding windows, with sdpa or eager attention; "
                "draft a chain here: top_k=1."
            )
        visible = tree.sees().to(self.ids.device)
        mask = self.kwargs.get("attention_mask")
        before = visible.new_ones(past) if mask is None else mask[0, :past].bool()
        visible = torch.cat([before.expand(len(visible), -1), visible], dim=1)
        dtype = self.model.dtype
        bias = torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
        positions = inputs["position_ids"]
        depths = tree.depths().to(positions.device)
        return {"attention_mask": bias[None, None], "position_ids": positions[..., :1] + depths}

    def _keep(self, kept: Tensor, past: int, count: int, chain: bool) -> None:
        """Keep the accepted tokens in the cache, of the pass's `count` tokens after `past`."""
        if not chain and not torch.equal(kept, torch.arange(len(kept), device=kept.device)):
            for layer in self.cache.layers:
                if layer.is_initialized:
                    for states in (layer.keys, layer.values):
                        states[:, :, past : past + len(kept)] = states[:, :, past + kept]
        removed = count - len(kept)
        if removed or self.recording:
            self.cache.crop(-removed)


def refuse_plan(model: Any) -> None:
    """Raise FoveateError where a plan is attached to a model."""
    if (plan := handle_of(model)) is not None:
        raise FoveateError(
            Refusal(
                "attached-already",
                f"the plan '{plan.plan}' is attached to this model",
                "vasparse is for models without one",
            )
        )


def _check(model: Any, ids: Tensor, config: Any, kwargs: dict[str, Any]) -> None:
    """Raise FoveateError for options that drafts do not support."""
    if config.do_sample or config.num_beams != 1:
        raise FoveateError("a draft speeds up greedy decoding: leave sampling and beams out.")
    if ids.shape[0] != 1:
        raise FoveateError(f"a draft speeds up one conversation at a time, not a batch of {ids.shape[0]}.")
    if config.return_dict_in_generate:
        raise FoveateError("with a draft, generate returns tokens alone: leave return_dict_in_generate out.")
    cache = compat.cache_in(kwargs)
    if not kwargs.get("use_cache", True) or not compat.is_plain_dynamic_cache(cache):
        name = "none" if cache is None else type(cache).__name__
        raise FoveateError(f"a draft needs the cache that generate makes by default (DynamicCache), not {name}.")
    if kwargs.get("inputs_embeds") is not None:
        raise FoveateError("a draft reads the prompt's input_ids, not inputs_embeds.")

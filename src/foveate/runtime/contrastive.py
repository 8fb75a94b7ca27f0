"""Visual-aware sparse attention with contrastive decoding; see `foveate.methods.decoding.VASparse`."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from foveate import compat
from foveate.core.errors import FoveateError, Refusal
from foveate.core.in_attention import AttentionInputs
from foveate.families import family_of
from foveate.methods.decoding.vasparse import VASparse
from foveate.runtime.attach import _unwrapped
from foveate.runtime.attention_functions import AttentionCall, wrap_attention
from foveate.runtime.patches import NotCopyable, Patches
from foveate.runtime.speculative import VASPARSE, prompt_mask, refuse_plan


def vasparse(model: Any, settings: VASparse | None = None) -> VASparseHandle:
    """Decode with VASparse in a live model's `generate`, until the handle is restored.

        with foveate.vasparse(model, VASparse(keep=0.9, contrast=0.1)):
            model.generate(**inputs)

    One conversation at a time; greedy decoding and sampling both work.

    Args:
        model: A model of `transformers` of a family whose layers all have attention.
        settings: The method's settings; those of the paper by default.

    Raises:
        FoveateError: the model has other layers, fewer than `exit_layer`, or something attached.
    """
    return VASparseHandle(_unwrapped(model), settings or VASparse())


class _GenerationState:
    """State of one call of `generate`.

    Args:
        visual: (L,) bool, True for image positions of the prompt.
    """

    def __init__(self, visual: Tensor) -> None:
        self.visual = visual
        self.mass: dict[int, Tensor] = {}  # by layer, attention from each token to the image
        self.branch: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, keys and values of the sparse branch
        self.layer_inputs: dict[int, tuple[Tensor, dict[str, Any]]] = {}  # by layer, input of its last call
        self.sparse = False  # whether the sparse branch is running


class VASparseHandle(NotCopyable):
    """Handle of VASparse on a model; a context manager that restores the model on exit."""

    def __init__(self, model: Any, settings: VASparse) -> None:
        self.model, self.settings = model, settings
        self.family = family_of(model)
        self.core = self.family.core(model)
        text: Any = self.family.text(self.core)
        self.text = text
        if not all(hasattr(layer, "self_attn") for layer in text.layers) or not hasattr(text, "norm"):
            raise FoveateError(
                Refusal(
                    "needs-full-attention",
                    f"vasparse needs attention in every layer, which {type(text).__name__} does not have",
                )
            )
        if settings.exit_layer > len(text.layers):
            raise FoveateError(
                f"exit_layer must be at most {len(text.layers)}, the layers of this model, not {settings.exit_layer}."
            )
        refuse_plan(model)
        if VASPARSE in vars(model) or "generate" in vars(model):
            raise FoveateError(
                Refusal("attached-already", "a draft or vasparse is attached to this model already", "restore it first")
            )
        self._local = threading.local()
        self._patches = Patches()
        try:
            for number, layer in enumerate(text.layers):
                wrap_attention(self._patches, layer.self_attn, functools.partial(self._attend, number))
                if number < settings.exit_layer:
                    self._patches.before(layer, functools.partial(self._enter, number), with_kwargs=True)
            self._patches.wrap(model, "generate", self._generate)
            self._patches.set(model, VASPARSE, self)
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Restore the model to its original state; a second call changes nothing."""
        self._patches.undo()

    def __enter__(self) -> VASparseHandle:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.restore()

    def __repr__(self) -> str:
        return f"<vasparse on {type(self.model).__name__}>"

    @property
    def _state(self) -> _GenerationState | None:
        """State of this thread's call of `generate`."""
        return getattr(self._local, "state", None)

    def _generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        refuse_plan(self.model)
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None or len(ids) != 1:
            raise FoveateError("vasparse needs the input_ids of one conversation at a time.")
        if compat.cache_in(kwargs) is not None:
            raise FoveateError("vasparse must read the whole prompt; call generate without a cache.")
        self._local.state = _GenerationState(prompt_mask(self.family, self.core, ids[0]))
        processors = kwargs.pop("logits_processor", None) or []
        try:
            return generate(*args, **kwargs, logits_processor=LogitsProcessorList([_Contrast(self), *processors]))
        finally:
            self._local.state = None

    def sparse_logits(self) -> Tensor:
        """Logits (1, V) float32 of the sparse branch for the last token that this thread's `generate` has read."""
        state = self._local.state
        hidden = state.layer_inputs[0][0]
        state.sparse = True
        try:
            for number in range(self.settings.exit_layer):
                output = self.text.layers[number](hidden, **state.layer_inputs[number][1])
                hidden = output[0] if isinstance(output, tuple) else output
        finally:
            state.sparse = False
        return self.model.get_output_embeddings()(self.text.norm(hidden))[:, -1].float()

    def _enter(self, number: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Record the input of a layer for the last token."""
        state = self._state
        if state is None or state.sparse:
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        cos, sin = kwargs["position_embeddings"]
        last = {"position_embeddings": (cos[..., -1:, :], sin[..., -1:, :])}
        state.layer_inputs[number] = (hidden[:, -1:], last)

    def _attend(self, number: int, call: AttentionCall) -> Any:
        state = self._state
        if state is None:  # not inside `generate`
            return call.attend()
        if state.sparse:
            return self._attend_sparsely(state.branch[number], call)
        allowed, count = call.allowed()[0], call.query.shape[2]
        total = call.key.shape[2]
        visual = torch.zeros(total, dtype=torch.bool, device=call.key.device)
        visual[: len(state.visual)] = state.visual[:total].to(visual.device)
        inputs = AttentionInputs(
            call.query[0], call.key[0], call.scaling, allowed, visual, ~visual, number, len(self.text.layers)
        )
        masses, weights = [state.mass[number]] if number in state.mass else [], None
        for _, weights in inputs.blocks(torch.arange(count, device=visual.device)):
            masses.append(weights[:, visual].sum(dim=1))
        assert weights is not None  # a call has at least one token
        mass = state.mass[number] = torch.cat(masses)
        if len(mass) != total:
            raise FoveateError("vasparse needs a cache of the whole conversation; call generate without one.")
        scores = self.settings.scores(weights[-1], mass, allowed[-1])
        if number < self.settings.exit_layer:
            branch_tokens = self.settings.branch_tokens(scores, visual)
            branch_tokens = branch_tokens[branch_tokens < total - 1]  # the branch computes the last token itself
            state.branch[number] = (call.key[:, :, branch_tokens], call.value[:, :, branch_tokens])
        if count > 1 or self.settings.keep == 1:
            return call.attend()
        selected = self.settings.attended_tokens(scores)
        return call.attend(key=call.key[:, :, selected], value=call.value[:, :, selected], mask=None)

    def _attend_sparsely(self, branch: tuple[Tensor, Tensor], call: AttentionCall) -> Any:
        key, value = branch
        return call.attend(
            key=torch.cat([key, call.key], dim=2), value=torch.cat([value, call.value], dim=2), mask=None
        )


class _Contrast(LogitsProcessor):
    """Subtracts the scaled logits of the sparse branch."""

    def __init__(self, handle: VASparseHandle) -> None:
        self.handle = handle

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rate = self.handle.settings.contrast
        return scores if rate == 0 else scores - rate * self.handle.sparse_logits().to(scores.device)

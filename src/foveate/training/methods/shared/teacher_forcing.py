"""Teacher-forced activations for training per-layer modules.

The encoder runs once a prompt. What the language model was called with is kept, so that it can be called again with
parts of it changed: on a small model the encoder is most of the work.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.core.attention import Attention
from foveate.core.errors import FoveateError
from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.plan import Plan, Step
from foveate.core.tokens import Selection
from foveate.families import family_of
from foveate.runtime import compress
from foveate.runtime.attention_functions import observed_calls
from foveate.runtime.patches import Patches, in_this_thread
from foveate.training.examples import Example
from foveate.training.methods.shared.relevance_targets import continued, read_example


@dataclass(frozen=True)
class Recorder(DecoderMethod):
    """Keeps all tokens, and records the inputs that a method would get."""

    found: list[LayerTokens] = field(default_factory=list)

    name: ClassVar[str] = "recorder"
    budget: ClassVar = "none"

    @property
    def arguments(self) -> dict[str, object]:
        """None that could be written."""
        return {}

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Layer 1; plans name others."""
        return (1,)

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """Everything."""
        self.found.append(tokens)
        return Selection(torch.arange(len(tokens), device=tokens.device))


@dataclass(frozen=True)
class RecordedActivations:
    """One prompt with its answer in a model with all tokens.

    Args:
        tokens: What a method would see, by layer, of every image.
        call: What the language model was called with.
        hidden: (A, D) its output where the tokens of the answer are predicted.
        rows: (A,) where that is.
        answer: (A,) token ids.
        inputs: What the model was called with.
        attention: Queries and keys of the requested layer, if any.
    """

    tokens: dict[int, list[LayerTokens]]
    call: dict[str, Any]
    hidden: Tensor
    rows: Tensor
    answer: Tensor
    inputs: dict[str, Any]
    attention: Attention | None = None


def text_of(model: Any) -> Any:
    """The language model of a model of a known family."""
    family = family_of(model)
    return family.text(family.core(model))


@torch.no_grad()
def record(
    model: Any, processor: Any, example: Example, layers: Sequence[int], attention_layer: int | None = None
) -> RecordedActivations:
    """Let a model read a prompt with its answer.

    Args:
        model: A model of a known family, without a plan attached.
        processor: Its processor.
        example: Up to the first answer that follows all its images.
        layers: Decoder layers before which tokens are noted.
        attention_layer: A decoder layer whose queries and keys are noted.

    Raises:
        FoveateError: the example cannot be read, or the model cannot be shortened inside.
    """
    inputs, answer = read_example(model, processor, example)
    prompt, text = inputs["input_ids"].shape[1], text_of(model)
    full_inputs = continued(inputs, answer, family_of(model).answer_type)
    labels = full_inputs["input_ids"].clone()
    labels[:, :prompt] = -100
    recorder, calls, outputs, attention = Recorder(), [], [], []

    def on_call(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        calls.append(dict(kwargs))

    def on_output(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output.last_hidden_state[0])

    def on_attention(module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]) -> None:
        scaling = options.get("scaling")
        attention.append(Attention(query[0], key[0], query.shape[-1] ** -0.5 if scaling is None else float(scaling)))

    # A second thread that would see through the same model is refused: one plan at a time.
    with compress(model, Plan((Step(recorder, None, tuple(layers)),))), Patches() as patches:
        patches.before(text, in_this_thread(on_call), with_kwargs=True)
        patches.after(text, in_this_thread(on_output))
        with _observed(text, attention_layer, on_attention):
            model(**full_inputs, labels=labels, use_cache=False)
    rows = torch.arange(prompt - 1, prompt - 1 + len(answer), device=answer.device)
    tokens_by_layer: dict[int, list[LayerTokens]] = {layer: [] for layer in layers}
    for tokens in recorder.found:
        tokens_by_layer[tokens.layer].append(tokens)
    return RecordedActivations(
        tokens_by_layer, calls[0], outputs[0][rows], rows, answer, full_inputs, attention[0] if attention else None
    )


@contextmanager
def _observed(text: Any, layer: int | None, observer: Callable[..., None]) -> Generator[None]:
    if layer is None:
        yield
        return
    with observed_calls(text.layers[layer].self_attn, observer):
        yield


@contextmanager
def encoding_once(model: Any) -> Generator[None]:
    """Cache the encoder's outputs by its inputs while the context is open, for plans that need no measurements."""
    family = family_of(model)
    tower: Any = family.vision_tower(family.core(model))
    cached: list[tuple[list[Any], Any]] = []

    def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        arguments = [*args, *(kwargs[name] for name in sorted(kwargs))]
        for cached_arguments, output in cached:
            if len(cached_arguments) == len(arguments) and all(map(_same, cached_arguments, arguments)):
                return copy.copy(output)
        output = original(*args, **kwargs)
        cached.append((arguments, output))
        return copy.copy(output)  # some models replace fields of what their tower returns

    with Patches() as patches:
        patches.wrap(tower, "forward", forward)
        yield


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and torch.equal(first, second)
    return type(first) is type(second) and bool(first == second)


def check_layers(text: Any, layers: Sequence[int]) -> tuple[int, ...]:
    """Layers in order, each once.

    Raises:
        FoveateError: the language model does not have them.
    """
    count = len(text.layers)
    unique = tuple(sorted(set(layers)))
    if not unique or unique[0] < 1 or unique[-1] >= count:
        raise FoveateError(
            f"networks can be trained for the decoder layers 1 to {count - 1} of this model, not for "
            f"{', '.join(map(str, unique)) or 'none'}."
        )
    return unique

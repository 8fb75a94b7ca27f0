"""Relevance of visual tokens for an answer: attention x gradient roll-out (arXiv 2506.01097).

Attention matrices are formed here and nowhere else in foveate: their gradients are what the method learns from. Only
the language model attends eagerly, and only for one pass an answer.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.answering.conversations import as_plain_text, check_length, greedy
from foveate.core.errors import FoveateError
from foveate.core.method import BudgetRule
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens
from foveate.families import Family, family_of
from foveate.images import open_image
from foveate.methods.pre_llm.relevance import as_picture, relevance_target, rollout
from foveate.runtime import compress
from foveate.runtime.attention_functions import AttentionCall, wrap_attention
from foveate.runtime.patches import Patches
from foveate.training.examples import PLACEHOLDER, ROLES, Example
from foveate.training.methods.shared.frozen import frozen

ATTENTION = Need("first_layer_attention")
#: Inputs that hold one value for every token of the prompt.
_TYPES = ("token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class RelevanceMap:
    """Training example: first-layer attention and relevance of one image, or one crop of a tiled image.

    Args:
        attention: (rows, columns), what the prompt's text pays in the first decoder layer.
        target: (rows, columns), shares of relevance for the answer, of sum 1; 0 where no token is.
        present: (rows, columns) bool, False in padding.
    """

    attention: Tensor
    target: Tensor
    present: Tensor


@dataclass(frozen=True)
class _Recorder(PreLLMMethod):
    """Keeps all tokens, and records the inputs that a method gets at inference."""

    found: list[VisualTokens] = field(default_factory=list)

    name: ClassVar[str] = "recorder"
    budget: ClassVar[BudgetRule] = "none"
    handles_tiles: ClassVar[bool] = True

    @property
    def arguments(self) -> dict[str, object]:
        """None that could be written."""
        return {}

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """First-layer attention."""
        return (ATTENTION,)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """Everything."""
        self.found.append(tokens)
        return Selection(torch.arange(len(tokens), device=tokens.device))


def read_example(model: Any, processor: Any, example: Example) -> tuple[dict[str, Any], Tensor]:
    """The prompt of an example as the model's inputs, and its answer (A,) with the end token.

    A conversation is read up to the first answer that follows all its images.

    Raises:
        FoveateError: it shows no image, an image cannot be read, or it is longer than the model's positions.
    """
    turns = example.conversations
    shown = [number for number, turn in enumerate(turns) if PLACEHOLDER in turn["value"]]
    if not shown:
        raise FoveateError("a conversation without an image says nothing of visual tokens.")
    tokenizer = getattr(processor, "tokenizer", processor)
    images = iter([open_image(image) for image in example.images])
    messages, answer = [], turns[shown[-1] + 1]["value"]
    for turn in turns[: shown[-1] + 1]:
        content: list[dict[str, Any]] = []
        for place, piece in enumerate(turn["value"].split(PLACEHOLDER)):
            content += [{"type": "image", "image": next(images)}] if place else []
            text = as_plain_text(piece.strip(), tokenizer)
            content += [{"type": "text", "text": text}] if text else []
        messages.append({"role": ROLES[turn["from"]], "content": content})
    options: dict[str, Any] = {"return_tensors": "pt"}
    if getattr(processor, "chat_template", None):
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, **options
        )
    else:
        parts = [part for message in messages for part in message["content"]]
        text = "".join(part.get("text", getattr(processor, "image_token", "")) for part in parts)
        inputs = processor(images=[part["image"] for part in parts if "image" in part], text=text, **options)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = torch.tensor(tokenizer(as_plain_text(answer, tokenizer), add_special_tokens=False)["input_ids"] + end)
    check_length(model, inputs["input_ids"].shape[1], len(ids))
    return dict(inputs.to(model.device, dtype=model.dtype)), ids.to(model.device)


def explain(model: Any, inputs: dict[str, Any], answer: Tensor | int) -> list[RelevanceMap]:
    """Relevance maps of one prompt: first-layer attention and relevance of its images, crop by crop.

    Args:
        model: A model of a known family, without a plan attached. It is left as it was.
        inputs: Of one prompt (B = 1) with its images.
        answer: (A,) token ids, or how many tokens the model's own greedy answer may have.

    Raises:
        FoveateError: the model is of no known family, or built so that its first layer cannot be asked.
    """
    family: Family = family_of(model)
    core = family.core(model)
    recorder = _Recorder()
    ids = inputs["input_ids"]
    with compress(model, recorder), torch.no_grad():
        if isinstance(answer, int):
            answer = model.generate(**inputs, generation_config=greedy(model, answer))[0, ids.shape[1] :]
        else:
            model(**inputs, use_cache=False)
    relevance = answer_relevance(model, inputs, answer)
    rows = torch.arange(ids.shape[1] - 1, len(relevance), device=ids.device)
    columns = (ids[0] == family.placeholder(core, "image")).nonzero().flatten()
    if sum(map(len, recorder.found)) != len(columns):
        raise FoveateError("the prompt's placeholders are not those of its images; clips cannot be learned from.")
    maps = []
    for tokens, image_columns in zip(
        recorder.found, columns.split([len(tokens) for tokens in recorder.found]), strict=True
    ):
        for crop in tokens.crops:
            if not len(crop.present):
                continue
            part = tokens.part(crop)
            place = part.crops[0]
            target = relevance_target(relevance, rows, image_columns[crop.present])
            maps.append(
                RelevanceMap(
                    as_picture(part.get(ATTENTION).float(), place).cpu(),
                    as_picture(target, place).cpu(),
                    (place.index >= 0).view(*place.grid).cpu(),
                )
            )
    return maps


def answer_relevance(model: Any, inputs: dict[str, Any], answer: Tensor) -> Tensor:
    """Relevance (T, T) of every position for every other, roll-out of attention x gradient through all layers.

    What is explained is the log-probability of the answer given the prompt. T counts the prompt and all tokens of the
    answer but the last, after which nothing is predicted. Layers without attention matrices (linear attention) are
    left out of the product.

    Args:
        model: A model of a known family.
        inputs: Of one prompt (B = 1).
        answer: (A,) token ids.

    Raises:
        FoveateError: no layer of the language model gives its attention.
    """
    family: Family = family_of(model)
    core = family.core(model)
    prompt = inputs["input_ids"].shape[1]
    full_inputs = continued(inputs, answer[:-1], family.answer_type)
    with frozen(model), _eager(core, family.text(core)) as attentions, torch.enable_grad():
        logits = model(**full_inputs, use_cache=False).logits[0, prompt - 1 :].float()
        likelihood = logits.log_softmax(dim=-1).gather(1, answer[:, None]).sum()
        if not attentions:
            raise FoveateError(f"no layer of {type(family.text(core)).__name__} gives its attention.")
        gradients = torch.autograd.grad(likelihood, attentions)
    return rollout([attention[0].detach() for attention in attentions], [attention[0] for attention in gradients])


def continued(inputs: dict[str, Any], answer: Tensor, answer_type: int) -> dict[str, Any]:
    """The inputs of a prompt with its answer written behind."""
    continued_inputs = dict(inputs) | {"input_ids": torch.cat([inputs["input_ids"], answer[None]], dim=1)}
    fill_values = {"attention_mask": 1} | dict.fromkeys(_TYPES, answer_type)
    for name, value in fill_values.items():
        if inputs.get(name) is not None:
            continued_inputs[name] = torch.cat([inputs[name], inputs[name].new_full((1, len(answer)), value)], dim=1)
    return continued_inputs


@contextmanager
def _eager(core: Any, text: Any) -> Generator[list[Tensor]]:
    """Eager attention in the language model; the list gets the attention (B, H, T, T) of every layer of a pass.

    For the calling thread alone. The graph begins at the embeddings, so that the encoder is not differentiated.
    """
    attentions: list[Tensor] = []
    thread = threading.get_ident()

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if threading.get_ident() != thread:
            return None
        return args, kwargs | {"inputs_embeds": kwargs["inputs_embeds"].detach().requires_grad_()}

    def keep(call: AttentionCall) -> Any:
        if threading.get_ident() != thread:
            return call.attend()
        output = replace(call, name="eager").attend_pairs(call.allowed())
        if torch.is_tensor(output[1]):
            attentions.append(output[1])
        return output

    with Patches() as patches:
        patches.before(text, begin, with_kwargs=True)
        for layer in text.layers:
            if hasattr(layer, "self_attn"):
                wrap_attention(patches, layer.self_attn, keep)
        yield attentions

"""What connectors read of the prompt, worked out before images are encoded.

The question is found by the structure of the ids alone: the tokens of a row that are no placeholder, no padding and no
answer. A model knows where answers are from its labels, or from an `answer_mask`; in a prompt for `generate` there are
none. Words of a chat template are part of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate import compat
from foveate.core.errors import FoveateError


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, as a model is called with them.

    Args:
        embeds: `(B, L, d)`, embeddings of the tokens.
        placeholders: `(B, L)` bool, places of image tokens.
        attention_mask: `(B, L)`, 0 for padding; None: there is none.
        answer_mask: `(B, L)` bool, True for tokens of answers; None: there are none.
        past: Number of first tokens that a cache holds, whose images are encoded.

    Raises:
        FoveateError: A mask is not of that shape.
    """

    embeds: Tensor
    placeholders: Tensor
    attention_mask: Tensor | None = None
    answer_mask: Tensor | None = None
    past: int = 0

    def __post_init__(self) -> None:
        for name in ("attention_mask", "answer_mask"):
            mask = getattr(self, name)
            if mask is not None and mask.shape != self.placeholders.shape:
                raise FoveateError(
                    f"this model reads prompts before images, and needs {name} with one value for every token, not of "
                    f"shape {tuple(mask.shape)} for ids of shape {tuple(self.placeholders.shape)}."
                )

    @property
    def text(self) -> Tensor:
        """`(B, L)` bool, tokens of the text, with those of answers."""
        text = ~self.placeholders
        return text if self.attention_mask is None else text & self.attention_mask.bool()

    @property
    def instructions(self) -> Tensor:
        """`(B, L)` bool, tokens of the text that are no answer, of all turns."""
        return self.text if self.answer_mask is None else self.text & ~self.answer_mask.bool()

    @property
    def question(self) -> Tensor:
        """`(B, L)` bool, tokens of the text before the first answer.

        Later ones may not change the image tokens that the first answer is predicted from.
        """
        if self.answer_mask is None:
            return self.text
        return self.text & (self.answer_mask.bool().cumsum(-1) == 0)

    def gathered(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Columns `(n, m)` of the tokens of a mask `(n, L)`, together at the start of each row, and where these end.

        Padding follows the text, so that positions count from 0. The second result is bool, False for padding.
        """
        lengths = mask.sum(-1)
        order = mask.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, : int(lengths.max())]
        return order, torch.arange(order.shape[1], device=order.device) < lengths[:, None]

    def rows_of_images(self, counts: Sequence[int]) -> Tensor:
        """`(n,)`, the row of every image, for images of so many tokens in the order of their placeholders.

        Raises:
            FoveateError: The placeholders of a row are not those of whole images.
        """
        ends = torch.tensor(counts).cumsum(0)
        row_counts = self.placeholders[:, self.past :].sum(-1).cpu()
        row_ends = row_counts.cumsum(0)
        whole = torch.isin(row_ends[row_ends > 0], ends).all() and row_ends[-1:].equal(ends[-1:])
        if not whole:
            raise FoveateError(
                f"the prompts have {row_counts.tolist()} image placeholders and the images "
                f"{list(counts)} tokens: every prompt needs one placeholder for each token of its images."
            )
        return torch.searchsorted(row_ends, ends)


class ReadsPrompts:
    """Mixin for models without an output layer that may read prompts together with their images."""

    config: Any
    language_model: Any
    multi_modal_projector: Any
    training: bool
    get_input_embeddings: Callable[..., Any]
    get_image_features: Callable[..., Any]

    @property
    def reads_prompts(self) -> bool:
        """Whether tokens of images and text depend on each other, so that neither can be reused with another."""
        return self.multi_modal_projector.reads_text or self.multi_modal_projector.prefusion_layers > 0

    def image_arguments(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `get_image_features` in a call of the model."""
        raise NotImplementedError

    def tokens_of_images(self, call: Mapping[str, Any]) -> list[int]:
        """Number of tokens of every image in a call of the model, from sizes alone."""
        raise NotImplementedError

    def prompts(self, call: Mapping[str, Any], past: int = 0) -> Prompts:
        """The prompts of a call of the model, whose first `past` tokens are in its cache."""
        ids, embeds = call.get("input_ids"), call.get("inputs_embeds")
        if ids is not None and (embeds is None or ids.numel()):
            embeds, placeholders = self.get_input_embeddings()(ids), ids == self.config.image_token_id
        elif embeds is not None:
            placeholder = torch.tensor(self.config.image_token_id, device=embeds.device)
            placeholders = (embeds == self.get_input_embeddings()(placeholder)).all(-1)
        else:
            raise FoveateError("give input_ids or inputs_embeds.")
        return Prompts(embeds, placeholders, call.get("attention_mask"), call.get("answer_mask"), past)

    def answers_of(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> dict[str, Any]:
        """`answer_mask` for a call of the model with its output layer, where it has labels and the prompt is read."""
        if not self.reads_prompts or kwargs.get("answer_mask") is not None:
            return {}
        labels = bind(function, args, kwargs).get("labels")
        return {} if labels is None else {"answer_mask": labels != -100}

    def encode_with_prompts(self, call: Mapping[str, Any], past: int = 0) -> Any:
        """Encode the images of a call, with their questions if these are read: the output of `get_image_features`.

        Args:
            call: Arguments of the model by name; `pixel_values` is among them.
            past: Number of first tokens of the ids that are in the cache.

        Raises:
            FoveateError: `question_states` or `get_image_features` raises it.
        """
        if not self.multi_modal_projector.reads_text:
            return self.get_image_features(**self.image_arguments(call), return_dict=True)
        text = question_states(self.language_model, self.prompts(call, past), self.tokens_of_images(call))
        return self.get_image_features(**self.image_arguments(call), text=text, return_dict=True)

    def with_encoded_images(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> dict[str, Any]:
        """The arguments of a forward pass of a model that `reads_prompts`, with its images encoded.

        Args:
            function: The bound `forward` that is going to be called.
            args: Its positional arguments.
            kwargs: Its other arguments, and perhaps `answer_mask`.

        Raises:
            FoveateError: `check_readable` or `encode_with_prompts` raises it.
        """
        call = bind(function, args, kwargs)
        if call.get("pixel_values") is not None:
            cache = compat.cache_in(call)
            check_readable(self.training, 0 if cache is None else int(cache.get_seq_length()), call)
            call = self.with_image_features(call, self.encode_with_prompts(call))
        return {name: value for name, value in call.items() if name != "answer_mask"}

    def with_image_features(self, call: Mapping[str, Any], features: Any) -> dict[str, Any]:
        """Arguments of a call with the output of `get_image_features` in the place of its images."""
        images = self.image_arguments(call)
        rest = {name: value for name, value in call.items() if name not in images}
        return rest | {"mm_encoder_outputs": {"image": features}}


class GeneratesFromPrompts:
    """Mixin for models with an output layer: before the first step, `generate` encodes images with the prompts."""

    model: Any
    generation_config: Any

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generate text, see `GenerationMixin.generate` of `transformers`.

        Raises:
            FoveateError: Image tokens depend on the prompts, and these are not complete.
        """
        generate: Any = super().generate  # ty: ignore[missing-attribute]
        if not self.model.reads_prompts:
            return generate(inputs, *args, **kwargs)
        call = kwargs | ({"input_ids": inputs} if inputs is not None else {})
        if kwargs.get("pixel_values") is not None:
            self._check_padding(call)
            cache = compat.cache_in(call)
            images = self.model.encode_with_prompts(call, 0 if cache is None else int(cache.get_seq_length()))
            read = self.model.image_arguments(call)
            kwargs = {name: value for name, value in kwargs.items() if name not in read}
            kwargs["mm_encoder_outputs"] = {"image": images}
        if self.model.multi_modal_projector.prefusion_layers:  # text that is written is no instruction
            prompt = call["inputs_embeds"] if call.get("input_ids") is None else call["input_ids"]
            kwargs["answer_mask"] = torch.zeros(prompt.shape[:2], dtype=torch.bool, device=prompt.device)
        return generate(inputs, *args, **kwargs)

    def _check_padding(self, call: Mapping[str, Any]) -> None:
        """Refuse ids with padding and without its mask, which `generate` would guess later."""
        ids, padding = call.get("input_ids"), self.generation_config.pad_token_id
        if call.get("attention_mask") is None and ids is not None and padding is not None and (ids == padding).any():
            raise FoveateError(
                "this model reads prompts before images, and the ids have padding: give their attention_mask too."
            )


@torch.no_grad()
def question_states(language_model: Any, prompts: Prompts, counts: Sequence[int]) -> Tensor:
    """Last hidden states of the questions: of the last token, in a pass of the text alone, without gradient.

    Args:
        language_model: The language model without its output layer.
        prompts: The prompts.
        counts: Number of tokens of every image.

    Returns:
        `(n, 1, d)`, one state for each image.

    Raises:
        FoveateError: A prompt with an image has no text before its answer, or `Prompts.rows_of_images` raises it.
    """
    rows = prompts.rows_of_images(counts).to(prompts.embeds.device)
    rows, image_places = rows.unique(return_inverse=True)
    question = prompts.question[rows]
    lengths = question.sum(-1)
    if not bool(lengths.all()):
        row = int(rows[lengths == 0][0])
        raise FoveateError(
            f"the connector of this model reads the question, and prompt {row} has no text before its answer."
        )
    places, mask = prompts.gathered(question)
    embeds = prompts.embeds[rows].take_along_dim(places.unsqueeze(-1), dim=1)
    output = language_model(inputs_embeds=embeds, attention_mask=mask.long(), use_cache=False, return_dict=True)
    states = output.last_hidden_state
    last = states.take_along_dim((lengths - 1)[:, None, None].to(states.device), dim=1)
    return last[image_places.to(states.device)]


def check_readable(training: bool, past: int, call: Mapping[str, Any]) -> None:
    """Check that a call with images says all that is needed to find its questions.

    Args:
        training: Whether the model is in training mode.
        past: Number of tokens in the cache.
        call: Arguments of the model without its output layer, by name.

    Raises:
        FoveateError: Answers are unknown in training; the cache holds a part of the prompts; or a row holds several
            samples.
    """
    if training and call.get("answer_mask") is None:
        raise FoveateError(
            "this model reads prompts before images, and in training must know which tokens are answers: call it with "
            "labels, or with an answer_mask that is True for tokens of answers."
        )
    if past:
        raise FoveateError(
            "this model reads prompts before images, and a part of these is in the cache: give the whole conversation "
            "to generate(), or without a cache."
        )
    positions, mask = call.get("position_ids"), call.get("attention_mask")
    restarts = False
    if positions is not None and positions.ndim == 2:
        smaller = positions[:, 1:] <= positions[:, :-1]
        if mask is not None and mask.ndim == 2:
            smaller = smaller & mask[:, 1:].bool() & mask[:, :-1].bool()
        restarts = bool(smaller.any())
    if restarts or any(call.get(name) is not None for name in ("cu_seq_lens_q", "seq_idx")):
        raise FoveateError(
            "this model reads prompts before images, and a row here holds several samples: give each a row of its own."
        )


def takes_tensors(original: Callable[..., Any], *names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a `forward` the arguments of `original`, and optional tensors with these names, which `generate` accepts."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    tensors = [inspect.Parameter(name, keyword, default=None, annotation="Tensor | None") for name in names]
    arguments = list(inspect.signature(original).parameters.values())
    keywords = [argument for argument in arguments if argument.kind is argument.VAR_KEYWORD]

    def decorate(forward: Callable[..., Any]) -> Any:
        wrapped: Any = functools.wraps(original, assigned=("__annotations__",))(forward)
        positional = [argument for argument in arguments if argument not in keywords]
        wrapped.__signature__ = inspect.Signature([*positional, *tensors, *keywords])
        return wrapped

    return decorate


def bind(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names, those of `**kwargs` among them."""
    signature = inspect.signature(function)
    values = dict(signature.bind(*args, **kwargs).arguments)
    rest = next((one.name for one in signature.parameters.values() if one.kind is one.VAR_KEYWORD), "")
    return values | values.pop(rest, {})

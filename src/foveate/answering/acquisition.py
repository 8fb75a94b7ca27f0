"""Conversations in which a model may ask for more of an image: the messages of both turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from foveate.answering.conversations import check_length, greedy, inputs_of_batch, placeholders, texts_of
from foveate.core.acquisition import (
    AcquisitionMethod,
    Prompts,
    ToolCall,
    ToolCallError,
    answer_in,
    calls_again,
)
from foveate.core.errors import FoveateError

Messages = list[dict[str, Any]]
#: What is said where the second turn holds another tool call.
AGAIN = "the model asked for more of the image after its second turn; one call is possible."


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation in which a model may ask for more of an image.

    Attributes:
        text: what the model wrote.
        image_sizes: ``(width, height)`` in pixels of the images in the prompt.
        prompt_tokens: tokens of the prompt, image tokens included.
        image_tokens: image tokens of the prompt.
        generated: tokens that the model wrote.
        call: the tool call that was followed, or handed over.
        problem: why a tool call was not followed, in one sentence.
    """

    text: str
    image_sizes: list[tuple[int, int]]
    prompt_tokens: int
    image_tokens: int
    generated: int
    call: dict[str, Any] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Acquired:
    """Answer of a conversation of one or two turns.

    Attributes:
        text: the answer.
        turns: the turns.
        full: image tokens of the original image.
    """

    text: str
    turns: tuple[Turn, ...]
    full: int

    @property
    def read(self) -> int:
        """Image tokens in the context at the end."""
        return self.turns[-1].image_tokens

    @property
    def problems(self) -> list[str]:
        """Why tool calls were not followed."""
        return [turn.problem for turn in self.turns if turn.problem]

    def as_json(self) -> dict[str, Any]:
        """Tokens and problems as plain JSON values, as rows of a batch have them."""
        problems = {"problems": self.problems} if self.problems else {}
        return {"turns": len(self.turns), "image_tokens": self.read, "image_tokens_full": self.full, **problems}


def reduced(method: AcquisitionMethod, image: Image.Image) -> Image.Image:
    """The image of the first turn, resized with Lanczos' filter, as the authors do."""
    return image.convert("RGB").resize(method.reduced_size(image.size), Image.Resampling.LANCZOS)


def region(image: Image.Image, call: ToolCall) -> Image.Image:
    """What the tool returns of the original image."""
    return image if call.box == (0, 0, *image.size) else image.crop(call.box)


def first_messages(
    method: AcquisitionMethod, prompts: Prompts, image: Image.Image, question: str, system: str | None = None
) -> Messages:
    """Messages of the first turn: the system prompt, the reduced image and the question.

    Args:
        method: The acquisition.
        prompts: Of the model.
        image: The original image.
        question: The user's question.
        system: System prompt of the user, which comes before that of the acquisition.
    """
    texts = [text for text in (system, prompts.system) if text]
    head = [{"role": "system", "content": [_text("\n\n".join(texts))]}] if texts else []
    content = [{"type": "image", "image": reduced(method, image)}, _text(prompts.asked(question))]
    return [*head, {"role": "user", "content": content}]


def second_messages(prompts: Prompts, first: Messages, written: str, image: Image.Image) -> Messages:
    """Messages of the second turn.

    Args:
        prompts: Of the model.
        first: Messages of the first turn.
        written: What the model wrote in it.
        image: What the tool returned.
    """
    before, after = prompts.around_second()
    parts = [_text(before), {"type": "image", "image": image}, _text(after)]
    content = [part for part in parts if part["type"] == "image" or part["text"]]
    return [*first, {"role": "assistant", "content": [_text(written)]}, {"role": "user", "content": content}]


@dataclass(frozen=True)
class Opened:
    """A user's conversation, ready for its next turn.

    Args:
        messages: For the model.
        image: The original image.
        is_second: Whether the user followed the tool call, so that no other turn is possible.
    """

    messages: Messages
    image: Image.Image
    is_second: bool


def open_conversation(method: AcquisitionMethod, prompts: Prompts, messages: Sequence[dict[str, Any]]) -> Opened:
    """Prepare a user's conversation for its first turn, or for its second where the user followed the call.

    Args:
        method: The acquisition.
        prompts: Of the model.
        messages: An optional system prompt and a question about one image; then, to follow a call by oneself, the
            model's text with the call, and a message with the image that was asked for.

    Raises:
        FoveateError: it is another conversation.
    """
    rest = [{**message, "content": _parts(message)} for message in messages]
    system = None
    if rest and rest[0]["role"] == "system":
        system = _only_text(rest.pop(0))
    roles = [message["role"] for message in rest]
    if roles not in (["user"], ["user", "assistant", "user"]):
        raise FoveateError(
            f"a conversation under {method.name} is one question about one image, or its second turn: the question, "
            "the model's tool call and the image that it asks for."
        )
    image = only_image([part.get("image") for part in rest[0]["content"] if part["type"] != "text"])
    question = "\n".join(part["text"] for part in rest[0]["content"] if part["type"] == "text")
    first = first_messages(method, prompts, image, question, system)
    if len(rest) == 1:
        return Opened(first, image, False)
    written = _only_text(rest[1])
    if method.read_call(written, image.size) is None:
        raise FoveateError(f"a second turn under {method.name} follows a tool call, and the model's text holds none.")
    second = only_image([part.get("image") for part in rest[2]["content"] if part["type"] != "text"])
    if any(part["text"].strip() for part in rest[2]["content"] if part["type"] == "text"):
        raise FoveateError(
            f"the message that follows a tool call under {method.name} holds the image alone; leave its text out: the "
            "model was trained with another."
        )
    return Opened(second_messages(prompts, first, written, second), image, True)


def _only_text(message: dict[str, Any]) -> str:
    if any(part["type"] != "text" for part in message["content"]):
        raise FoveateError(
            f"a model that asks for more of an image reads text alone in messages of the {message['role']}; give the "
            "image with the question."
        )
    return "\n".join(part["text"] for part in message["content"])


def only_image(images: Sequence[Any]) -> Image.Image:
    """The image of a question.

    Raises:
        FoveateError: there are several, none, or a clip.
    """
    if len(images) != 1 or not isinstance(images[0], Image.Image):
        raise FoveateError("a model that asks for more of an image is asked about one image: give one, and no clip.")
    return images[0]


def call_in(method: AcquisitionMethod, text: str, image: Image.Image) -> tuple[ToolCall | None, str | None]:
    """The tool call in what a model wrote in its first turn, or why it cannot be followed."""
    try:
        return method.read_call(text, image.size), None
    except ToolCallError as error:
        return None, str(error)


def image_tokens_of(model: Any, processor: Any, image: Image.Image) -> int:
    """Image tokens of an image alone, without a plan; the model does not run."""
    inputs = inputs_of_batch(model, processor, [[{"role": "user", "content": [{"type": "image", "image": image}]}]])
    return placeholders(model, inputs["input_ids"])


@torch.inference_mode()
def answer_batch_acquiring(
    model: Any,
    processor: Any,
    conversations: Sequence[Sequence[dict[str, Any]]],
    max_new_tokens: Sequence[int],
    method: AcquisitionMethod,
) -> list[Acquired]:
    """Answer questions about one image each with greedy decoding, in one or two turns.

    Args:
        model: A model that answers questions about images, with the plan that its calls follow, if any.
        processor: Its processor.
        conversations: See `open_conversation`.
        max_new_tokens: Maximum number of tokens of each turn, for every conversation.
        method: The acquisition.

    Raises:
        FoveateError: a conversation is not possible, or too long.
    """
    prompts = method.read_prompts()
    opened = [open_conversation(method, prompts, messages) for messages in conversations]
    turns: list[list[Turn]] = [[] for _ in opened]
    messages = [one.messages for one in opened]
    due = list(range(len(opened)))
    while due:
        inputs = inputs_of_batch(model, processor, [messages[place] for place in due])
        limits = [max_new_tokens[place] for place in due]
        length = inputs["input_ids"].shape[1]
        check_length(model, length, max(limits))
        output = model.generate(**inputs, generation_config=greedy(model, max(limits)))
        written = output if model.config.is_encoder_decoder else output[:, length:]
        texts = texts_of(model, processor, written, limits)
        following = []
        for row, place in enumerate(due):
            one, text = opened[place], texts[row]
            call, problem = None, None
            if turns[place] or one.is_second:
                problem = AGAIN if calls_again(text) else None
            else:
                call, problem = call_in(method, text, one.image)
            turns[place].append(
                Turn(
                    text,
                    [part["image"].size for part in _images(messages[place])],
                    int(inputs["attention_mask"][row].sum()),
                    placeholders(model, inputs["input_ids"][row]),
                    _generated(model, written[row], limits[row]),
                    None if call is None else call.as_json(),
                    problem,
                )
            )
            if call is not None:
                image = region(one.image.convert("RGB"), call)
                messages[place] = second_messages(prompts, messages[place], text, image)
                following.append(place)
        due = following
    return [
        Acquired(answer_in(own[-1].text), tuple(own), image_tokens_of(model, processor, one.image))
        for one, own in zip(opened, turns, strict=True)
    ]


def _generated(model: Any, row: torch.Tensor, limit: int) -> int:
    """Tokens of a row up to its limit or its end, the end included."""
    ends = model.generation_config.eos_token_id
    is_end = torch.isin(row, torch.tensor([] if ends is None else ends, dtype=row.dtype, device=row.device)).nonzero()
    return min(limit, int(is_end[0]) + 1 if len(is_end) else len(row))


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [_text(content)] if isinstance(content, str) else content


def _images(messages: Messages) -> list[dict[str, Any]]:
    return [part for message in messages for part in message["content"] if part["type"] == "image"]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}

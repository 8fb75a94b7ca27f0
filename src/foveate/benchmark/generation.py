"""Batched generation of answers, and turn-by-turn generation over one cache.

In a chat about an image the user's second question comes when the image has been read. Here, as in any chat that keeps
its cache, the image's tokens are those that the plan chose at the first question: the image is encoded once, later
questions are read after what the cache holds, and the model's own answers stand between them. A method that chose by
the first question has to answer the second one from what it kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foveate import compat
from foveate.answering.conversations import (
    check_length,
    greedy,
    image_tokens,
    inputs_of_batch,
    plain_messages,
    prompt_of,
    texts_of,
)
from foveate.benchmark.tasks import Item
from foveate.clips import clip_of_frames
from foveate.core.errors import FoveateError
from foveate.core.frames import FrameSampler
from foveate.core.plan import Step

#: Tokens that an answer may have beyond the right one; a longer one is wrong whatever follows.
SPARE = 8
#: Batches of items of similar size are cut from so many batches' items.
_GATHERED = 16
#: Stands for an answer while the text around it is worked out; no template changes letters.
_ANSWER = "ANSWERXANSWERX"


@dataclass(frozen=True)
class Prepared:
    """Items with their model inputs, which are the same for every plan.

    Args:
        items: One with several turns, or several with one.
        inputs: Of the first turn of each, padded on the left.
        limits: Tokens that each answer may have, by item and turn.
        following: (T,) ids that follow the answer of each turn but the last: its end and the next question.
    """

    items: tuple[Item, ...]
    inputs: Any
    limits: tuple[tuple[int, ...], ...]
    following: tuple[Tensor, ...]


@dataclass(frozen=True)
class Reply:
    """Text and token counts of an answer.

    Args:
        texts: Its answers, turn by turn.
        tokens_in: Tokens of the item's images or clip before compression.
        tokens_kept: Tokens of them that the language model worked on, the mean over its layers.
    """

    texts: tuple[str, ...]
    tokens_in: int
    tokens_kept: float


def batches(stream: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Group items of similar size into batches; an item with several turns is a batch of its own."""
    held: list[Item] = []
    for item in stream:
        held.append(item)
        if len(held) == _GATHERED * size:
            yield from _cut(held, size)
            held = []
    yield from _cut(held, size)


def _cut(held: list[Item], size: int) -> Iterator[list[Item]]:
    held = sorted(held, key=lambda item: (item.pixels, item.index))
    single = [item for item in held if len(item.turns) == 1]
    for start in range(0, len(single), size):
        yield single[start : start + size]
    for item in held:
        if len(item.turns) > 1:
            yield [item]


def prepare(model: Any, processor: Any, items: Sequence[Item], sampler: Step[FrameSampler] | None = None) -> Prepared:
    """Preprocess the images, clips and texts of one batch.

    Args:
        model: Gives device and precision.
        processor: Of the model.
        items: From `batches`.
        sampler: Chooses the frames of clips, by the first question; None: all.

    Raises:
        FoveateError: the model's chat template takes no second turn.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if sampler is not None:
        items = [_with_frames(item, sampler) for item in items]
    inputs = inputs_of_batch(model, processor, [messages_of(item) for item in items])
    limits = tuple(
        tuple(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + SPARE for _, answer in item.turns)
        for item in items
    )
    following = _following(processor, items[0]) if len(items) == 1 else ()
    return Prepared(tuple(items), inputs, limits, following)


def _with_frames(item: Item, sampler: Step[FrameSampler]) -> Item:
    """An item whose clip has the frames that a method chooses."""
    if item.clip is None:
        raise FoveateError(f"{sampler} chooses frames of clips, and the task {item.task} is about images.")
    frames, times = [*item.clip.frames], item.clip.timestamps
    clip = clip_of_frames(frames, times, sampler=sampler, question=item.turns[0][0])
    return replace(item, clip=clip)


def messages_of(item: Item, answers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Format an item as messages up to the question after `answers`; images and clips come before the first one."""
    messages: list[dict[str, Any]] = []
    if item.system:
        messages.append({"role": "system", "content": [{"type": "text", "text": item.system}]})
    for turn, (question, _) in enumerate(item.turns[: len(answers) + 1]):
        visuals: list[dict[str, Any]] = []
        if turn == 0:
            visuals += [{"type": "image", "image": image} for image in item.images]
            visuals += [] if item.clip is None else [{"type": "video", "video": item.clip}]
        messages.append({"role": "user", "content": [*visuals, {"type": "text", "text": question}]})
        if turn < len(answers):
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answers[turn]}]})
    return messages


def _following(processor: Any, item: Item) -> tuple[Tensor, ...]:
    tokenizer = getattr(processor, "tokenizer", processor)
    followings = []
    for turn in range(1, len(item.turns)):
        messages = plain_messages(messages_of(item, [_ANSWER] * turn), processor)
        try:
            prompt = prompt_of(processor, messages)
        except FoveateError as error:
            raise FoveateError(f"the chat template of this model does not support a second turn: {error}") from error
        before, answer, after = prompt.rpartition(_ANSWER)
        if not answer or before.count(_ANSWER) != turn - 1 or not after:
            raise FoveateError("the chat template of this model drops earlier answers, so chats cannot be continued.")
        ids = tokenizer(after, add_special_tokens=False)["input_ids"]
        followings.append(torch.tensor(ids, dtype=torch.int64))
    return tuple(followings)


@torch.inference_mode()
def ask(model: Any, processor: Any, prepared: Prepared) -> list[Reply]:
    """Answer a batch with greedy decoding and the plan that is attached to the model, if any.

    Raises:
        FoveateError: the plan cannot be followed on these images, or a conversation is too long for the model.
    """
    inputs, limits = prepared.inputs, [first for first, *_ in prepared.limits]
    length = inputs["input_ids"].shape[1]
    check_length(model, length, max(limits))
    output = model.generate(**inputs, generation_config=_settings(model, max(limits)))
    written = output.sequences if model.config.is_encoder_decoder else output.sequences[:, length:]
    texts = [[text] for text in texts_of(model, processor, written, limits)]
    counts = image_tokens(model, inputs["input_ids"])
    if prepared.following:
        texts[0] += _go_on(model, processor, prepared, output)
    return [Reply(tuple(answers), count.before, count.read) for answers, count in zip(texts, counts, strict=True)]


def _go_on(model: Any, processor: Any, prepared: Prepared, output: Any) -> list[str]:
    """Answer the later turns of one item over the cache of the first."""
    if model.config.is_encoder_decoder:
        raise FoveateError("encoder-decoder models encode every prompt anew, so chats cannot be continued.")
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    texts = []
    for turn, following in enumerate(prepared.following, 1):
        sequences = output.sequences
        if int(sequences[0, -1]) in ends:  # the end token is not in the cache yet, and the template adds it
            sequences = sequences[:, :-1]
        ids = torch.cat([sequences, following.to(sequences.device)[None]], dim=1)
        limit = prepared.limits[0][turn]
        check_length(model, ids.shape[1], limit)
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for name in ("token_type_ids", "mm_token_type_ids"):  # which positions are an image's: no new one is
            if name in prepared.inputs:
                kinds = prepared.inputs[name]
                more[name] = torch.cat([kinds, kinds.new_zeros(1, ids.shape[1] - kinds.shape[1])], dim=1)
        output = model.generate(
            **more, **compat.cache_argument(compat.cache_of(output)), generation_config=_settings(model, limit)
        )
        texts += texts_of(model, processor, output.sequences[:, ids.shape[1] :], [limit])
    return texts


def _settings(model: Any, limit: int) -> Any:
    """Generation config for greedy decoding that returns the cache."""
    settings = greedy(model, limit)
    settings.use_cache = settings.return_dict_in_generate = True
    return settings

"""Conversion of conversations to model inputs, and of generated tokens to text."""

from __future__ import annotations

import copy
import os
import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import TemplateError
from transformers.video_utils import VideoMetadata

from foveate.clips import Clip
from foveate.core.errors import FoveateError
from foveate.images import open_image, open_written
from foveate.models.llava_video import FoveateLlavaVideoProcessor
from foveate.processors import NoClips
from foveate.runtime import handle_of

#: Inputs in seconds, which keep their precision where pixels get that of the model: bfloat16 has 8 bits.
_SECONDS = ("second_per_grid_ts", "video_timestamps")


@torch.inference_mode()
def answer_batch(
    model: Any, processor: Any, conversations: Sequence[Sequence[dict[str, Any]]], max_new_tokens: int | Sequence[int]
) -> list[str]:
    """Answer the last turn of a batch of conversations with greedy decoding.

    A plan that is attached to the model is followed. An answer is what the conversation alone would get, up to the
    rounding of larger products.

    Args:
        model: a model of `transformers` that answers questions about images.
        processor: its processor.
        conversations: for each its messages, such as ``{"role": "user", "content": [{"type": "image", "image": PIL
            image}, {"type": "text", "text": "What is it?"}]}``; in place of ``image`` there may be ``path``, ``base64``
            or ``url`` with its data. A content that is text alone may be a string. Text that the model's tokenizer
            would take for a control token is passed on as text.
        max_new_tokens: maximum number of tokens of an answer, for all or for each conversation.

    Returns:
        The answers, stripped of white space.

    Raises:
        FoveateError: there is no conversation, one is longer than the model can read, or `max_new_tokens` is not
            possible.
    """
    limits = [max_new_tokens] * len(conversations) if isinstance(max_new_tokens, int) else [*max_new_tokens]
    if len(limits) != len(conversations):
        raise FoveateError(f"max_new_tokens has {len(limits)} numbers for {len(conversations)} conversations.")
    for limit in limits:
        check_new_tokens(limit)
    inputs = inputs_of_batch(model, processor, conversations)
    check_length(model, inputs["input_ids"].shape[1], max(limits))
    output = model.generate(**inputs, generation_config=greedy(model, max(limits)))
    written = output if model.config.is_encoder_decoder else output[:, inputs["input_ids"].shape[1] :]
    return texts_of(model, processor, written, limits)


def inputs_of(net: Any, processor: Any, visuals: Any, question: str, system: str | None = None) -> Any:
    """Prepare the model inputs of one question.

    Args:
        net: the model.
        processor: its processor.
        visuals: an image or a clip, or a list of them; they come before the question, in their order.
        question: the question.
        system: a system prompt.

    Raises:
        FoveateError: the model or its chat template has no place for one of them.
    """
    shown = visuals if isinstance(visuals, list) else [visuals]
    return inputs_of_batch(net, processor, [messages_of(shown, question, system)])


def messages_of(visuals: Sequence[Any], question: str, system: str | None = None) -> list[dict[str, Any]]:
    """Messages of one question about images or a clip, which come before it; and a system prompt, if there is one."""
    parts = [{"type": (kind := "video" if isinstance(one, Clip) else "image"), kind: one} for one in visuals]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return messages


def inputs_of_batch(model: Any, processor: Any, conversations: Sequence[Sequence[dict[str, Any]]]) -> Any:
    """Prepare left-padded model inputs for the next answer of each conversation; see `answer_batch`.

    Raises:
        FoveateError: a model or its processor cannot take these images and clips, or not in one call.
    """
    if not conversations:
        raise FoveateError("there is no conversation to answer.")
    plain = [_with_visuals(plain_messages(messages, processor)) for messages in conversations]
    images = [[part["image"] for part in _parts(messages) if part["type"] == "image"] for messages in plain]
    clips = [part["video"] for messages in plain for part in _parts(messages) if part["type"] == "video"]
    options: dict[str, Any] = {"images": images} if any(images) else {}
    if clips:
        check_clips(model, processor)
        # The frames are those of the clip: a processor that takes some of them again would not know of which times.
        if isinstance(processor, FoveateLlavaVideoProcessor):
            options["video_timestamps"] = [clip.timestamps for clip in clips]
        else:
            clips = [_at_least(clip, getattr(processor.video_processor, "temporal_patch_size", 1)) for clip in clips]
            # Copies: the processor of Qwen3-VL appends to the list of indices.
            metadata = [VideoMetadata(**copy.deepcopy(clip.metadata)) for clip in clips]
            options |= {"video_metadata": metadata, "do_sample_frames": False}
        options["videos"] = [clip.frames for clip in clips]
    if isinstance(processor, FoveateLlavaVideoProcessor):
        options["instructions"] = [_last_question(messages) for messages in plain]
    prompts = [prompt_of(processor, messages) for messages in plain]
    bos = getattr(tokenizer_of(processor), "bos_token", None)
    if bos and all(prompt.startswith(bos) for prompt in prompts):  # as in `apply_chat_template`: one is enough
        options["add_special_tokens"] = False
    options |= {"text": prompts, "return_tensors": "pt", "padding": True, "padding_side": "left"}
    try:
        inputs = processed(processor, **options)
    except FoveateError as error:
        shapes = sorted({clip.frames.shape[:3] for clip in clips})
        if error.__cause__ is None or len(shapes) < 2:  # a sentence of our own, or nothing that could be the reason
            raise
        listed = ", ".join(f"{frames} frames of {width} x {height}" for frames, height, width in shapes[:3])
        raise FoveateError(
            f"{str(error).rstrip('.')}; it may take clips together only where they have one length and size, not of "
            f"{listed}; ask about one at a time."
        ) from error
    if clips and any(images) and not bool((inputs["input_ids"] == model.config.video_token_id).any()):
        raise FoveateError(
            "this model reads frames of clips in the place of images (GLM-4V), and takes images or clips in one call; "
            "ask about one at a time."
        )
    seconds = {name: inputs[name].to(model.device) for name in _SECONDS if torch.is_tensor(inputs.get(name))}
    inputs = inputs.to(model.device, dtype=model.dtype)
    inputs.update(seconds)
    return inputs


def processed(processor: Any, **options: Any) -> Any:
    """Call a processor of `transformers` on what a user gives.

    Raises:
        FoveateError: it refuses that, as the processor of Qwen does an image 200 times as wide as high.
    """
    try:
        return processor(**options)
    except FoveateError:
        raise
    except ValueError as error:
        reason = next(iter(str(error).splitlines()), "it does not say why")[:300].rstrip(". ")
        raise FoveateError(f"the processor of this model refuses the images or the text: {reason}.") from error


def _at_least(clip: Clip, count: int) -> Clip:
    """A clip of `count` frames or more: the last one stands for those that the temporal patch of a model lacks.

    Processors do the same with a longer clip of odd length, but those of Qwen3-VL and GLM-4V refuse a single frame.
    """
    missing = count - len(clip.frames)
    if missing <= 0:
        return clip
    indices, times = clip.metadata["frames_indices"], clip.timestamps
    return Clip(
        np.concatenate([clip.frames, clip.frames[-1:].repeat(missing, axis=0)]),
        (*times, *times[-1:] * missing),
        {**clip.metadata, "frames_indices": [*indices, *indices[-1:] * missing]},
    )


def check_clips(model: Any, processor: Any) -> None:
    """Raise FoveateError if a model takes images only."""
    if isinstance(processor, FoveateLlavaVideoProcessor):
        return
    if not hasattr(processor, "video_processor") or getattr(model.config, "video_token_id", None) is None:
        kind = getattr(model.config, "model_type", type(model).__name__)
        raise FoveateError(
            f"models of type {kind!r} take no clips here: give frames as images, or use a model with video, such as "
            "Qwen2.5-VL or Qwen3-VL."
        )
    if isinstance(processor.video_processor, NoClips):
        processor.video_processor()  # says which package is missing


def _last_question(messages: Sequence[dict[str, Any]]) -> str:
    """Text of the last turn of the user, which a connector that reads the question is given; "" without such a turn."""
    last = next((message for message in reversed(messages) if message["role"] == "user"), {"content": []})
    return "\n".join(part["text"] for part in last["content"] if part["type"] == "text")


def plain_messages(messages: Sequence[dict[str, Any]], processor: Any) -> list[dict[str, Any]]:
    """Convert message contents to lists of parts, with special tokens in their text neutralised."""
    tokenizer = tokenizer_of(processor)
    plain = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = [
            {"type": "text", "text": as_plain_text(part["text"].strip(), tokenizer)} if part["type"] == "text" else part
            for part in parts
        ]
        plain.append({**message, "content": parts})
    return plain


def prompt_of(processor: Any, messages: Sequence[dict[str, Any]]) -> str:
    """Format messages as a prompt. Without a chat template: images and clips first, then the question.

    Raises:
        FoveateError: the chat template refuses these messages or leaves one of them out, or there is none and they are
            more than one question.
    """
    if getattr(processor, "chat_template", None):
        try:
            prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            reason = str(error).rstrip(".")
            raise FoveateError(f"the chat template of this model refuses these messages: {reason}.") from error
        _check_visuals(processor, messages, prompt)
        for message in messages:
            # Not those of the assistant: templates leave out what it thought before an answer.
            texts = [part["text"] for part in message["content"] if part["type"] == "text"]
            if message["role"] != "assistant" and not all(text.strip() in prompt for text in texts):
                raise FoveateError(
                    f"the chat template of this model leaves out messages of the {message['role']}, such as "
                    f"{reprlib.repr(''.join(texts))}; include their content in the question."
                )
        return prompt
    if [message["role"] for message in messages] != ["user"]:
        raise FoveateError("this model has no chat template, so it accepts one question and no conversation.")
    parts = _parts(messages)
    visuals = "".join(getattr(processor, f"{part['type']}_token", "") for part in parts if part["type"] != "text")
    return visuals + "\n".join(part["text"] for part in parts if part["type"] == "text")


def _check_visuals(processor: Any, messages: Sequence[dict[str, Any]], prompt: str) -> None:
    """Raise FoveateError if the last image or clip makes no difference to the prompt: the template leaves it out.

    A template that writes one placeholder into every prompt is right for one image or clip.
    """
    places = [
        (turn, number)
        for turn, message in enumerate(messages)
        for number, part in enumerate(message["content"])
        if part["type"] != "text"
    ]
    if not places:
        return
    turn, number = places[-1]
    message = messages[turn]
    kind, content = message["content"][number]["type"], message["content"]
    placeholder = getattr(processor, f"{kind}_token", None)
    if len(places) == 1 and placeholder and placeholder in prompt:
        return
    without = [*messages]
    without[turn] = {**message, "content": content[:number] + content[number + 1 :]}
    try:
        same = prompt == processor.apply_chat_template(without, add_generation_prompt=True, tokenize=False)
    except TemplateError:  # refuses what remains
        return
    if same:
        left_out = "clips" if kind == "video" else "images"
        raise FoveateError(f"the chat template of this model leaves out {left_out} of the {message['role']}.")


def as_plain_text(text: str, tokenizer: Any) -> str:
    """Break special tokens (placeholders, ends of turns) in `text` so that the tokenizer reads them as text.

    A space behind the first character of such a token breaks it: ``<image>`` becomes ``< image>``. Without it, a
    question could refer to an image that is not there, or end the user's turn.
    """
    special = set(tokenizer.all_special_tokens)
    special |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special = {token for token in special if len(token) > 1}
    while present := [token for token in special if token in text]:
        for token in present:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def check_new_tokens(max_new_tokens: Any) -> None:
    """Raise FoveateError if an answer cannot have so many tokens."""
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise FoveateError(f"max_new_tokens must be a positive integer, got {max_new_tokens!r}.")


def check_length(net: Any, length: int, max_new_tokens: int) -> None:
    """Raise FoveateError if a prompt of `length` tokens and its answer exceed the model's positions."""
    longest = getattr(net.config.get_text_config(), "max_position_embeddings", None)
    if longest and length + max_new_tokens > longest:
        raise FoveateError(
            f"image and question take {length} tokens; with max_new_tokens={max_new_tokens} that is more than the "
            f"{longest} positions of this model: ask a shorter question, or give a smaller image or fewer frames."
        )


def greedy(net: Any, max_new_tokens: int) -> Any:
    """Copy the model's generation config with sampling and beams turned off, for `generate` to return tokens alone."""
    settings = copy.deepcopy(net.generation_config)
    settings.do_sample = False
    settings.temperature = settings.top_p = settings.top_k = settings.min_p = settings.typical_p = None
    settings.num_beams, settings.num_return_sequences = 1, 1
    settings.return_dict_in_generate = False
    settings.max_length, settings.max_new_tokens = None, max_new_tokens
    return settings


def texts_of(model: Any, processor: Any, written: torch.Tensor, limits: Sequence[int]) -> list[str]:
    """Decode generated tokens (B, T): each row up to its end token or limit, stripped of white space."""
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    first = 1 if model.config.is_encoder_decoder else 0  # decoders of those may begin with what ends a text
    rows = []
    for row, limit in zip(written[:, first:].tolist(), limits, strict=True):
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        rows.append(row[: min(end, limit)])
    texts = tokenizer_of(processor).batch_decode(rows, skip_special_tokens=True)
    return [text.strip() for text in texts]


class ImageTokens(NamedTuple):
    """Token counts of the images and clips of one sequence.

    Args:
        before: their tokens before the plan.
        kept: those after the steps before the language model.
        read: those that the language model worked on, the mean over its layers.
        clips_before: tokens of clips among `before`.
        clips_kept: tokens of clips among `kept`.
    """

    before: int
    kept: int
    read: float
    clips_before: int = 0
    clips_kept: int = 0


def image_tokens(model: Any, ids: torch.Tensor) -> list[ImageTokens]:
    """Count tokens of images and clips of the last call in this thread, for every sequence of its batch.

    Args:
        model: the model, with a plan or without.
        ids: ``(B, L)`` of the prompts.

    Returns:
        Counts of each sequence. Without a plan, clips whose placeholders are those of images (GLM-4V) count as images.
    """
    handle, config = handle_of(model), model.config
    token, clip_token = image_token_of(config), getattr(config, "video_token_id", None)
    counts, clips = ([0] * len(ids) if one is None else (ids == one).sum(dim=1).tolist() for one in (token, clip_token))
    if handle is None or (token is not None and not any(counts) and not any(clips)):
        # A report is of the last call that had images.
        return [
            ImageTokens(count + clip, count + clip, count + clip, clip, clip)
            for count, clip in zip(counts, clips, strict=True)
        ]
    layers = config.get_text_config().num_hidden_layers
    totals = [ImageTokens(0, 0, 0)] * len(ids)
    for image in handle.report().images:
        before, kept, read, clips_before, clips_kept = totals[image.row]
        clip = image.modality == "video"
        totals[image.row] = ImageTokens(
            before + image.tokens_in,
            kept + image.tokens_kept,
            read + image.mean_tokens(layers),
            clips_before + clip * image.tokens_in,
            clips_kept + clip * image.tokens_kept,
        )
    return totals


def image_token_of(config: Any) -> int | None:
    """Return the image placeholder's token id, under either of its names in `transformers`."""
    token = getattr(config, "image_token_id", None)
    return getattr(config, "image_token_index", None) if token is None else token


def placeholders(model: Any, ids: torch.Tensor) -> int:
    """Count the placeholders of images and clips among prompt ids (B, L)."""
    tokens = [image_token_of(model.config), getattr(model.config, "video_token_id", None)]
    present = torch.tensor([token for token in tokens if token is not None], device=ids.device, dtype=ids.dtype)
    return int(torch.isin(ids, present).sum())


def tokenizer_of(processor: Any) -> Any:
    """Return the tokenizer of a processor, or the argument if it is a tokenizer."""
    return getattr(processor, "tokenizer", processor)


def _with_visuals(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Convert messages so that every part is text, a clip, or an opened image under the key "image"."""
    opened = []
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] not in ("text", "image") and not isinstance(part.get(part["type"]), Clip):
                raise FoveateError(f"this model does not accept {part['type']}; messages may contain text and images.")
            parts.append({"type": "image", "image": _image_of(part)} if part["type"] == "image" else part)
        opened.append({**message, "content": parts})
    return opened


def _image_of(part: dict[str, Any]) -> Any:
    sources = [part[name] for name in ("image", "path", "base64", "url") if part.get(name) is not None]
    if len(sources) != 1:
        raise FoveateError(
            f"a part of type 'image' holds {'several images' if sources else 'no image'}; write one 'image', 'path', "
            "'base64' or 'url' (with its data)."
        )
    if isinstance(sources[0], str):
        return open_written(sources[0])
    return open_image(sources[0]) if isinstance(sources[0], (bytes, os.PathLike)) else sources[0]


def _parts(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for message in messages for part in message["content"]]

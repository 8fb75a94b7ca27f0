"""lmms-eval model: `lmms-eval --model foveate --model_args pretrained=...,plan=...`.

lmms-eval finds `manifest` by the entry-point group `lmms_eval.models`. Its classes, which need lmms-eval, are in
`classes`; what they do with a model is here and needs nothing but foveate.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from foveate.answering.conversations import (
    as_plain_text,
    check_clips,
    check_length,
    greedy,
    image_tokens,
    inputs_of_batch,
    plain_messages,
    prompt_of,
    texts_of,
)
from foveate.clips import Clip, open_clip
from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL, is_full_model
from foveate.images import open_image
from foveate.loading import load, plan_asked
from foveate.runtime import compress, handle_of

logger = logging.getLogger(__name__)

#: Default number of new tokens, as in most models of lmms-eval.
MAX_NEW_TOKENS = 1024

#: Settings of tasks that are given to `generate` as they are when answers are sampled or searched for.
PASSED_ON = ("top_p", "top_k", "min_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size")

ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")

Conversation = list[dict[str, Any]]


def manifest() -> Any:
    """Entry point: a `ModelManifest` with one class for message tasks and one for the older, simple tasks."""
    from lmms_eval.models.registry_v2 import ModelManifest  # ty: ignore[import-not-found]

    classes = f"{__package__}.classes"
    return ModelManifest(
        model_id="foveate", simple_class_path=f"{classes}.SimpleModel", chat_class_path=f"{classes}.ChatModel"
    )


@dataclass(frozen=True)
class GenerationSettings:
    """Generation settings of a request.

    Args:
        max_new_tokens: Length at which an answer is cut off.
        until: Texts that end an answer; it is cut before the first of them.
        temperature: 0 is greedy.
        num_beams: Beams of a search, 1 is none.
        more: What else `generate` is given, by name, where answers are not greedy.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    num_beams: int = 1
    more: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> GenerationSettings:
        """Parse a task's `generation_kwargs`.

        Answers are sampled where `temperature` is above 0 and `do_sample` is not switched off, or where `do_sample` is
        on and no temperature is given. Settings for other models are ignored with a warning.

        Raises:
            FoveateError: a value that cannot be followed.
        """
        known = ("until", "max_new_tokens", "max_gen_toks", "do_sample", "temperature", "num_beams", *PASSED_ON)
        unknown = sorted(name for name in set(settings) - set(known) if settings[name] is not None)
        if unknown:
            logger.warning("settings of the task that foveate does not follow: %s", ", ".join(unknown))
        until = settings.get("until") or ()
        until = (until,) if isinstance(until, str) else until
        if not isinstance(until, list | tuple) or not all(isinstance(text, str) for text in until):
            raise FoveateError(f"until={until!r} of the task must be a text or a list of texts.")
        sampled = settings.get("do_sample")
        temperature = settings.get("temperature")
        temperature = float(bool(sampled)) if temperature is None else temperature
        length = settings.get("max_new_tokens") or settings.get("max_gen_toks") or MAX_NEW_TOKENS
        beams = settings.get("num_beams") or 1
        for name, value, least in (
            ("max_new_tokens", length, 1),
            ("num_beams", beams, 1),
            ("temperature", temperature, 0),
        ):
            if not isinstance(value, int | float) or value < least:
                raise FoveateError(f"{name}={value!r} of the task must be a number of at least {least}.")
        more = {name: settings[name] for name in PASSED_ON if settings.get(name) is not None}
        if sampled is False or temperature == 0:  # these only matter to a draw
            temperature, more = 0.0, {name: more[name] for name in more if name not in ("top_p", "top_k", "min_p")}
        return cls(int(length), tuple(filter(None, until)), float(temperature), int(beams), tuple(sorted(more.items())))

    def cut(self, text: str) -> str:
        """Cut an answer at the first stop text."""
        for end in self.until:
            text = text.partition(end)[0]
        return text.strip()


class EvaluatedModel:
    """Model under evaluation: answers conversations in batches with a plan attached.

    Args:
        pretrained: A folder, a Hub id, or "embedded".
        plan: A plan as text; "full model" attaches none, even if one is saved with the weights. By default the
            saved one, if any.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: Such as "cpu" or "cuda:0"; by default the first GPU, or the CPU.
        batch_size: Conversations answered at once.
        attn_implementation: Attention implementation of the model, such as "sdpa"; by default as loaded.
        max_frames: Frames that are read of a video, evenly spread.

    Attributes:
        model: the model, with the plan attached.
        processor: its processor.
        plan: the plan as text, "full model" where none is attached.
        token_counts: for every image so far, its visual tokens and how many of them the language model worked on, as
            the mean of its layers.

    Raises:
        FoveateError: the model or the plan cannot be loaded, or an argument is none of these.
    """

    def __init__(
        self,
        pretrained: str = "embedded",
        plan: str | None = None,
        *,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        attn_implementation: str | None = None,
        max_frames: int = 32,
    ) -> None:
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise FoveateError(
                f"batch size {batch_size!r} must be a positive integer; automatic batch sizes are not supported."
            )
        if attn_implementation is not None and attn_implementation not in ATTENTIONS:
            raise FoveateError(f"attention {attn_implementation!r} is none of {', '.join(ATTENTIONS)}.")
        if isinstance(max_frames, bool) or not isinstance(max_frames, int) or max_frames < 1:
            raise FoveateError(f"max_frames={max_frames!r} must be a positive integer.")
        name = None if pretrained == "embedded" else str(pretrained)
        wanted = plan_asked(plan)
        self.model, self.processor = load(name, dtype=dtype, device=device, plan=wanted)
        if attn_implementation is not None:
            self._attend(attn_implementation)
        handle = handle_of(self.model)
        self.plan = FULL_MODEL if handle is None else str(handle.plan)
        self.batch_size = int(batch_size)
        self.max_frames = max_frames
        self.token_counts: list[tuple[float, float]] = []
        self._tokenizer = getattr(self.processor, "tokenizer", self.processor)

    def _attend(self, implementation: str) -> None:
        """Set the model's attention implementation, before a plan installs its own."""
        handle = handle_of(self.model)
        if handle is not None:
            handle.restore()
        try:
            self.model.set_attn_implementation(implementation)
        except (ImportError, ValueError) as error:
            raise FoveateError(f"attention {implementation!r} cannot be used here: {error}") from error
        if handle is not None:
            compress(self.model, handle.plan, processor=self.processor)

    def attach(self, plan: str) -> None:
        """Replace the attached plan, and count tokens anew.

        Args:
            plan: A plan as text; "full model" attaches none.

        Raises:
            FoveateError: the model refuses the plan; then none is attached.
        """
        handle = handle_of(self.model)
        if handle is not None:
            handle.restore()
        self.plan, self.token_counts = FULL_MODEL, []
        if not is_full_model(plan):
            self.plan = str(compress(self.model, plan, processor=self.processor).plan)

    def answers(self, conversations: Sequence[Conversation], wanted: Sequence[GenerationSettings]) -> list[str]:
        """Answer the last turn of every conversation, in order.

        Args:
            conversations: Messages in the form of Hugging Face, with images as anything that `open_image` takes.
            wanted: How each is to be answered.
        """
        readable = [self._readable(conversation) for conversation in conversations]
        texts: list[str] = [""] * len(readable)
        for batch in self._batches(readable, wanted):
            settings = wanted[batch[0]]
            written = self._write([readable[index] for index in batch], settings)
            for index, text in zip(batch, written, strict=True):
                texts[index] = settings.cut(text)
        return texts

    @torch.inference_mode()
    def losses(self, conversations: Sequence[Conversation], continuations: Sequence[str]) -> list[tuple[float, bool]]:
        """Compute the loss of given answers as continuations of the conversations.

        The answer is written token by token, so a plan chooses tokens before any of it is written.

        Returns:
            For every conversation the mean of -log p over the tokens of its continuation, in nats, and whether greedy
            decoding would write them. Leading and trailing white space does not count: an answer begins its own turn.

        Raises:
            FoveateError: a continuation is empty, or exceeds the positions of the model.
        """
        readable = [self._readable(conversation) for conversation in conversations]
        targets = [as_plain_text(text.strip(), self._tokenizer) for text in continuations]
        if not all(targets):
            raise FoveateError("a continuation is empty.")
        results: list[tuple[float, bool]] = [(0.0, False)] * len(readable)
        for batch in self._batches(readable, [GenerationSettings()] * len(readable)):
            prompts = [prompt_of(self.processor, plain_messages(readable[index], self.processor)) for index in batch]
            answers = [self._continued(prompt, targets[index]) for prompt, index in zip(prompts, batch, strict=True)]
            inputs = inputs_of_batch(self.model, self.processor, [readable[index] for index in batch])
            longest = max(map(len, answers))
            check_length(self.model, inputs["input_ids"].shape[1], longest)
            output = self.model.generate(
                **inputs,
                generation_config=greedy(self.model, longest),
                logits_processor=LogitsProcessorList([_ForcedTokens(answers)]),
                output_logits=True,
                return_dict_in_generate=True,
            )
            self._count([readable[index] for index in batch], inputs["input_ids"])
            chances = torch.stack(output.logits, dim=1).float().log_softmax(-1)
            for row, (index, ids) in enumerate(zip(batch, answers, strict=True)):
                target_chances = chances[row, : len(ids)]
                labels = torch.tensor(ids, device=target_chances.device)
                loss = -target_chances.gather(-1, labels[:, None]).mean()
                results[index] = (float(loss), bool((target_chances.argmax(-1) == labels).all()))
        return results

    def _continued(self, prompt: str, answer: str) -> list[int]:
        """Token ids of an answer as the continuation of a prompt."""
        begun, continued = (self._tokenizer(text)["input_ids"] for text in (prompt, prompt + answer))
        if continued[: len(begun)] != begun:  # the boundary is inside a token; the answer is encoded alone
            return self._tokenizer(answer, add_special_tokens=False)["input_ids"]
        return continued[len(begun) :]

    def tokens_of(self, text: str) -> int:
        """Count the tokens of a text with the model's tokenizer."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def close(self) -> None:
        """Remove the plan and release the model."""
        handle = handle_of(self.model)
        if handle is not None:
            handle.restore()
        del self.model

    # Batches

    def _batches(self, conversations: Sequence[Conversation], wanted: Sequence[GenerationSettings]) -> list[list[int]]:
        """Group the indices of conversations with equal settings and media and similar size."""
        groups: dict[Any, list[int]] = {}
        for index, (conversation, settings) in enumerate(zip(conversations, wanted, strict=True)):
            kinds = frozenset(part["type"] for part in _parts(conversation))
            groups.setdefault((settings, kinds), []).append(index)
        batches = []
        for group in groups.values():
            group.sort(key=lambda index: _pixels(conversations[index]))
            batches += [group[start : start + self.batch_size] for start in range(0, len(group), self.batch_size)]
        return batches

    def _count(self, conversations: Sequence[Conversation], ids: torch.Tensor) -> None:
        """Add the token counts of the last call; without a plan those of a conversation's images are their mean."""
        handle = handle_of(self.model)
        if handle is not None:
            layers = self.model.config.get_text_config().num_hidden_layers
            self.token_counts += [(image.tokens_in, image.mean_tokens(layers)) for image in handle.report().images]
            return
        for conversation, tokens in zip(conversations, image_tokens(self.model, ids), strict=True):
            kinds = [part["type"] for part in _parts(conversation)]
            if tokens.before and "video" not in kinds:  # frames and images may share one placeholder
                images = kinds.count("image")
                self.token_counts += [(tokens.before / images, tokens.before / images)] * images

    # Conversations

    def _readable(self, conversation: Conversation) -> Conversation:
        """Open the images and decode the videos of messages."""
        return [
            {**message, "content": [self._read(part) for part in _content(message["content"])]}
            for message in conversation
        ]

    def _read(self, part: dict[str, Any]) -> dict[str, Any]:
        kind = part.get("type")
        if kind == "text":
            return part
        if kind == "image":
            return {"type": "image", "image": open_image(part["image"])}
        if kind == "video":
            check_clips(self.model, self.processor)
            return {"type": "video", "video": _clip(part["video"], self.max_frames)}
        raise FoveateError(f"this model does not accept {kind}; messages may contain text, images and clips.")

    # Answers

    @torch.inference_mode()
    def _write(self, conversations: Sequence[Conversation], settings: GenerationSettings) -> list[str]:
        """Generate the answers of one batch, like `foveate.answering.answer_batch` but with sampling and beams."""
        inputs = inputs_of_batch(self.model, self.processor, conversations)
        length = inputs["input_ids"].shape[1]
        limit = self._limit(length, settings.max_new_tokens)
        config = greedy(self.model, limit)
        config.num_beams = settings.num_beams
        if settings.temperature > 0:
            config.do_sample, config.temperature = True, settings.temperature
        for name, value in settings.more:
            setattr(config, name, value)
        output = self.model.generate(**inputs, generation_config=config)
        self._count(conversations, inputs["input_ids"])
        written = output if self.model.config.is_encoder_decoder else output[:, length:]
        return texts_of(self.model, self.processor, written, [limit] * len(conversations))

    def _limit(self, length: int, wanted: int) -> int:
        """New tokens that fit the model's positions; tasks often ask for thousands."""
        check_length(self.model, length, 1)
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or length + wanted
        if length + wanted > positions:
            logger.warning(
                "the task allows %d new tokens; this model has positions for %d.", wanted, positions - length
            )
        return min(wanted, positions - length)


class _ForcedTokens(LogitsProcessor):
    """Logits processor that forces given tokens; rows without remaining tokens are free.

    Args:
        answers: Token ids of every row.
    """

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self.answers = answers
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        dictated = scores.clone()
        for row, ids in enumerate(self.answers):
            if self.step < len(ids):
                dictated[row] = -torch.inf
                dictated[row, ids[self.step]] = 0.0
        self.step += 1
        return dictated


def _content(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _parts(conversation: Conversation) -> list[dict[str, Any]]:
    return [part for message in conversation for part in message["content"]]


def _pixels(conversation: Conversation) -> int:
    return sum(part["image"].width * part["image"].height for part in _parts(conversation) if part["type"] == "image")


def _clip(video: Any, frames: int) -> Clip:
    """Decode `frames` frames of a video file, evenly spread."""
    if not isinstance(video, str | PathLike) or not Path(video).is_file():
        raise FoveateError(f"{video!r} is not a video file; clips are read from files.")
    return open_clip(video, max_frames=frames, fps=None)

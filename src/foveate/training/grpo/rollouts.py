"""Rollouts of one or two turns, as token ids: sampled from a model, or written for supervised training.

A completion is the model's first turn, the tool's answer with its image tokens, and the second turn. The turn map says
which tokens the model wrote; those of the tool take no part in any loss.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from foveate.answering.acquisition import Messages, first_messages, region, second_messages
from foveate.answering.conversations import (
    greedy,
    image_token_of,
    inputs_of_batch,
    plain_messages,
    prompt_of,
    tokenizer_of,
)
from foveate.core.acquisition import AcquisitionMethod, Prompts, ToolCall, ToolCallError
from foveate.core.errors import FoveateError
from foveate.training.cpu_attention import prefer_plain_when_short
from foveate.training.precision import bfloat16_pays

#: Entries of a processor's output that belong to tokens, and not to images.
_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Question:
    """A question whose answer can be checked.

    Args:
        image: The original image.
        text: The question.
        answer: The right answer.
        about: What rewards and reports want to know, such as whether the answer is in small print.
    """

    image: Image.Image
    text: str
    answer: str
    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class Rollout:
    """One conversation about a question.

    Attributes:
        question: The question.
        images: Images of the conversation, in order.
        messages: Messages before the last turn.
        prompt: Token ids of the first prompt, image tokens included.
        completion: Token ids after it.
        turns: Turn of every token of the completion that the model wrote, 1 or 2; 0 for the tool's.
        texts: What the model wrote, one text a turn.
        call: The tool call that was followed.
        problem: Why a tool call was not followed.
        image_tokens: Image tokens in the context at the end.
    """

    question: Question
    images: list[Image.Image]
    messages: Messages
    prompt: list[int]
    completion: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    call: ToolCall | None = None
    problem: str | None = None
    image_tokens: int = 0

    def wrote(self, tokens: Sequence[int], text: str) -> None:
        """Append a turn of the model."""
        self.texts.append(text)
        self.completion += tokens
        self.turns += [len(self.texts)] * len(tokens)


class Conversation:
    """Token ids of conversations for one model and one acquisition, or of single turns where there is none.

    Args:
        model: A model that answers questions about images.
        processor: Its processor.
        method: The acquisition; None: one turn with the original image.
        prompts: Its prompts.
        limits: Largest numbers of tokens of the first and the second turn.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        method: AcquisitionMethod | None,
        prompts: Prompts | None,
        limits: tuple[int, int],
    ) -> None:
        self.model, self.processor, self.method, self.prompts, self.limits = model, processor, method, prompts, limits
        self.tokenizer = tokenizer_of(processor)
        ends = model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        image_token = image_token_of(model.config)
        if image_token is None:
            raise FoveateError("rollouts need a model whose prompts have a placeholder for every image token.")
        self.image_token: int = image_token
        self._tails: dict[tuple[int, int], list[int]] = {}

    def first(self, question: Question, full: bool = False) -> Messages:
        """Messages of the first turn; `full` shows the original image in place of the reduced one."""
        if self.method is None or self.prompts is None:
            content = [{"type": "image", "image": question.image}, {"type": "text", "text": question.text}]
            return [{"role": "user", "content": content}]
        messages = first_messages(self.method, self.prompts, question.image, question.text)
        if full:
            messages[-1]["content"][0]["image"] = question.image.convert("RGB")
        return messages

    def begin(self, questions: Sequence[Question], full: bool = False) -> tuple[list[Rollout], Any]:
        """Rollouts before their first turn, and left-padded inputs of the model."""
        messages = [self.first(question, full) for question in questions]
        inputs = inputs_of_batch(self.model, self.processor, messages)
        rollouts = []
        for question, asked, ids, mask in zip(
            questions, messages, inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True
        ):
            prompt = [token for token, used in zip(ids, mask, strict=True) if used]
            rollout = Rollout(question, _images(asked), asked, prompt)
            rollout.image_tokens = prompt.count(self.image_token)
            rollouts.append(rollout)
        return rollouts, inputs

    def follow(self, rollout: Rollout) -> bool:
        """Follow the tool call of the first turn, so that a second one is due; False for an answer or a bad call."""
        if self.method is None or self.prompts is None:
            return False
        try:
            call = self.method.read_call(rollout.texts[0], rollout.question.image.size)
        except ToolCallError as error:
            rollout.problem = str(error)
            return False
        if call is None:
            return False
        image = region(rollout.question.image.convert("RGB"), call)
        tail = self._tail(rollout.messages, image)
        if rollout.completion[-1] == tail[0]:  # the model ended its turn by itself
            tail = tail[1:]
        rollout.call = call
        rollout.messages = second_messages(self.prompts, rollout.messages, rollout.texts[0], image)
        rollout.images = [*rollout.images, image]
        rollout.completion += tail
        rollout.turns += [0] * len(tail)
        rollout.image_tokens += tail.count(self.image_token)
        return True

    def _tail(self, first: Messages, image: Image.Image) -> list[int]:
        """Token ids between the first and the second turn, the end of the first included."""
        if image.size not in self._tails:
            assert self.prompts is not None
            marker = "x"
            before = prompt_of(self.processor, plain_messages(first, self.processor)) + marker
            messages = second_messages(self.prompts, first, marker, image)
            text = prompt_of(self.processor, plain_messages(messages, self.processor))
            if not text.startswith(before):
                raise FoveateError(
                    "the chat template of this model rewrites earlier turns when another follows, so that a second "
                    "turn cannot be trained."
                )
            options = {"add_special_tokens": False} if getattr(self.tokenizer, "bos_token", None) else {}
            ids = self.processor(text=[text[len(before) :]], images=[[image]], **options)["input_ids"][0]
            self._tails[image.size] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return self._tails[image.size]

    def scripted(self, question: Question, texts: Sequence[str], full: bool = False) -> Rollout:
        """The rollout in which the model wrote these texts.

        Raises:
            FoveateError: there is a second text, and the first holds no valid call; or a text has more tokens than
                rollouts may have.
        """
        (rollout,), _ = self.begin([question], full)
        end = min(self.ends)
        for number, text in enumerate(texts):
            if number and not self.follow(rollout):
                raise FoveateError(f"there is a second turn, and the first is no valid call: {texts[0]!r}.")
            tokens = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], end]
            if len(tokens) > self.limits[number]:
                option = ("--first-tokens", "--second-tokens")[number]
                raise FoveateError(
                    f"{text!r} has {len(tokens)} tokens, which rollouts of at most {self.limits[number]} cannot write: "
                    f"raise {option}."
                )
            rollout.wrote(tokens, text)
        return rollout

    @torch.no_grad()
    def sample(
        self,
        questions: Sequence[Question],
        group: int = 1,
        *,
        temperature: float = 1.0,
        prefix: str = "",
        not_first: str = "",
        full: bool = False,
    ) -> list[Rollout]:
        """Sample rollouts with the global random state of torch, `group` for every question, neighbours in the result.

        Args:
            questions: The questions.
            group: Rollouts of a question.
            temperature: 0 is greedy decoding.
            prefix: Text with which all first turns begin.
            not_first: Text whose first token does not follow it.
            full: Show the original image in the first turn.

        Raises:
            FoveateError: several rollouts without chance, which would be the same.
        """
        if temperature == 0 and group > 1:
            raise FoveateError("rollouts of a group differ by chance: sample them with a temperature above 0.")
        begun, inputs = self.begin(questions, full)
        # Images are encoded once for a group.
        rollouts = [
            Rollout(one.question, one.images, one.messages, one.prompt, image_tokens=one.image_tokens)
            for one in begun
            for _ in range(group)
        ]
        start = self.tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else []
        if start:
            tail = torch.tensor([start] * len(questions), device=inputs["input_ids"].device)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], dim=1)
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(tail)], dim=1)
            for name in set(inputs) & {"token_type_ids", "mm_token_type_ids"}:
                inputs[name] = torch.cat([inputs[name], torch.zeros_like(tail)], dim=1)
        if self.limits[0] > len(start):
            written = self._generate(inputs, self.limits[0] - len(start), temperature, group, not_first)
        else:
            written = [[] for _ in rollouts]
        for rollout, tokens in zip(rollouts, written, strict=True):
            rollout.wrote([*start, *tokens], self._text([*start, *tokens]))
        due = [rollout for rollout in rollouts if self.follow(rollout)]
        if due:
            inputs = self.inputs([[*rollout.prompt, *rollout.completion] for rollout in due], due)
            written = self._generate(inputs, self.limits[1], temperature, 1)
            for rollout, tokens in zip(due, written, strict=True):
                rollout.wrote(tokens, self._text(tokens))
        return rollouts

    def inputs(self, rows: Sequence[Sequence[int]], rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        """Left-padded model inputs of token ids and the images of their rollouts."""
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return self.with_images(ids.to(self.model.device), mask.to(self.model.device), rollouts)

    def with_images(self, ids: Tensor, mask: Tensor, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        """Model inputs of token ids (B, L) with their mask and the images of their rollouts."""
        texts = [prompt_of(self.processor, plain_messages(rollout.messages, self.processor)) for rollout in rollouts]
        out = self.processor(
            text=texts, images=[rollout.images for rollout in rollouts], return_tensors="pt", padding=True
        )
        inputs = {"input_ids": ids, "attention_mask": mask}
        for name, value in out.items():
            if name in ("token_type_ids", "mm_token_type_ids"):
                inputs[name] = ids.eq(self.image_token).to(value.dtype)
            elif name not in _PER_TOKEN:
                floating = torch.is_floating_point(value)
                inputs[name] = value.to(ids.device, self.model.dtype if floating else value.dtype)
        return inputs

    def _generate(
        self, inputs: Any, limit: int, temperature: float, group: int, not_first: str = ""
    ) -> list[list[int]]:
        config = greedy(self.model, limit)
        config.num_return_sequences = group
        if temperature > 0:
            config.do_sample, config.temperature, config.top_p, config.top_k = True, temperature, 1.0, 0
        config.suppress_tokens = [self.image_token]
        if not_first:
            config.begin_suppress_tokens = self.tokenizer(not_first, add_special_tokens=False)["input_ids"][:1]
        length = inputs["input_ids"].shape[1]
        output = self.model.generate(**inputs, generation_config=config)[:, length:]
        rows = []
        for row in output.tolist():
            end = next((place for place, token in enumerate(row) if token in self.ends), len(row) - 1)
            rows.append(row[: end + 1])
        return rows

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode([token for token in tokens if token not in self.ends], skip_special_tokens=True)


def log_probabilities(
    model: Any, inputs: dict[str, Tensor], keep: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies (B, keep) of the last `keep` tokens of each row."""
    logits = model(**inputs, logits_to_keep=keep + 1, use_cache=False).logits[:, -keep - 1 : -1].float()
    logits = (logits / temperature).log_softmax(-1)
    chosen = logits.gather(-1, inputs["input_ids"][:, -keep:, None])[..., 0]
    with torch.no_grad():
        entropy = -(logits.exp() * logits).sum(-1)
    return chosen, entropy


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows (B, T) of numbers, padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def supervised_loss(conversation: Conversation, rollouts: Sequence[Rollout]) -> Tensor:
    """Mean negative log-likelihood of what the model wrote in rollouts."""
    keep = max(len(rollout.completion) for rollout in rollouts)
    turns = padded([rollout.turns for rollout in rollouts], 0)
    width = max(len(rollout.prompt) for rollout in rollouts)
    pad = conversation.tokenizer.pad_token_id
    prompts = torch.tensor([[pad] * (width - len(r.prompt)) + r.prompt for r in rollouts])
    mask = torch.tensor([[0] * (width - len(r.prompt)) + [1] * len(r.prompt) for r in rollouts])
    completions = padded([rollout.completion for rollout in rollouts], pad)
    after = padded([[1] * len(rollout.completion) for rollout in rollouts], 0)
    device = conversation.model.device
    ids, mask = torch.cat([prompts, completions], 1).to(device), torch.cat([mask, after], 1).to(device)
    inputs = conversation.with_images(ids, mask, rollouts)
    with autocast(device):
        chosen, _ = log_probabilities(conversation.model, inputs, keep)
    written = (turns > 0).to(device)
    return -(chosen * written).sum() / written.sum()


def prepare(model: Any, freeze_vision: bool) -> None:
    """Let a model's parameters be trained, those of its vision encoder unless frozen, with fast attention."""
    model.requires_grad_(True)
    if freeze_vision:
        model.get_encoder(modality="image").requires_grad_(False)
    if model.device.type == "cpu":
        prefer_plain_when_short(model)


def autocast(device: torch.device) -> Any:
    """Bfloat16 where the device multiplies it natively."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device.type))


def chance(seed: int, number: int) -> random.Random:
    """Random numbers that follow from a seed and the number of a question alone."""
    return random.Random(f"{seed} {number}")


def _images(messages: Messages) -> list[Image.Image]:
    return [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Neighbours, at most `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]

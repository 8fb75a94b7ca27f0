"""Model classes for lmms-eval; see `lmms`. Only lmms-eval imports this module."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult  # ty: ignore[import-not-found]
from lmms_eval.api.model import lmms  # ty: ignore[import-not-found]
from lmms_eval.models.model_utils.gen_metrics import log_metrics  # ty: ignore[import-not-found]
from lmms_eval.protocol import ChatMessages  # ty: ignore[import-not-found]
from tqdm import tqdm

from foveate.core.errors import FoveateError
from foveate.integrations.lmms_eval.model import Conversation, EvaluatedModel, GenerationSettings

#: Suffixes of image files; lmms-eval passes clips as paths too.
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


class ChatModel(lmms):
    """foveate model for message tasks (`doc_to_messages`), with images, texts and roles in the task's order.

    Args:
        pretrained: See `EvaluatedModel`, as for all that is not listed.
        system_prompt: Text of a system turn before every conversation, or a file that holds it.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "embedded",
        plan: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        attn_implementation: str | None = None,
        system_prompt: str | None = None,
        max_frames: int = 32,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise FoveateError(
                f"--model_args has no {', '.join(sorted(unknown))}; possible are pretrained, plan, dtype, device, "
                "attn_implementation, system_prompt and max_frames."
            )
        if device is None and "LOCAL_RANK" in os.environ:  # one process per GPU
            device = _device_of_rank(int(os.environ["LOCAL_RANK"]))
        self.evaluated = EvaluatedModel(
            _unquoted(pretrained),
            None if plan is None else _unquoted(plan),
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            attn_implementation=attn_implementation,
            max_frames=max_frames,
        )
        self.system_prompt = None if system_prompt is None else self._resolve_system_prompt(_unquoted(system_prompt))

    @property
    def batch_size(self) -> int:
        """Number of conversations answered at once."""
        return self.evaluated.batch_size

    @property
    def device(self) -> Any:
        """Device of the model."""
        return self.evaluated.model.device

    @property
    def chat_template(self) -> str:
        """Raise: conversations always use the model's own chat template."""
        raise FoveateError("remove --apply_chat_template; the model's own template is always applied.")

    # What lmms-eval asks for

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer every request."""
        return self._answers([(request, None) for request in requests])

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answer every round of every request; the task builds a round's messages from the answers before.

        Rounds are asked one after the other, all requests that have not ended together.
        """
        rounds: list[list[str]] = [[] for _ in requests]
        states: list[Any] = [None] * len(requests)
        open_requests: list[tuple[int, Any]] = [(place, None) for place in range(len(requests))]
        while open_requests:
            written = self._answers([(requests[place], messages) for place, messages in open_requests])
            for (place, _), text in zip(open_requests, written, strict=True):
                rounds[place].append(text)
            following = []
            for place, _ in open_requests:
                messages, states[place] = self._next_round(requests[place], rounds[place], states[place])
                if messages is not None:
                    following.append((place, messages))
            open_requests = following
        return rounds

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Return for every request the mean loss of its continuation, and whether greedy decoding would generate it.

        Losses and not log-likelihoods: lmms-eval takes the smallest for the most likely choice. They come wrapped,
        because its evaluator (0.7.3) turns a bare pair of numbers into text.
        """
        results: list[GenerationResult] = []
        for part in self._portions(requests):
            conversations, continuations = [], []
            for request in part:
                if len(request.args) != 6:
                    raise FoveateError(
                        "acc_mutual_info needs the loss of answers without a question, which foveate does not compute."
                    )
                context, target, doc_to_visual, doc_id, task, split = request.args
                doc = self.task_dict[task][split][doc_id]
                conversations.append(self._conversation(_turn(doc_to_visual(doc), context)))
                continuations.append(str(target(doc)) if callable(target) else target)
            pairs = self.evaluated.losses(conversations, continuations)
            results += [GenerationResult(text=pair) for pair in pairs]
        return results

    def clean(self) -> None:
        """Release the model, since a task may load a model of its own after the requests."""
        self.evaluated.close()
        super().clean()

    # Requests

    def _messages(self, request: Any) -> list[dict[str, Any]]:
        """Return the messages of a request's first turn."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        return doc_to_messages(self.task_dict[task][split][doc_id])

    def _wanted(self, request: Any) -> GenerationSettings:
        return GenerationSettings.of(request.args[2])

    def _next_round(self, request: Any, answers: list[str], known: Any) -> tuple[list[dict[str, Any]] | None, Any]:
        """Return the messages of the next round, or None at the end, and the task's state for the one after."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        payload = doc_to_messages(
            self.task_dict[task][split][doc_id],
            round_idx=len(answers),
            previous_output=list(answers),
            previous_round_info=known,
        )
        if not isinstance(payload, tuple) or len(payload) != 4 or payload[1]:
            return None, None
        return payload[0], payload[3]

    def _conversation(self, messages: list[dict[str, Any]]) -> Conversation:
        """Convert lmms-eval messages to the Hugging Face format."""
        messages = [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if isinstance(message["content"], str)
            else message
            for message in messages
        ]
        if self.system_prompt:
            messages = self._apply_system_prompt(messages, self.system_prompt)
        return ChatMessages(messages=messages).to_hf_messages()

    def _answers(self, requests: Sequence[tuple[Any, list[dict[str, Any]] | None]]) -> list[str]:
        """Answer requests whose messages are built on demand; the speed is added to the results file."""
        evaluated = self.evaluated
        before, start = len(evaluated.token_counts), time.perf_counter()
        texts: list[str] = []
        for part in self._portions(requests):
            conversations = [self._conversation(messages or self._messages(request)) for request, messages in part]
            texts += evaluated.answers(conversations, [self._wanted(request) for request, _ in part])
        seconds = time.perf_counter() - start
        count = sum(evaluated.tokens_of(text) for text in texts)
        tokens = zip(*evaluated.token_counts[before:], strict=True)
        names = ("visual_tokens_per_image", "kept_tokens_per_image")
        means = {name: sum(counts) / len(counts) for name, counts in zip(names, tokens, strict=False)}
        log_metrics(seconds, count, count / seconds, means)
        return texts

    def _portions(self, requests: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """Split requests so that similar sizes can share a batch and the images fit into memory."""
        size = 16 * self.batch_size
        with tqdm(total=len(requests), disable=self.rank != 0, desc=f"foveate ({self.evaluated.plan})") as bar:
            for start in range(0, len(requests), size):
                part = requests[start : start + size]
                yield part
                bar.update(len(part))


class SimpleModel(ChatModel):
    """foveate model for simple tasks (`--force_simple`): the images of a document first, then its text.

    Tasks that weigh given answers (`multiple_choice`, `loglikelihood`) are simple ones.
    """

    is_simple = True

    def _messages(self, request: Any) -> list[dict[str, Any]]:
        context, _, doc_to_visual, *_, doc_id, task, split = request.args
        return _turn(doc_to_visual(self.task_dict[task][split][doc_id]), context)

    def _wanted(self, request: Any) -> GenerationSettings:
        return GenerationSettings.of(request.args[1])

    def _next_round(self, request: Any, answers: list[str], known: Any) -> tuple[list[dict[str, Any]] | None, Any]:
        _, _, _, doc_to_text, doc_id, task, split = request.args
        payload = doc_to_text(
            self.task_dict[task][split][doc_id],
            previous_output=list(answers),
            round_idx=len(answers),
            previous_round_info=known,
        )
        if not isinstance(payload, tuple) or len(payload) != 5 or payload[2]:
            return None, None
        return _turn(payload[0], payload[1]), payload[4]


class SharedModel(ChatModel):
    """Chat model around a loaded one that several evaluations share: lmms-eval does not release it after the first.

    Args:
        evaluated: The model, with a plan attached or without.
        progress: Called with the number of answered requests and of all requests.
    """

    def __init__(self, evaluated: EvaluatedModel, progress: Callable[[int, int], object]) -> None:
        lmms.__init__(self)
        self.evaluated, self.system_prompt, self.progress = evaluated, None, progress

    def clean(self) -> None:
        """Keep the model."""

    def _portions(self, requests: Sequence[Any]) -> Iterator[Sequence[Any]]:
        size, done = 16 * self.batch_size, 0
        self.progress(0, len(requests))
        for start in range(0, len(requests), size):
            part = requests[start : start + size]
            yield part
            done += len(part)
            self.progress(done, len(requests))


def _turn(visuals: Any, text: str) -> list[dict[str, Any]]:
    """Build one user turn: images, or clips if the text has no image placeholder, and then the text."""
    content = []
    for visual in visuals or ():
        kind = "image" if not isinstance(visual, str) or visual.lower().endswith(PICTURES) else "video"
        content.append({"type": kind, "url": visual})
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def _unquoted(value: Any) -> str:
    """Return a value of --model_args as text without the quotes that lmms-eval leaves around values with commas."""
    text = str(value).strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _device_of_rank(rank: int) -> str | None:
    import torch

    return f"cuda:{rank}" if torch.cuda.is_available() else None

"""Inference engine: one thread that answers waiting requests in batches.

Requests with the same plan are answered together, oldest first, each with its own sampling, length and stop texts
(`generation`). A request that fails alone fails alone: where a batch cannot begin, its requests are tried one by one.

What leaves the model or the device in a state that nobody knows (a plan that cannot be removed, a fault of the
GPU) ends the thread: every request that is there fails at once, later ones are refused, and /health says so.

Why not `transformers serve` or its continuous batching: the former answers requests with images one after the other,
and the latter feeds token ids through paged attention of its own (no `inputs_embeds`, no images), where neither images
nor layers of different lengths have a place. `generate` carries both, so batches are formed in front of it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from PIL import Image
from transformers import LogitsProcessorList, StoppingCriteriaList

from foveate.answering.acquisition import (
    AGAIN,
    call_in,
    image_tokens_of,
    open_conversation,
    region,
    second_messages,
)
from foveate.answering.conversations import (
    ImageTokens,
    check_length,
    greedy,
    image_tokens,
    inputs_of_batch,
    tokenizer_of,
)
from foveate.core.acquisition import AcquisitionMethod, ToolCall, calls_again, split_acquisition
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.runtime import Handle, compress
from foveate.serving.generation import (
    FirstToken,
    GenerationState,
    LogprobRecorder,
    Penalties,
    Piece,
    Sampler,
    Sampling,
    StopCriterion,
)
from foveate.serving.limits import BusyError, EngineDeadError, Limits
from foveate.serving.metrics import Metrics
from foveate.serving.result import Result, TurnUsage

log = logging.getLogger("foveate.serving")
_FAILED = "the model of this server has failed, and no request can be answered; see the server's log."


@dataclass(eq=False)
class Job:
    """A queued request.

    Args:
        messages: As `transformers` takes them, with PIL images and `foveate.clips.Clip`.
        plan: Plan of token compression; None: the full model. Its step that chooses frames, if any, has been followed.
        limit: Tokens that the answer may have; None: as many as the server allows and the model has positions for.
        sampling: How they are drawn.
        stops: Texts that end it.
        deliver: Called from the engine's thread with `FirstToken`, with pieces of text, then once with a `Result` or an
            exception.
        streamed: Whether pieces are delivered as they are made: a partly delivered answer cannot restart elsewhere.
        hands_over: Whether a tool call for more of an image is handed to the client.
        arrived: When it was complete, on `time.monotonic`.
    """

    messages: list[dict[str, Any]]
    plan: Plan | None
    limit: int | None
    sampling: Sampling
    stops: tuple[str, ...]
    deliver: Callable[[FirstToken | Piece | Result | BaseException], object]
    streamed: bool = True
    hands_over: bool = False
    arrived: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)
    begun: bool = False

    def _visuals(self, kind: str) -> list[Any]:
        return [part[kind] for message in self.messages for part in message["content"] if part["type"] == kind]

    @property
    def images(self) -> int:
        """Images of the request."""
        return len(self._visuals("image"))

    @property
    def clips(self) -> int:
        """Clips of the request."""
        return len(self._visuals("video"))

    @property
    def pixels(self) -> int:
        """Number of pixels of its images and of the frames of its clips."""
        images = sum(image.width * image.height for image in self._visuals("image"))
        return images + sum(clip.pixels for clip in self._visuals("video"))

    @property
    def model_plan(self) -> Plan | None:
        """The steps of the plan that the model follows."""
        return None if self.plan is None else self.plan.for_model

    @property
    def group(self) -> str:
        """Key that the jobs of a batch share."""
        return str(self.model_plan)


class AnswerBackend(Protocol):
    """Interface that an application sends requests to: an `Engine`, or a pool of replicas."""

    limits: Limits
    metrics: Metrics

    @property
    def alive(self) -> bool:
        """Whether requests are accepted."""
        ...

    @property
    def state(self) -> dict[str, Any]:
        """Return the status for /health."""
        ...

    def start(self) -> None:
        """Start answering."""

    def stop(self) -> None:
        """Refuse waiting requests and abort running ones."""

    def submit(self, job: Job) -> None:
        """Accept a request; `Job.deliver` receives the answer in every case."""

    def cancel(self, job: Job) -> None:
        """Cancel a request."""


class Engine:
    """Engine that answers requests in its own thread; a context manager.

    Args:
        model: As `foveate.load` returns it, without a plan.
        processor: Of the model.
        limits: Of the server.

    Attributes:
        metrics: What was done.
    """

    def __init__(self, model: Any, processor: Any, limits: Limits) -> None:
        self.model, self.processor, self.limits = model, processor, limits
        self.metrics = Metrics(lambda: len(self._waiting), lambda: self._running)
        self._waiting: deque[Job] = deque()
        self._running = 0
        self._changed = threading.Condition()
        self._stopping = self._failed = False
        self._handle: Handle | None = None
        self._thread = threading.Thread(target=self._work, name="foveate-engine", daemon=True)

    def start(self) -> None:
        """Start answering."""
        self._thread.start()

    def stop(self) -> None:
        """Refuse waiting requests, abort running ones, and restore the model."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
        if not self._failed:
            self._attach(None)

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether requests are accepted."""
        return self._thread.is_alive() and not self._stopping and not self._failed

    @property
    def state(self) -> dict[str, Any]:
        """Return the status for /health: "ok", "ending" or "failed", and the number of waiting requests."""
        status = "failed" if self._failed else "ok" if self.alive else "ending"
        return {"status": status, "waiting": len(self._waiting)}

    def submit(self, job: Job) -> None:
        """Put a request into the queue.

        Raises:
            BusyError: the queue is full, or the server is shutting down.
            LostError: the thread has failed.
        """
        with self._changed:
            if self._failed:
                raise EngineDeadError(_FAILED)
            if not self.alive:
                raise BusyError("the server is shutting down.")
            if len(self._waiting) >= self.limits.queue:
                raise BusyError(f"{self.limits.queue} requests are waiting already; retry later.")
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Cancel a request: it leaves the queue, or stops at the model's next step."""
        job.cancelled.set()
        with self._changed, contextlib.suppress(ValueError):
            self._waiting.remove(job)

    # The thread

    def _work(self) -> None:
        batch: list[Job] | None = []
        end: Exception = BusyError("the server is shutting down.")
        try:
            while (batch := self._next()) is not None:
                self._running = len(batch)
                self._answer(batch)
                self._running = 0
        except BaseException:  # SystemExit too would end the thread, and leave everyone waiting
            log.critical("the model's thread has failed; the server answers no more", exc_info=True)
            end = EngineDeadError(_FAILED)
        with self._changed:
            self._failed = isinstance(end, EngineDeadError)
            remaining = [*(batch or ()), *self._waiting]
            self._waiting.clear()
            self._running = 0
        for job in remaining:  # who has an answer already looks for nothing more
            with contextlib.suppress(Exception):
                job.deliver(end)

    def _next(self) -> list[Job] | None:
        """Return the oldest request and others with its plan, or None when the server shuts down."""
        with self._changed:
            while not self._waiting and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return None
            batch = [self._waiting.popleft()]
            pixels = batch[0].pixels
            for job in list(self._waiting):
                if len(batch) >= self.limits.batch:
                    break
                if job.group == batch[0].group and pixels + job.pixels <= self.limits.batch_pixels:
                    self._waiting.remove(job)
                    batch.append(job)
                    pixels += job.pixels
            return batch

    def _answer(self, batch: list[Job]) -> None:
        batch = [job for job in batch if not job.cancelled.is_set()]
        if not batch:
            return
        try:
            self._generate(batch)
        except torch.AcceleratorError:  # a GPU answers nothing more in this process
            raise
        except Exception as error:
            self._attach(None)  # whatever state a plan was in
            if len(batch) > 1 and not any(job.begun for job in batch):
                for job in batch:
                    self._answer([job])
                return
            if not isinstance(error, FoveateError):
                log.exception("answering failed")
            for job in batch:
                job.deliver(error)

    @torch.inference_mode()
    def _generate(self, batch: list[Job]) -> None:
        acquisition, plan = split_acquisition(batch[0].model_plan, getattr(self.model, "name_or_path", ""))
        self._attach(plan)
        if acquisition is not None:
            self._acquire(batch, acquisition)
            return
        passes = self._run(batch, [job.messages for job in batch], [job.deliver for job in batch])
        for job, (row, length, images) in zip(batch, passes, strict=True):
            self._finish(job, row, length, images)

    def _run(
        self, batch: list[Job], messages: Sequence[list[dict[str, Any]]], receivers: Sequence[Callable[[Any], object]]
    ) -> list[tuple[GenerationState, int, ImageTokens]]:
        """Generate one turn of every job: its text, the tokens of its prompt, and the image tokens among them."""
        inputs = inputs_of_batch(self.model, self.processor, messages)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        rows = [
            self._row(job, self._limit(job, length), receive)
            for job, length, receive in zip(batch, lengths, receivers, strict=True)
        ]
        config = greedy(self.model, max(row.limit for row in rows))
        sampling = [job.sampling for job in batch]
        logprobs = LogprobRecorder(sampling, tokenizer_of(self.processor))
        draw = [] if all(settings.greedy for settings in sampling) else [Sampler(sampling, self.model.device)]
        penalties = self._take_penalties(config, sampling, inputs)
        self.metrics.batch.observe(len(batch))
        self.model.generate(
            **inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList([*penalties, *([logprobs] if logprobs.top_logprobs else []), *draw]),
            stopping_criteria=StoppingCriteriaList([StopCriterion(rows, lambda: self._stepped(batch, rows), logprobs)]),
        )
        counts = image_tokens(self.model, inputs["input_ids"])
        return list(zip(rows, lengths, counts, strict=True))

    def _acquire(self, batch: list[Job], method: AcquisitionMethod) -> None:
        """Answer requests in one or two turns. Text of a first turn is held back until it is known to be the answer."""
        prompts = method.read_prompts()
        opened = [open_conversation(method, prompts, job.messages) for job in batch]
        held: list[list[Any]] = [[] for _ in batch]
        following: list[tuple[Job, list[dict[str, Any]], TurnUsage, Image.Image]] = []
        passes = self._run(batch, [one.messages for one in opened], [pieces.append for pieces in held])
        for job, one, pieces, (row, length, images) in zip(batch, opened, held, passes, strict=True):
            turn = _usage(row, length, images)
            call, problem = (None, None) if one.is_second else call_in(method, row.text, one.image)
            if one.is_second and calls_again(row.text):
                problem = AGAIN
            if call is not None and not job.hands_over and row.reason != "cancelled":
                shown = region(one.image.convert("RGB"), call)
                following.append((job, second_messages(prompts, one.messages, row.text, shown), turn, one.image))
                continue
            for piece in pieces:
                job.deliver(piece)
            self._finish_acquired(job, row, images, [turn], one.image, call if job.hands_over else None, problem)
        if following:
            self._follow(following)

    def _follow(self, following: list[tuple[Job, list[dict[str, Any]], TurnUsage, Image.Image]]) -> None:
        """Answer the second turns of requests: their messages, the tokens of the first turn, and the original image."""
        again, messages, firsts, originals = zip(*following, strict=True)
        try:
            passes = self._run(list(again), messages, [job.deliver for job in again])
        except FoveateError as error:  # before anything of these turns was written, such as for one that is too long
            if len(following) == 1:
                again[0].deliver(error)
            plan = None if self._handle is None else self._handle.plan
            for one in following if len(following) > 1 else ():
                self._attach(None)  # whatever state the plan was in
                self._attach(plan)
                self._follow([one])
            return
        for job, first, image, (row, length, images) in zip(again, firsts, originals, passes, strict=True):
            problem = AGAIN if calls_again(row.text) else None
            self._finish_acquired(job, row, images, [first, _usage(row, length, images)], image, None, problem)

    def _finish_acquired(
        self,
        job: Job,
        row: GenerationState,
        images: ImageTokens,
        turns: list[TurnUsage],
        image: Image.Image,
        call: ToolCall | None,
        problem: str | None,
    ) -> None:
        full = image_tokens_of(self.model, self.processor, image)
        counted = ImageTokens(full, sum(turn.image_tokens for turn in turns), images.read)
        logprobs = None if job.sampling.top_logprobs is None else tuple(logprob for _, logprob in row.logprobs)
        result = Result(
            row.text,
            "tool_calls" if call is not None else row.reason or "length",
            sum(turn.prompt_tokens for turn in turns),
            sum(turn.completion_tokens for turn in turns),
            counted,
            str(job.plan),
            logprobs,
            tuple(turns),
            call,
            problem,
        )
        self.metrics.answered(result, job.images, job.clips, time.monotonic() - job.arrived)
        job.deliver(result)

    def _limit(self, job: Job, length: int) -> int:
        """Return the most tokens of an answer to a prompt of `length` tokens that the model has positions for."""
        check_length(self.model, length, 1)
        limit = self.limits.tokens if job.limit is None else min(job.limit, self.limits.tokens)
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return min(limit, positions - length) if positions else limit

    def _row(self, job: Job, limit: int, receive: Callable[[Any], object]) -> GenerationState:
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        tokenizer = tokenizer_of(self.processor)

        def gone() -> bool:
            return job.cancelled.is_set() or self._stopping

        return GenerationState(tokenizer, ends, limit, job.stops, receive, gone)

    def _take_penalties(self, config: Any, sampling: Sequence[Sampling], inputs: Any) -> list[Penalties]:
        """Move the repetition penalty from a generation config into a processor with the penalties of every row."""
        own = config.repetition_penalty or 1.0
        config.repetition_penalty = 1.0  # with None, `generate` takes the model's own again
        rows = [one if one.repetition_penalty is not None else replace(one, repetition_penalty=own) for one in sampling]
        if not any(row.penalised for row in rows):
            return []
        if self.model.config.is_encoder_decoder:  # whose answers begin anew, with one token
            return [Penalties(rows, [0] * len(rows), 1)]
        mask = inputs["attention_mask"]
        return [Penalties(rows, (mask == 0).sum(dim=1).tolist(), mask.shape[1])]

    def _stepped(self, batch: list[Job], rows: list[GenerationState]) -> None:
        for job, row in zip(batch, rows, strict=True):
            if not job.begun:
                job.begun = True
                self.metrics.ttft.observe(time.monotonic() - job.arrived)
                job.deliver(FirstToken(row.limit))

    def _finish(self, job: Job, row: GenerationState, length: int, images: ImageTokens) -> None:
        plan = None if job.plan is None else str(job.plan)
        read = length - images.before + images.kept
        logprobs = None if job.sampling.top_logprobs is None else tuple(logprob for _, logprob in row.logprobs)
        result = Result(row.text, row.reason or "length", read, len(row.ids), images, plan, logprobs)
        self.metrics.answered(result, job.images, job.clips, time.monotonic() - job.arrived)
        job.deliver(result)

    def _attach(self, plan: Plan | None) -> None:
        """Attach the plan unless it is attached already, since attaching is slow."""
        if self._handle is not None and (plan is None or str(self._handle.plan) != str(plan)):
            self._handle.restore()
            self._handle = None
        if plan is not None and self._handle is None:
            self._handle = compress(self.model, plan, processor=self.processor)


def _usage(row: GenerationState, length: int, images: ImageTokens) -> TurnUsage:
    return TurnUsage(length - images.before + images.kept, images.kept, len(row.ids))

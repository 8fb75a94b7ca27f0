"""Measurement of one plan on one model."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from foveate import compat
from foveate.answering.conversations import greedy, placeholders
from foveate.answering.trace import Trace
from foveate.benchmark import profiling
from foveate.benchmark.speed.models import MeasuredModel, attend
from foveate.core.plan import Plan, Step
from foveate.cost import flops
from foveate.kv_cache.nbytes import cache_bytes
from foveate.runtime import Handle, compress


class Timed:
    """Wrapper that times the calls of a method and forwards everything else."""

    def __init__(self, method: Any, device: torch.device) -> None:
        self._method = method
        self._device = device
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    @property
    def __class__(self) -> type:
        """Class of the wrapped method, which the runtime uses to recognise what the method needs."""
        return type(self._method)

    def resolve_weights(self, location: str | PathLike[str]) -> Timed:
        """Let the method find its weights; attaching a plan goes on with what this returns."""
        self._method = self._method.resolve_weights(location)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method and add the elapsed time."""
        start = profiling.clock(self._device)
        try:
            return self._method(*args, **kwargs)
        finally:
            self.seconds += profiling.clock(self._device) - start


class _Marks(StoppingCriteria):
    """Stopping criterion that never stops: it records the time of the first and the last token."""

    def __init__(self, device: torch.device, count: int) -> None:
        self.device, self.count = device, count
        self.generated = 0
        self.first = self.last = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> Any:
        self.generated += 1
        if self.generated == 1:
            self.first = profiling.clock(self.device)
        if self.generated == self.count:
            self.last = profiling.clock(self.device)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class PlanMeasurement:
    """Measurements of plans on one model with one batch.

    Args:
        subject: The model.
        batch: Prompts at once.
        new_tokens: Tokens to generate.
        attention: Implementation of attention while times are taken.
    """

    def __init__(self, subject: MeasuredModel, batch: int, new_tokens: int, attention: str) -> None:
        self.subject, self.batch, self.new_tokens, self.attention = subject, batch, new_tokens, attention
        self.model = subject.model
        self.device: torch.device = self.model.device
        self.inputs = subject.preprocess(batch)
        self.full_model_tokens = placeholders(self.model, self.inputs["input_ids"]) // batch

    @torch.inference_mode()
    def exact(self, plan: Plan | None) -> dict[str, Any]:
        """Measure what needs no clock: tokens per image, FLOPs, bytes of the cache, peak memory.

        Tokens are those that the language model reads, the mean over its layers, and those in the last one.

        FLOPs are counted on PyTorch's own kernels up to the first token; the rest covers a complete answer. Both
        serve as warm-up.
        """
        with self._following(plan) as (handle, _):
            attend(self.model, "sdpa")
            try:
                counted = flops.count(lambda: self._generate(1))
            finally:
                attend(self.model, self.attention)
            outputs: list[Any] = []

            def answer() -> None:
                outputs.append(compat.cache_of(self._generate(self.new_tokens)))

            peak = profiling.peak_memory(answer, self.device)
            kept = handle.report() if handle is not None else None
        layers = cache_bytes(outputs[0])
        tokens_in = self.full_model_tokens if kept is None else kept.tokens_in // self.batch
        tokens = tokens_in if kept is None else kept.tokens_kept // self.batch
        mean, remaining = float(tokens), tokens
        if kept is not None:
            depth = self.model.config.get_text_config().num_hidden_layers
            mean = sum(image.mean_tokens(depth) for image in kept.images) / self.batch
            remaining = kept.tokens_left // self.batch
        text = self.inputs["input_ids"].shape[1] - self.full_model_tokens
        formula = self.subject.formula(plan, tokens, text) if self.full_model_tokens > 1 else None
        return {
            "tokens_in": tokens_in,
            "tokens": tokens,
            "tokens_mean": round(mean, 2),
            "tokens_left": remaining,
            "peak_bytes": peak,
            "kv_bytes": sum(layers),
            "kv_layers": layers,
            "flops": {"counted": counted, "formula": None if formula is None else formula * self.batch},
        }

    @torch.inference_mode()
    def turn(self, plan: Plan | None) -> dict[str, float]:
        """Measure the seconds of each part of one answer."""
        start = profiling.clock(self.device)
        inputs = self.subject.preprocess(self.batch)
        preprocess = profiling.clock(self.device) - start
        with self._following(plan) as (_, timed):
            trace = Trace(self.model)
            marks = _Marks(self.device, self.new_tokens)
            with trace.watching():
                start = profiling.clock(self.device)
                self._generate(self.new_tokens, inputs, marks)
            times = trace.times(marks.last)
        selection = sum(method.seconds for method in timed)
        return {
            "preprocess": preprocess,
            "encoder": times.get("encoder", 0.0),
            "selection": selection,
            "prefill": times["prefill"] - selection,
            "ttft": marks.first - start,
            "decode_per_token": (marks.last - marks.first) / (self.new_tokens - 1),
        }

    @contextmanager
    def _following(self, plan: Plan | None) -> Generator[tuple[Handle | None, list[Timed]]]:
        """Attach a plan with timed methods."""
        if plan is None:
            yield None, []
            return
        timed: list[Any] = [Timed(step.method, self.device) for step in plan.steps]
        steps = [Step(method, step.budget, step.layers) for method, step in zip(timed, plan.steps, strict=True)]
        with compress(self.model, replace(plan, steps=tuple(steps))) as handle:
            yield handle, timed

    def _generate(self, count: int, inputs: Any = None, marks: _Marks | None = None) -> Any:
        """Generate exactly `count` tokens, so that all plans write equally many."""
        settings = greedy(self.model, count)
        settings.min_new_tokens = count
        if settings.pad_token_id is None:
            settings.pad_token_id = 0
        settings.return_dict_in_generate = True
        criteria = StoppingCriteriaList([] if marks is None else [marks])
        model_inputs = self.inputs if inputs is None else inputs
        return self.model.generate(**model_inputs, generation_config=settings, stopping_criteria=criteria)

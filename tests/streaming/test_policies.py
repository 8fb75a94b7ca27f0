"""What stays in the cache of a stream, and what answers are then."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import foveate
from foveate import FoveateError
from foveate.core.tokens import VisualTokens
from foveate.methods.pre_llm.uniform import Uniform
from foveate.streaming import (
    CachedStep,
    CachePolicy,
    KeepAll,
    SinkWindow,
    SlidingWindow,
    Stream,
    TokenThinning,
    UniformThinning,
)
from tests.streaming.small_streams import NAMES, clip, inputs, small

QUESTION = "What happens?"


def fed(name: str, frames: int, **options: object) -> Stream:
    model, processor = small(name)
    session = foveate.stream(model, processor, **options)
    feed_all(session, frames)
    return session


def feed_all(session: Stream, frames: int) -> None:
    for frame in clip(frames):
        session.feed(frame)


def numbers(session: Stream) -> list[int]:
    return [step.number for step in session.cached_steps]


def steps(*times: float) -> list[CachedStep]:
    return [CachedStep(number, time, 6, 6) for number, time in enumerate(times)]


@pytest.mark.parametrize(
    ("policy", "times", "kept"),
    [
        (KeepAll(), range(5), [0, 1, 2, 3, 4]),
        (SlidingWindow(2), range(5), [3, 4]),
        (SinkWindow(1, 2), range(5), [0, 3, 4]),
        (SinkWindow(2, 9), range(4), [0, 1, 2, 3]),
        (UniformThinning(3), (0, 1, 2, 7), [0, 2, 3]),
        (UniformThinning(4), (0, 4, 8, 12, 13), [0, 1, 2, 4]),
        (UniformThinning(3), (0, 1, 2, 3), [0, 1, 3]),
    ],
)
def test_which_steps_stay(policy: CachePolicy, times: Sequence[float], kept: list[int]) -> None:
    assert [place for place, stays in enumerate(policy.keep(steps(*times))) if stays is True] == kept


def test_uniform_thinning_stays_even_over_a_long_stream() -> None:
    cached: list[CachedStep] = []
    policy = UniformThinning(9)
    for number in range(500):
        cached.append(CachedStep(number, float(number), 6, 6))
        cached = [step for step, stays in zip(cached, policy.keep(cached), strict=True) if stays]
        assert len(cached) <= 9 and cached[0].number == 0 and cached[-1].number == number
    distances = [b.time - a.time for a, b in itertools.pairwise(cached)]
    assert max(distances) <= 4 * min(distances[:-1])  # a uniform one has 500 / 8 everywhere


@pytest.mark.parametrize("name", NAMES)
def test_evicted_entries_are_gone_and_the_others_as_they_were(name: str) -> None:
    with fed(name, 12) as everything, fed(name, 12, policy=SinkWindow(1, 2)) as session:
        count = len(everything.cached_steps)
        assert numbers(session) == [0, count - 2, count - 1]
        sizes = [len(segment.ids) for segment in everything._cache.segments]
        prefix = len(everything._cache.prefix_ids)
        assert session.cached_tokens == prefix + sizes[0] + sizes[-2] + sizes[-1]
        kept = torch.cat(
            [torch.arange(prefix + sizes[0]), torch.arange(everything.cached_tokens)[-sizes[-2] - sizes[-1] :]]
        )
        first = everything._cache.layers_cache.layers[0].keys  # the first layer reads no other step
        torch.testing.assert_close(session._cache.layers_cache.layers[0].keys, first[:, :, kept])
        assert torch.equal(session._cache.ids, everything._cache.ids[kept])
        assert not torch.allclose(session.logits(QUESTION), everything.logits(QUESTION), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_window_over_the_whole_stream_changes_nothing(name: str) -> None:
    with fed(name, 5) as everything, fed(name, 5, policy=SlidingWindow(9)) as session:
        assert torch.equal(session.logits(QUESTION), everything.logits(QUESTION))


@dataclass(frozen=True)
class Array(CachePolicy):
    """The newest steps, decided with arrays of a library."""

    library: Any

    def keep(self, steps: Sequence[CachedStep]) -> Sequence[bool | Tensor]:
        return self.library.arange(len(steps)) >= len(steps) - 3


@pytest.mark.parametrize("library", [np, torch])
def test_decisions_of_arrays(library: Any) -> None:
    thinned = TokenThinning("uniform:1", recent=1, steps=Array(library))
    with fed("llava-onevision", 6, policy=Array(library)) as session:
        assert numbers(session) == [3, 4, 5]
    with fed("llava-onevision", 6, policy=thinned) as session:
        assert [step.count for step in session.cached_steps] == [1, 1, 4]


def test_a_frame_is_read_where_the_policy_fails() -> None:
    """Everything stays cached then, and the next frame comes after it."""
    model, processor = small("llava-onevision")
    frames = clip(3)
    with foveate.stream(model, processor) as whole, foveate.stream(model, processor, policy=Decides([])) as session:
        for number, frame in enumerate(frames):
            whole.feed(frame, time=number)
            with pytest.raises(FoveateError, match="decided on 0 steps"):
                session.feed(frame, time=number)
            with pytest.raises(FoveateError, match="frames come in the order of time"):
                session.feed(frame, time=number)
        assert session.num_frames == 3 and numbers(session) == [0, 1, 2]
        assert torch.equal(session.logits(QUESTION), whole.logits(QUESTION))


@pytest.mark.parametrize("name", NAMES)
def test_questions_leave_the_cache_as_it_was(name: str) -> None:
    with fed(name, 5, policy=SlidingWindow(2)) as session, fed(name, 5, policy=SlidingWindow(2)) as silent:
        layers = session._cache.layers_cache.layers
        before = [(layer.keys, layer.values, layer.keys.clone(), layer.values.clone()) for layer in layers]
        first = session.ask(QUESTION, max_new_tokens=4)
        session.logits("And now?")
        for layer, (keys, values, old_keys, old_values) in zip(layers, before, strict=True):
            assert layer.keys is keys and layer.values is values
            assert torch.equal(keys, old_keys) and torch.equal(values, old_values)
        assert session.ask(QUESTION, max_new_tokens=4) == first
        for other in (session, silent):
            for frame in clip(4, seed=1):
                other.feed(frame)
        assert torch.equal(session.logits(QUESTION), silent.logits(QUESTION))


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_selects_as_in_a_whole_clip(name: str) -> None:
    """With a method that divides its budget evenly over the frames of a clip."""
    model, processor = small(name)
    frames, plan = clip(4), "fastervlm:50%"
    with fed(name, 4) as everything, fed(name, 4, plan=plan) as session:
        assert [2 * step.count for step in session.cached_steps] == [step.count for step in everything.cached_steps]
        short = session.logits(QUESTION)
    with foveate.compress(model, plan), torch.inference_mode():
        expected = model(**inputs(model, processor, frames, QUESTION)).logits[0, -1]
    torch.testing.assert_close(short, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_that_keeps_all_tokens_changes_nothing(name: str) -> None:
    """Also the token that ends a clip stays, in LLaVA-OneVision."""
    with fed(name, 5) as everything, fed(name, 5, plan="divprune:100%") as session:
        assert torch.equal(session.logits(QUESTION), everything.logits(QUESTION))


@pytest.mark.parametrize("name", NAMES)
def test_old_steps_are_thinned_to_the_tokens_of_a_method(name: str) -> None:
    policy = TokenThinning("divprune:2", recent=2, steps=SlidingWindow(4))
    with fed(name, 12, policy=policy) as session, fed(name, 12) as everything:
        last = len(everything.cached_steps)
        assert numbers(session) == list(range(last - 4, last))
        full = everything.cached_steps[0].count
        assert [step.count for step in session.cached_steps] == [2, 2, full, full]
        for step in session.cached_steps:
            assert step.tokens is not None and len(step.tokens) == step.count
    with fed(name, 6, policy=TokenThinning("uniform:2", recent=1)) as session, fed(name, 6) as everything:
        grid = (2, 2) if name == "llava-onevision" else (2, 3)
        kept, begin = list(range(len(everything._cache.prefix_ids))), len(everything._cache.prefix_ids)
        for segment in everything._cache.segments:
            visual = segment.visual.nonzero().flatten()
            if segment is not everything._cache.segments[-1]:
                visual = visual[Uniform()(VisualTokens.of_grid(torch.zeros(len(visual), 1), grid), 2).indices]
            text = (~segment.visual).nonzero().flatten()
            kept += [begin + place for place in sorted([*visual.tolist(), *text.tolist()])]
            begin += len(segment.ids)
        # The first layer reads no other entries.
        short, full = (stream._cache.layers_cache.layers[0].values for stream in (session, everything))
        torch.testing.assert_close(short, full[:, :, kept])


def test_a_step_is_thinned_once_whatever_else_is_evicted() -> None:
    model, processor = small("llava-onevision")
    policy = TokenThinning("uniform:50%", recent=2, steps=UniformThinning(5))
    with foveate.stream(model, processor, policy=policy) as session:
        for number, frame in enumerate(clip(12)):
            session.feed(frame, time=number**1.5)
            counts = [step.count for step in session.cached_steps]
            assert counts[:-2] == [2] * len(counts[:-2]) and counts[-1:] == [4]


@pytest.mark.parametrize("name", NAMES)
def test_closed_gaps_are_the_positions_of_a_clip_without_the_evicted_steps(name: str) -> None:
    """The first layer's keys depend on embeddings and positions alone."""
    model, processor = small(name)
    frames, size = clip(12), 2 if name != "llava-onevision" else 1
    times = [float(number) for number in range(len(frames))]
    kept = [*range(2 * size), *range(len(frames) - 2 * size, len(frames))]
    with (
        foveate.stream(model, processor, policy=SinkWindow(2, 2)) as session,
        foveate.stream(model, processor) as short,
    ):
        for number, frame in enumerate(frames):
            session.feed(frame, time=times[number])
        for place, number in enumerate(kept):
            # Times that are text stay those of the frames; otherwise they are without the gap.
            short.feed(frames[number], time=times[number if name == "qwen3-vl" else place])
        cache = session._cache.fork()
        assert cache.has_gaps
        shift = cache.close_gaps(session._format.time_axes, 0)
        assert shift > 0 and not cache.has_gaps
        torch.testing.assert_close(
            cache.layers_cache.layers[0].keys, short._cache.layers_cache.layers[0].keys, atol=1e-5, rtol=1e-5
        )
        assert [segment.start for segment in cache.segments] == [segment.start for segment in short._cache.segments]


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_goes_on_when_positions_are_used_up(name: str) -> None:
    model, processor = small(name)
    with foveate.stream(model, processor) as empty:
        prefix = len(empty._cache.prefix_ids)
    limit = prefix + {"qwen2-vl": 8, "qwen2.5-vl": 30, "qwen3-vl": 140, "llava-onevision": 40}[name]
    with foveate.stream(model, processor, policy=SlidingWindow(2), max_positions=limit) as session:
        starts = []
        for frame in clip(40):
            session.feed(frame)
            starts.append(session._cache.segments[-1].start if session._cache.segments else prefix)
            assert starts[-1] < limit
        assert starts != sorted(starts)  # they were moved
        assert numbers(session) == [step.number for step in fed(name, 40, policy=SlidingWindow(2)).cached_steps]
        if name == "llava-onevision":
            with pytest.raises(FoveateError, match="ask a shorter question"):
                session.ask(QUESTION, max_new_tokens=200)
    with foveate.stream(model, processor, max_positions=limit) as growing:
        message = "has used all .* choose a policy that evicts steps"
        with pytest.raises(FoveateError, match=message):
            feed_all(growing, 40)


@dataclass(frozen=True)
class Decides(CachePolicy):
    """A policy that always decides the same."""

    decision: Any

    def keep(self, steps: Sequence[CachedStep]) -> Sequence[bool | Tensor]:
        return self.decision


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlidingWindow(0), "steps must be a whole number from 1 on, not 0"),
        (lambda: SinkWindow(1, 2.5), "steps must be a whole number"),  # ty: ignore[invalid-argument-type]
        (lambda: UniformThinning(1), "the least is 2"),
        (lambda: TokenThinning("fastv:50%@1"), "needs one method that acts before the language model"),
        (lambda: TokenThinning("prumerge"), "needs a budget of tokens per step"),
        (lambda: TokenThinning("divprune:4", steps=3), "steps is a policy"),  # ty: ignore[invalid-argument-type]
        (lambda: fed("qwen2-vl", 6, policy=TokenThinning("pool:1", recent=1)), "pool merges tokens"),
        (lambda: fed("qwen2-vl", 2, policy=Decides([])), "decided on 0 steps, and 1 are cached"),
        (lambda: fed("qwen2-vl", 2, policy=Decides(None)), "Decides decides on every cached step, and gave NoneType"),
        (lambda: fed("qwen2-vl", 2, policy=Decides([1])), "Decides decides True, False or the indices of tokens"),
        (lambda: fed("qwen2-vl", 2, policy=Decides([[0, 1]])), "indices of tokens as a tensor, not"),
        (lambda: fed("qwen2-vl", 2, policy=Decides([torch.tensor(1)])), "indices of tokens as a tensor, not"),
        (lambda: fed("qwen2-vl", 2, policy=TokenThinning("uniform:1", steps=Decides([]))), "decided on 0 steps"),
    ],
)
def test_wrong_policies(make: object, message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        make()  # ty: ignore[call-non-callable]

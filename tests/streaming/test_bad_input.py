"""What cannot be streamed, read or asked ends in one sentence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import foveate
from foveate import FoveateError
from foveate.streaming import STCCacher
from foveate.streaming.formats import FORMATS
from tests.families.zoo import zoo
from tests.streaming.small_streams import clip, inputs, small

FRAME = clip(1)[0]


def session(name: str = "qwen2-vl", **options: Any) -> Any:
    return foveate.stream(*small(name), **options)


def test_frames() -> None:
    with session() as stream:
        with pytest.raises(FoveateError, match="no frame was fed yet"):
            stream.ask("What?")
        stream.feed(FRAME, time=2)
        with pytest.raises(FoveateError, match="has 24 x 20 pixels and the frames before 24 x 16"):
            stream.feed(np.zeros((20, 24, 3), np.uint8), time=3)
        with pytest.raises(FoveateError, match=r"is of 1\.5 s and the one before of 2 s"):
            stream.feed(FRAME, time=1.5)
        with pytest.raises(FoveateError, match="is of 2 s"):
            stream.feed(FRAME, time=2)
        for time in (math.nan, math.inf, -1, "now", [1, 2]):
            with pytest.raises(FoveateError, match="seconds from 0 on"):
                stream.feed(FRAME, time=time)
        with pytest.raises(FoveateError, match="cannot read an image"):
            stream.feed(None)
        with pytest.raises(FoveateError, match="the question is empty"):
            stream.ask("  ")
        with pytest.raises(FoveateError, match="the question holds half of a character"):
            stream.ask("What\ud800?")
        for tokens in (0, -1, 2.5, True, None, "8"):
            with pytest.raises(FoveateError, match="max_new_tokens must be a positive integer"):
                stream.ask("What?", max_new_tokens=tokens)  # ty: ignore[invalid-argument-type]
        assert stream.num_frames == 1  # nothing of the bad ones stayed
        stream.feed(FRAME, time=2.5)
        assert [step.time for step in stream.cached_steps] == [2.25]
    for call in (lambda: stream.feed(FRAME), lambda: stream.ask("What?"), lambda: stream.logits("What?")):
        with pytest.raises(FoveateError, match="this stream is closed"):
            call()
    stream.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": "fastv:50%@1"}, "fastv acts between layers"),
        ({"plan": "tome:50%"}, "tome merges inside the encoder"),
        ({"plan": "downsample:50%"}, "downsample makes images smaller"),
        ({"plan": "focusui:50%"}, "focusui"),
        ({"plan": "nested:4"}, "sets the length of a connector"),
        ({"plan": "scene"}, "scene chooses frames of a whole file"),
        ({"plan": "cdpruner:50%"}, "reads? .*question|question"),
        ({"policy": "window"}, "policy is an object such as SlidingWindow"),
        ({"fps": 0}, "fps is a number of frames per second above 0"),
        ({"fps": "fast"}, "fps is a number of frames per second above 0"),
        ({"max_positions": 0}, "max_positions is a number of positions above 0"),
        ({"max_positions": 2.5}, "max_positions is a number of positions above 0"),
        ({"max_positions": "all"}, "max_positions is a number of positions above 0"),
        ({"reuse": True}, r"features are reused by STCCacher\(\), not by True"),
        ({"system": " "}, "the system prompt is empty"),
        ({"system": 5}, "the system prompt is empty"),
        ({"system": "a\ud800"}, "the system prompt holds half of a character"),
    ],
)
def test_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        session(**options)


def test_an_attached_plan() -> None:
    with (
        foveate.compress(small("qwen2-vl")[0], "divprune:50%"),
        pytest.raises(FoveateError, match="restore it, and pass plan= here"),
    ):
        session()


def test_a_plan_that_is_attached_while_a_stream_is_open() -> None:
    """It would act on what the stream encodes, such as make its frames smaller and fill them with zeros."""
    with session() as stream, session() as undisturbed:
        for frame in clip(4):
            undisturbed.feed(frame)
        frames = clip(4)
        stream.feed(frames[0])
        with foveate.compress(small("qwen2-vl")[0], "downsample:50%"):
            for call in (lambda: stream.feed(frames[1]), lambda: stream.ask("What?"), lambda: stream.logits("What?")):
                with pytest.raises(FoveateError, match="'downsample:50%' was attached to this model while"):
                    call()
        for frame in frames[1:]:
            stream.feed(frame)
        assert torch.equal(stream.logits("What?"), undisturbed.logits("What?"))


@pytest.mark.parametrize("name", ["qwen3-vl", "llava-onevision"])
def test_other_calls_encode_in_full_while_a_stream_reuses_features(name: str) -> None:
    model, processor = small(name)
    whole = inputs(model, processor, clip(6), "What?")
    with torch.inference_mode():
        before = model(**whole).logits
        with session(name, reuse=STCCacher()) as stream:
            for frame in clip(6):
                stream.feed(frame)
            assert torch.equal(model(**whole).logits, before)


@pytest.mark.parametrize("name", sorted(zoo()))
def test_every_other_family_says_why_not(name: str) -> None:
    specimen = zoo()[name]
    if specimen.family in FORMATS:
        return
    with pytest.raises(
        FoveateError, match=r"cannot read a stream: (it takes no clips|.{20,}); families that can: "
    ) as error:
        foveate.stream(specimen.model(), None)
    assert error.value.code == "no-stream" and "written in another way" not in str(error.value)


def test_nothing_stays_on_the_model() -> None:
    model, _ = small("llava-onevision")
    session("llava-onevision").feed(FRAME)  # transformers installs hooks of its own in the first pass
    before = [dict(vars(module)) for module in model.modules()]
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    with session("llava-onevision", plan="fastervlm:50%") as stream:
        stream.feed(FRAME)
        stream.ask("What?", max_new_tokens=2)
    for module, attributes in zip(model.modules(), before, strict=True):
        assert vars(module).keys() == attributes.keys()
    assert hooks == [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]

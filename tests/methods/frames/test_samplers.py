"""Samplers choose frames as their papers, their authors' code and their docstrings say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate import FoveateError
from foveate.clips import clip_of_frames, open_clip
from foveate.core.plan import Plan
from foveate.methods.frames.fps import FPS
from foveate.methods.frames.query_frames import QueryFrames, keyframes
from foveate.methods.frames.scene import Scene, content_differences, shares_of
from foveate.methods.frames.uniform_frames import UniformFrames
from tests.methods.frames.rendered import Rendered, drifting, fading, noise
from tests.video_files import save_frames

GOLDEN = Path(__file__).parents[2] / "golden"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def numbers(sampler, clip, count=None, question=None):
    """The numbers of the frames that a sampler chooses."""
    return [round(time * clip.fps) for time, _ in clip.read(sampler.times(clip, count, question))]


def test_even_times_and_a_fixed_rate():
    clip = Rendered(noise(40))  # four seconds
    assert numbers(UniformFrames(), clip, 4) == [5, 15, 25, 35]
    assert numbers(UniformFrames(), clip, 40) == list(range(40))
    assert numbers(FPS(), clip) == [2, 7, 12, 17, 22, 27, 32, 37]
    assert numbers(FPS(rate=1.0), clip) == numbers(FPS(rate=1.0), clip, 9) == [5, 15, 25, 35]
    assert numbers(FPS(rate=25.0), clip) == list(range(40)) and numbers(FPS(), clip, 2) == [10, 30]


@pytest.mark.parametrize("name", ["noise", "drifting", "fading"])
def test_cuts_are_those_of_pyscenedetect(name):
    frames = {"noise": noise, "drifting": drifting, "fading": fading}[name]()
    expected = golden("scene")["clips"][name]
    differences = list(content_differences(Rendered(frames).read()))
    assert [value for _, value in differences] == pytest.approx(expected["scores"], rel=1e-4)
    cuts = Scene(threshold=20.0, min_seconds=0.5).cuts(differences)
    assert [round(10 * time) for time, _ in cuts] == expected["cuts"]


def test_every_scene_has_its_frames():
    clip = Rendered(drifting())  # scenes from 0, 12, 27 and 38 to 40; the cut at 15 follows too closely
    assert numbers(Scene(), clip) == numbers(Scene(), clip, 4) == [6, 19, 32, 39]
    assert numbers(Scene(min_seconds=0.1), clip) == [6, 13, 21, 32, 39]
    # The weakest cuts, 63 at 15 and 65 at 38, are left out; the strongest is that at 27.
    assert numbers(Scene(), clip, 2) == [13, 33] and numbers(Scene(), clip, 1) == [20]
    assert numbers(Scene(), clip, 6) == [3, 9, 15, 23, 32, 39]
    assert numbers(Scene(), Rendered(noise(1))) == [0]
    assert len(numbers(Scene(), clip, 40)) <= 40
    assert shares_of([(0.0, 3.0), (3.0, 4.0)], 6) == [4, 2] and shares_of([(0.0, 3.0), (3.0, 4.0)], None) == [1, 1]


@pytest.mark.parametrize("case", golden("query_frames")["cases"], ids=lambda case: case["name"])
def test_keyframes_are_those_of_the_authors(case):
    assert keyframes(case["scores"], case["count"], case["threshold"], case["depth"]) == case["places"]


def test_keyframes_are_as_many_as_asked_for():
    scores = np.random.default_rng(1).random(100).tolist()
    for count in (1, 3, 5, 16, 33, 99, 100, 101):
        places = keyframes(scores, count, 0.8, 5)
        assert len(set(places)) == min(count, 100) and places == sorted(places)
    assert keyframes(scores, 7, 0.8, 0) == sorted(sorted(range(100), key=scores.__getitem__)[-7:])
    assert keyframes([1.0] * 8, 4, 0.8, 5) == [0, 2, 4, 6]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random CLIP whose folder can be named in a plan."""
    from tests.tiny_model import save_clip_model

    return save_clip_model(tmp_path_factory.mktemp("clip_model"))


def test_frames_are_compared_with_the_question(encoder, tmp_path):
    from transformers import AutoProcessor, CLIPModel

    frames = np.repeat(noise(12), 10, axis=0)  # twelve pictures, a second each
    path = save_frames(tmp_path / "a.mkv", frames, 10)
    step = Plan.of(f"query-frames(encoder={str(encoder)!r}, strategy=top):3").frame_step
    clip = open_clip(path, sampler=step, question="what colour is it?")
    model, processor = CLIPModel.from_pretrained(encoder).eval(), AutoProcessor.from_pretrained(encoder)
    with torch.inference_mode():
        inputs = processor(text=["what colour is it?"], images=list(frames[::10]), return_tensors="pt", padding=True)
        likeness = model(**inputs).logits_per_image[:, 0]
    assert clip.timestamps == tuple(sorted(likeness.topk(3).indices.tolist()))
    assert all(np.array_equal(a, frames[round(10 * t)]) for a, t in zip(clip.frames, clip.timestamps, strict=True))
    longer = "what colour is it? " * 200  # than the text encoder reads
    assert len(clip_of_frames(frames[::10], range(12), sampler=step, question=longer).frames) == 3


def test_what_cannot_be_chosen_is_one_sentence(encoder, tmp_path):
    clip = Rendered(noise(4))
    for make, message in [
        (lambda: FPS(rate=0.0), "fps: rate is a number of frames per second above 0"),
        (lambda: Scene(threshold=0.0), "scene: threshold is a number above 0"),
        (lambda: Scene(min_seconds=-1.0), "scene: min_seconds"),
        (lambda: QueryFrames(""), "query-frames needs a contrastive model"),
        (lambda: QueryFrames("x", rate=0.0), "rate is a number"),
        (lambda: QueryFrames("x", strategy="best"), "strategy is adaptive or top"),
        (lambda: QueryFrames("x", depth=-1), "depth is a number"),
        (lambda: UniformFrames().times(clip, None, None), "uniform-frames needs a budget"),
        (lambda: QueryFrames("x").times(clip, 2, None), "query-frames needs a question"),
        (lambda: QueryFrames(str(tmp_path)).times(clip, 2, "?"), "the encoder .* cannot be loaded"),
        (lambda: Plan.of("query-frames:4"), "such as query-frames\\(encoder=openai"),
        (lambda: Plan.of("divprune:25% + scene:4"), "scene chooses frames of a clip; it must come first in a plan"),
        (lambda: Plan.of("uniform-frames:4 + scene:4"), "scene chooses frames .* alone of its kind"),
    ]:
        with pytest.raises(FoveateError, match=message):
            make()

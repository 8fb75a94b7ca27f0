"""Comparisons: who answers when, what is timed, and how many tokens the baselines get."""

from dataclasses import replace

import numpy as np
import pytest

from foveate import FoveateError, Plan, ask, load
from foveate.app import comparison
from foveate.app.comparison import compare, contenders, mean_budget
from foveate.clips import clip_of_frames
from tests.tiny_model import noise, save_internvl, save_llava_uhd, save_qwen

IMAGE = noise(96, 64)


@pytest.fixture(scope="module")
def uhd(tmp_path_factory):
    return load(save_llava_uhd(tmp_path_factory.mktemp("uhd")))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return load(save_qwen(tmp_path_factory.mktemp("qwen")))


def layers_of(model):
    return model[0].config.get_text_config().num_hidden_layers


class Recording:
    """Answers with the model, and records who was asked; `times` are those of its passes, in order."""

    def __init__(self, model, times=None):
        self.model, self.times, self.asked = model, times, []

    def __call__(self, plan):
        self.asked.append("full" if plan is None else plan.steps[0].method.name)
        answer = ask(IMAGE, "?", self.model, plan, max_new_tokens=2)
        assert not answer.pooling
        return answer if self.times is None else replace(answer, times={"total": self.times[len(self.asked) - 1]})


def last_of(answerer, plan, model, **options):
    [*_, compared] = compare(answerer, contenders(Plan.of(plan) if plan else None, **options), layers_of(model))
    return compared


def test_everything_answers_once_and_then_in_alternating_rounds(uhd, monkeypatch):
    monkeypatch.setattr(comparison, "MOST_ROUNDS", 3)
    monkeypatch.setattr(comparison, "TIMING_SECONDS", 1e9)
    answerer = Recording(uhd)
    compared = last_of(answerer, "divprune:25%", uhd)
    order = ["full", "divprune", "random", "downsample"]
    assert answerer.asked == [*order, *order, *reversed(order), *order]
    assert [len(contender.runs) for contender in compared] == [3, 3, 3, 3]


def test_a_slow_model_is_timed_once(uhd, monkeypatch):
    monkeypatch.setattr(comparison, "TIMING_SECONDS", 0.0)
    answerer = Recording(uhd)
    last_of(answerer, None, uhd)
    assert answerer.asked == ["full", "full"]


def test_times_are_those_of_the_fastest_timed_pass_and_never_of_the_first(uhd, monkeypatch):
    monkeypatch.setattr(comparison, "MOST_ROUNDS", 2)
    monkeypatch.setattr(comparison, "TIMING_SECONDS", 1e9)
    times = [1, 1, 30, 20, 10, 40]  # full, plan; full, plan; plan, full
    full_model, planned = last_of(Recording(uhd, times), "divprune:25%", uhd, baselines=False)
    assert full_model.times == {"total": 30} and planned.times == {"total": 10}
    assert contenders(None)[0].times == {}


@pytest.mark.parametrize("plan", ["divprune:25%", "divprune:5", "pool:50%", "divprune:50% + fastv:50%@1"])
def test_baselines_read_as_many_tokens_as_the_plan(uhd, plan, monkeypatch):
    monkeypatch.setattr(comparison, "MOST_ROUNDS", 1)
    _, planned, *baselines = last_of(Recording(uhd), plan, uhd)
    [image], layers = planned.answer.selection, layers_of(uhd)
    total = 0
    for layer in range(layers):  # the slow way
        tokens = image["tokens_kept"]
        for step in image["layers"]:
            tokens = step["tokens_kept"] if step["layer"] <= layer else tokens
        total += tokens
    assert [each.kind for each in baselines] == ["random", "downsample"]
    assert [each.answer.tokens.read for each in baselines] == [round(total / layers)] * 2


def test_tiles_that_are_images_of_their_own_get_a_fraction_and_no_smaller_image(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "MOST_ROUNDS", 1)
    tiled = load(save_internvl(tmp_path))
    _, planned, random, downsample = last_of(Recording(tiled), "divprune:25%", tiled)
    assert len(planned.answer.selection) > 1 and str(random.plan) == "random:25%"
    assert random.answer.tokens.read == planned.answer.tokens.read
    assert "no single raster" in downsample.refusal and not downsample.runs and random.runs
    assert mean_budget(replace(planned.answer, selection=[]), layers_of(tiled)) is None


def test_no_baseline_is_the_plan_itself_or_the_full_model(uhd, monkeypatch):
    monkeypatch.setattr(comparison, "MOST_ROUNDS", 1)
    assert [each.kind for each in last_of(Recording(uhd), "random:25%", uhd)] == ["full-model", "plan", "downsample"]
    assert [each.kind for each in last_of(Recording(uhd), "divprune:100%", uhd)] == ["full-model", "plan"]


def test_a_plan_that_the_model_refuses_is_an_error(tmp_path):
    tiled = load(save_internvl(tmp_path))
    with pytest.raises(FoveateError, match="no single raster"):
        last_of(Recording(tiled), "downsample:25%", tiled)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        # 8 frames are 4 pairs of 8 tokens.
        ("evs:25%", {"random": ("random:8", 8), "uniform-frames": ("uniform-frames:2", 8)}),
        ("uniform-frames:4 + evs:50%", {"random": ("uniform-frames:4 + random:8", 8), "uniform-frames": ("2", 8)}),
        ("scene:4", {"uniform-frames": ("uniform-frames:4", 16)}),
        ("uniform-frames:4", {}),
        ("random:25%", {"uniform-frames": ("uniform-frames:2", 8)}),
        ("evs:100%", {}),
    ],
)
def test_baselines_of_clips_have_as_many_tokens(qwen, monkeypatch, plan, expected):
    monkeypatch.setattr(comparison, "TIMING_SECONDS", 0.0)
    frames = np.random.default_rng(0).integers(0, 256, (8, 16, 32, 3), dtype=np.uint8)

    def answerer(plan):
        step = None if plan is None else plan.frame_step
        for_model = None if plan is None else plan.for_model
        return ask(clip_of_frames(frames, sampler=step), "?", qwen, for_model, max_new_tokens=1)

    [*_, compared] = compare(answerer, contenders(Plan.of(plan), clip=True), layers_of(qwen))
    assert compared[0].answer.tokens.read == 32
    found = {one.kind: (str(one.plan), one.answer.tokens.read) for one in compared[2:]}
    assert found.keys() == expected.keys()
    for kind, (text, tokens) in expected.items():
        assert found[kind][0].endswith(text) and found[kind][1] == tokens

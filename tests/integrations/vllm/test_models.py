"""vLLM answers, token by token, what foveate answers in process with the same weights in float32."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from foveate import compat
from foveate.core.errors import FoveateError
from tests.integrations.vllm.vllm_engines import (
    SAVE,
    clip,
    embedded,
    embedded_clip,
    engine,
    in_process,
    keys,
    metadata,
    picture,
    served,
    tokens,
)
from tests.tiny_model import save_internvl

pytestmark = pytest.mark.slow

TEXT = "and a text that is long enough to fill a block of the cache. B:"
PROMPTS = [
    (f"A: <image>What is it, {TEXT}", [picture(1)], []),
    (f"No image here, {TEXT}", [], []),
    (f"First <image> and then <image>which is larger? {TEXT}", [picture(2), picture(3, 60, 30)], []),
    (f"Again <image>{TEXT}", [picture(1, 60, 40)], []),
]
ONE_IMAGE = [PROMPTS[0], PROMPTS[1], PROMPTS[3]]
CLIPS = [
    (f"A: <image>then<video>{TEXT}", [picture(1, 48, 32)], [clip(1)]),
    (f"A: <video>then<image>{TEXT}", [picture(1, 48, 32)], [clip(1)]),
    (f"A: <image>then<video>and<image>{TEXT}", [picture(5), picture(6, 40, 64)], [clip(2)]),
    (f"A: <video>then<video>{TEXT}", [], [clip(4), clip(5, 5)]),
    (f"A: <video>{TEXT}", [], [clip(3, 6)]),
]
#: By change, by attention in the encoder, by merging over time, frame by frame, and one after the other.
CLIP_PLANS = ["evs:50%", "fastvid:30%", "temporal-tome:40%", "hiprune:20%", "pool:25%", "evs:50% + divprune:20"]
OWN = "divprune:9"
#: Of [CLS], of attention received, of diversity, of neighbours, of chance, and one after the other.
PLANS = {
    "llava": [
        "fastervlm:12",
        "visionzip:20",
        "hiprune:20%",
        "vispruner:11",
        "pool:25%",
        "uniform:16",
        "pool:40+divprune:7",
    ],
    "llava-next": [
        "fastervlm:30",
        "hired:20%",
        "globalcom2(layer=2):25%",
        "hiprune:20%",
        "pool:40",
        "divprune:15%",
        "uniform:16",
    ],
    "qwen2.5-vl": ["fastervlm:12", "hiprune:20%", "pool:25%", "uniform:16", "dart:10", "pool:40+divprune:7"],
    "qwen3-vl": ["fastervlm:12", "hiprune:20%", "pool:25%", "uniform:16", "dart:10", "pool:40+divprune:7"],
}


@dataclass
class Subject:
    """A model, and an engine that runs it under a plan."""

    name: str
    folder: Path
    model: Any
    full_model: list[list[int]]


@pytest.fixture(scope="module", params=list(SAVE))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Subject]:
    folder = SAVE[request.param](tmp_path_factory.mktemp(request.param))
    full_model = in_process(folder, None, PROMPTS)
    with engine(folder, OWN, enable_mm_embeds=True) as model:
        yield Subject(request.param, folder, model, full_model)


def test_the_plan_of_the_engine(subject: Subject) -> None:
    """A batch with text alone and several images, prefilled in pieces; then once more, from caches."""
    expected = in_process(subject.folder, OWN, PROMPTS)
    assert expected != subject.full_model and expected[1] == subject.full_model[1]
    for turn in range(2):
        answers = served(subject.model, PROMPTS)
        assert tokens(answers) == expected
        cached = sum(answer.num_cached_tokens for answer in answers)
        assert cached > 0 if turn else cached == 0


def test_plans_of_requests(subject: Subject) -> None:
    assert tokens(served(subject.model, PROMPTS, "full model")) == subject.full_model
    for plan in PLANS[subject.name]:
        expected = in_process(subject.folder, plan, PROMPTS)
        assert expected != subject.full_model
        for _ in range(2):
            assert tokens(served(subject.model, PROMPTS, plan)) == expected, plan


def test_chance_draws_the_same_places_in_every_image(subject: Subject) -> None:
    expected = in_process(subject.folder, "random:12", ONE_IMAGE)
    assert tokens(served(subject.model, ONE_IMAGE, "random:12")) == expected


def test_one_image_under_several_plans_at_once(subject: Subject) -> None:
    """Requests with the same image and text in one batch; neither embeddings nor prefixes are shared."""
    plans = [None, "pool:9", "full model", "uniform:9", "fastervlm:9", OWN]
    own = [OWN if plan is None else plan for plan in plans]
    prompt = (f"Mixed <image>{TEXT}", [picture(8)], [])
    expected = [in_process(subject.folder, None if plan == "full model" else plan, [prompt])[0] for plan in own]
    assert len({tuple(answer) for answer in expected}) >= 4  # the second and the last are the engine's again
    for _ in range(2):
        assert tokens(served(subject.model, [prompt] * len(plans), plans)) == expected


def test_keys_tell_plans_apart(subject: Subject) -> None:
    text, data = f"<image>{TEXT}", {"image": [picture(1)]}
    mine = {"image": ["mine"]}
    found = [
        keys(subject.model, text, data, names, plan)["image"][0] for names in (None, mine) for plan in (None, "pool:9")
    ]
    assert len(set(found)) == 4
    assert keys(subject.model, text, data, None, OWN)["image"][0] == found[0]  # the engine's own, named by a request


def test_a_plan_that_cannot_be_served_is_refused_and_the_engine_goes_on(subject: Subject) -> None:
    for plan, message in {
        "fastv:50%@2": "acts at the site 'decoder'; vLLM serves methods that act before the language model",
        "prumerge": "does not follow from the size of an image",
        "cdpruner:8": "vLLM keeps the tokens of an image for all prompts",
        "nothing:8": "unknown method 'nothing'",
        "pospad(selector=fastervlm, embedding=/etc/passwd):8": "names a file",
        "": "is a plan as text",
        "pool:9" + " " * 300: "256 bytes at most",
    }.items():
        with pytest.raises(ValueError, match=message):
            served(subject.model, PROMPTS[:1], plan)
    assert tokens(served(subject.model, PROMPTS[:1], "pool:9")) == in_process(subject.folder, "pool:9", PROMPTS[:1])


def test_embeddings_in_place_of_an_image_stay_whole(subject: Subject) -> None:
    """Whatever the plan; and pixels in the same batch do not."""
    text, (image,), _ = PROMPTS[0]
    prompts = [(text, embedded(subject.folder, image), []), PROMPTS[0], (text, embedded(subject.folder, image), [])]
    compressed = in_process(subject.folder, OWN, PROMPTS[:1])[0]
    for _ in range(2):
        answers = tokens(served(subject.model, prompts, [None, None, "pool:9"]))
        assert answers == [subject.full_model[0], compressed, subject.full_model[0]]


def test_images_and_clips_in_both_orders(subject: Subject) -> None:
    if not subject.name.startswith("qwen"):
        pytest.skip("the model has no clips")
    for plan in (OWN, "pool:25%", "full model"):
        expected = in_process(subject.folder, None if plan == "full model" else plan, CLIPS)
        for _ in range(2):
            assert tokens(served(subject.model, CLIPS, plan)) == expected, plan


def test_clips_under_plans(subject: Subject) -> None:
    """Clips alone and next to images, in both orders, with all plans in one batch and from caches."""
    if subject.name != "qwen2.5-vl":
        pytest.skip("the model has no clips, or they stay whole")
    full_model = in_process(subject.folder, None, CLIPS)
    expected = [answer for plan in CLIP_PLANS for answer in in_process(subject.folder, plan, CLIPS)]
    assert all(answer not in full_model for answer in expected)
    plans = [plan for plan in CLIP_PLANS for _ in CLIPS]
    for _ in range(2):
        assert tokens(served(subject.model, CLIPS * len(CLIP_PLANS), plans)) == expected
    one = CLIPS[-1:]
    lengths = {
        plan: len(served(subject.model, one, plan)[0].prompt_token_ids) for plan in ("full model", "evs:50%", OWN)
    }
    assert [lengths["full model"] - lengths[plan] for plan in ("evs:50%", OWN)] == [54, 108 - 9]


def test_the_encoder_reads_no_more_at_once_than_memory_was_measured_with(subject: Subject) -> None:
    """The scheduler counts the tokens that stay: one of each image. Its steps have 24 tokens."""
    calls: list[int] = []
    qwen = subject.name.startswith("qwen")

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        calls.append(len(kwargs["grid_thw"]) if qwen else len(args[0]))

    def hooked(model: Any) -> Any:
        return (model.visual if qwen else model.vision_tower).register_forward_pre_hook(note, with_kwargs=True)

    (hook,) = subject.model.apply_model(hooked)
    try:
        images = [picture(seed, 32, 24) for seed in range(50, 54)]
        served(subject.model, [(f"<image><image><image><image>{TEXT}", images, [])], "pool:1")
        # Qwen: two of 12 tokens; LLaVA: one of 64; LLaVA-NeXT: one of three views with 64 each
        assert calls == {"llava": [1] * 4, "llava-next": [3] * 4}.get(subject.name, [2, 2])
        if subject.name == "qwen2.5-vl":
            served(subject.model, [(f"<video>{TEXT}", [], [clip(seed)]) for seed in (50, 51)], "pool:1")
            assert calls[2:] == [1, 1]
    finally:
        hook.remove()


def test_keys_of_clips_tell_plans_apart(subject: Subject) -> None:
    if not subject.name.startswith("qwen"):
        pytest.skip("the model has no clips")
    video = clip(1)
    data = {"video": [(video, metadata(video))]}
    found = [
        keys(subject.model, f"<video>{TEXT}", data, names, plan)["video"][0]
        for names in (None, {"video": ["mine"]})
        for plan in (None, "pool:9")
    ]
    assert len(set(found)) == (4 if subject.name == "qwen2.5-vl" else 2)


def test_embeddings_in_place_of_a_clip_stay_whole(subject: Subject) -> None:
    if subject.name != "qwen2.5-vl":
        pytest.skip("the model has no clips, or needs their times")
    text, _, (video,) = CLIPS[-1]
    prompts = [(text, [], embedded_clip(subject.folder, video)), CLIPS[-1]]
    expected = [in_process(subject.folder, plan, CLIPS[-1:])[0] for plan in (None, "evs:50%")]
    assert tokens(served(subject.model, prompts, "evs:50%")) == expected


@pytest.mark.parametrize(
    ("name", "plan", "message"),
    [
        *(("llava", plan, "foveate|vLLM") for plan in ("fastv:50%@2", "prumerge", "cdpruner:8", 64)),
        ("llava", "nothing:8", "unknown method"),
        ("qwen2.5-vl", "divprune:50% + evs:50%", "let a method for clips be the first step"),
    ],
)
def test_a_start_with_a_plan_that_cannot_be_served_is_refused(
    tmp_path: Path, name: str, plan: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message), engine(SAVE[name](tmp_path), plan):
        pass


def test_an_untested_version_is_said_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "requires", lambda _: ["vllm<0.34,>=0.32; extra == 'vllm'"])
    monkeypatch.setattr("vllm.__version__", "0.34.0")
    compat.warn_if_untested.cache_clear()
    with (
        pytest.warns(UserWarning, match="tested with vllm >=0.32, <0.34, and this is 0.34.0"),
        pytest.raises(ValueError, match="prumerge"),
        engine(SAVE["llava"](tmp_path), "prumerge"),
    ):
        pass
    compat.warn_if_untested.cache_clear()


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl"])
def test_without_a_plan_vllm_is_untouched(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SAVE[name](tmp_path)
    monkeypatch.setenv("FOVEATE_PLAN", "pool:4")
    with engine(folder, "") as model:  # an empty override goes before the environment
        assert tokens(served(model, PROMPTS)) == in_process(folder, None, PROMPTS)
        assert keys(model, f"<image>{TEXT}", {"image": [picture(1)]}, {"image": ["mine"]})["image"] == ["mine"]
        with pytest.raises(FoveateError, match="this engine was started without a plan"):
            served(model, PROMPTS[:1], "pool:9")


def test_the_environment_names_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SAVE["llava"](tmp_path)
    monkeypatch.setenv("FOVEATE_PLAN", "pool:4")
    with engine(folder, None) as model:
        monkeypatch.delenv("FOVEATE_PLAN")  # an engine keeps what it began with
        answers = served(model, PROMPTS)
        whole = served(model, PROMPTS, "full model")
    assert tokens(answers) == in_process(folder, "pool:4", PROMPTS)
    saved = [len(b.prompt_token_ids) - len(a.prompt_token_ids) for a, b in zip(answers, whole, strict=True)]
    assert saved == [60 * len(images) for _, images, _ in PROMPTS]


def test_a_plan_of_a_model_without_plans_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would follow it; the engine itself is not made."""
    from vllm.engine.arg_utils import EngineArgs

    folder = save_internvl(tmp_path)

    def configured(**arguments: Any) -> Any:
        return EngineArgs(str(folder), dtype="float32", max_model_len=128, **arguments).create_engine_config()

    with pytest.raises(ValueError, match="InternVLForConditionalGeneration takes no plans in vLLM"):
        configured(hf_overrides={"foveate_plan": "divprune:4"})
    monkeypatch.setenv("FOVEATE_PLAN", "divprune:4")
    with pytest.raises(ValueError, match="takes no plans in vLLM"):
        configured()
    for none in ("", None):
        assert configured(hf_overrides={"foveate_plan": none})
    monkeypatch.delenv("FOVEATE_PLAN")
    assert configured()

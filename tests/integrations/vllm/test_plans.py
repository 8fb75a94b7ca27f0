"""Which plans vLLM can serve is decided without vLLM."""

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import EncoderSpec, Grid, Need, VisualTokens
from foveate.families.family import frame_crops
from foveate.integrations.vllm.plans import EnginePlans, servable, serving_of
from foveate.integrations.vllm.positions import COLUMNS, nowhere, offsets, places
from foveate.integrations.vllm.selection import shorten
from tests.refusals import refused

CLIP = EnginePlans("llava", EncoderSpec(24, True, output_layer=22), 1, "pool:16")
QWEN = EnginePlans("qwen2_5_vl", EncoderSpec(32, False, 4, 31), 3, "pool:16")


def config(kind: str = "llava", **fields: Any) -> SimpleNamespace:
    if kind == "llava":
        vision = SimpleNamespace(model_type="clip_vision_model", num_hidden_layers=24)
        fields = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", **fields}
    else:
        vision = SimpleNamespace(model_type=kind, depth=32, spatial_merge_size=2)
    return SimpleNamespace(model_type=kind, vision_config=vision, **fields)


def test_what_an_engine_is_read_from_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOVEATE_PLAN", raising=False)
    assert serving_of(config()) is None
    assert serving_of(config(foveate_plan="pool:16")) == CLIP
    assert serving_of(config("qwen2_5_vl", foveate_plan="pool:16")) == QWEN
    assert str(CLIP.setting()) == "pool:16" and CLIP.family.title == "LLaVA-1.5"


def test_override_goes_before_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_PLAN", "pool:16")
    own = config()
    assert serving_of(own) == CLIP
    monkeypatch.setenv("FOVEATE_PLAN", "pool:4")
    assert serving_of(own) == CLIP  # an engine keeps what it began with
    assert serving_of(config(foveate_plan="")) is None


def test_counts_follow_from_sizes_and_steps() -> None:
    assert CLIP.setting("divprune:64").count(576) == 64
    assert CLIP.setting("divprune:64").count(20) == 20
    assert CLIP.setting("pool:25%").count(576) == 144
    assert CLIP.setting("fastervlm:50% + divprune:10%").count(576) == 29
    assert CLIP.setting("full model").count(576) == 576


def test_needs_are_those_of_the_encoder() -> None:
    assert CLIP.setting("fastervlm:64").needs == (Need("cls_attention", 22, True),)
    assert QWEN.setting("fastervlm:64").needs[0].substitute  # attention received in its place


@pytest.mark.parametrize(
    ("plan", "serving", "code"),
    [
        ("fastv:50%@2", CLIP, "site-not-served"),
        ("downsample:64", CLIP, "site-not-served"),
        ("prumerge", CLIP, "count-not-from-sizes"),
        ("prumerge:64", CLIP, "count-not-from-sizes"),
        ("fastervlm(layer=23):64", CLIP, "needs-later-block"),
        ("vtc-cls:64", QWEN, "needs-cls"),
        ("cdpruner:64", CLIP, "needs-prompt"),
        ("dart:64", CLIP, "keeps-positions"),
        ("ppe:64", QWEN, "several-positions"),
        ("dycoke", QWEN, "count-not-from-sizes"),
        ("prunevid:50%", QWEN, "count-not-from-sizes"),
        ("divprune:50% + evs:50%", QWEN, "needs-whole-frames"),
        ("ts-llava(thumbnails=1):50%", QWEN, "chooses-frames"),
        ("uniform-frames:8 + evs:50%", QWEN, "site-not-served"),
    ],
)
def test_what_cannot_be_served_is_refused(plan: str, serving: EnginePlans, code: str) -> None:
    with refused(code):
        serving.setting(plan)


@pytest.mark.parametrize(
    ("plan", "serving", "message"),
    [
        ("nothing:64", CLIP, "unknown method 'nothing'"),
        (64, CLIP, "foveate_plan is a plan as text, such as 'divprune:64' or 'full model', not 64"),
        (" ", CLIP, "foveate_plan is a plan as text"),
        ("pool:16" + 300 * " ", CLIP, "a plan in vLLM has 256 bytes at most"),
    ],
)
def test_what_is_no_plan_is_refused(plan: Any, serving: EnginePlans, message: str) -> None:
    with pytest.raises(FoveateError) as refused:
        serving.setting(plan)
    assert message in str(refused.value)


def test_requests_name_no_files() -> None:
    plan = "pospad(embedding=mark.safetensors):8"
    with pytest.raises(FoveateError, match="names a file"):
        QWEN.setting(plan, request=True)
    assert QWEN.setting("random(seed=3):8", request=True).count(20) == 8


def test_an_encoder_that_cannot_be_looked_into() -> None:
    blind = EnginePlans("llava", CLIP.tower, 1, "pool:16", "that is cut over several devices; use one")
    assert blind.setting().count(64) == 16
    with refused("encoder-not-readable", "that is cut over several devices"):
        blind.setting("fastervlm:16")


@pytest.mark.parametrize(
    "fields", [{"vision_feature_layer": [-2, -5]}, {"vision_feature_select_strategy": "full"}], ids=str
)
def test_other_encoders_are_refused(fields: dict[str, Any]) -> None:
    with refused("encoder-not-served"):
        serving_of(config(foveate_plan="pool:16", **fields))


def test_servable_methods_can_be_served() -> None:
    found = servable()
    assert {"random", "divprune", "pool", "uniform", "fastervlm", "visionzip", "hiprune"} <= set(found)
    assert not {"prumerge", "cdpruner", "fastv", "focusui", "ppe"} & set(found)
    several = EnginePlans("llava", EncoderSpec(24, True), 3, "pool:16")
    for name in found:
        assert several.setting(f"{name}:50%").count(10) == 5


def clip_tokens(needs: tuple[Need, ...], shape: tuple[int, int, int]) -> VisualTokens:
    """Random tokens of a clip of `shape` frames, rows and columns, with random values of what is measured."""
    generator = torch.Generator().manual_seed(0)
    count = math.prod(shape)
    measured = {
        need: torch.randn(count, 6, generator=generator)
        if need.kind in ("keys", "features")
        else torch.rand(count, generator=generator)
        for need in needs
    }
    features = torch.randn(count, 8, generator=generator)
    size = 28 * shape[1], 28 * shape[2]
    return VisualTokens(features, frame_crops(*shape), measured, size=size, tower=QWEN.tower)


@pytest.mark.parametrize("text", ["{}:50%", "{}:7%", "{}:3", "{}:60% + divprune:50%", "pool:60% + {}:50%"])
def test_clips_of_any_size_keep_the_announced_number_of_tokens(text: str) -> None:
    assert QWEN.modalities == ("image", "video") and CLIP.modalities == ("image",)
    refusals = Counter()
    for name in servable():
        try:
            setting = QWEN.setting(text.format(name))
        except FoveateError as error:
            refusals[error.code] += 1
            continue
        for shape in ((1, 3, 4), (2, 2, 3), (5, 3, 4), (3, 1, 1)):
            tokens = clip_tokens(setting.needs, shape)
            kept = shorten(setting, tokens).indices
            assert len(kept) == setting.count(math.prod(shape)), (name, shape)
            assert bool((kept.diff() > 0).all())
    assert set(refusals) <= {"needs-cls", "needs-whole-frames"}
    assert ("needs-whole-frames" in refusals) == text.startswith("pool")


def test_methods_for_clips_follow_others_where_clips_stay_whole() -> None:
    qwen3 = EnginePlans("qwen3_vl", QWEN.tower, 3, "pool:16")
    assert qwen3.modalities == ("image",)
    assert qwen3.setting("divprune:50% + evs:50%").count(64) == 16


def test_keys_tell_plans_apart() -> None:
    keys = {CLIP.setting(plan).key for plan in ("pool:16", "pool:17", "uniform:16", "random:16", "full model")}
    assert len(keys) == 5
    assert CLIP.setting(" pool : 16 ").key == CLIP.setting("pool:16").key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_positions_survive_half_precision(dtype: torch.dtype) -> None:
    embeds = torch.zeros(4, 8, dtype=dtype)
    at = torch.tensor([0, 999, 300_257, 999_999])
    carried = torch.cat([embeds, places(at, Grid(1000, 1000), embeds)], dim=1)[:, -COLUMNS:]
    assert offsets(carried).tolist() == [[0] * 4, [0, 0, 300, 999], [0, 999, 257, 999]]
    frames = torch.cat([embeds, places(torch.tensor([5, 6, 13, 599_999]), Grid(2, 3), embeds, 1.3)], dim=1)
    assert offsets(frames[:, -COLUMNS:]).tolist() == [[0, 1, 2, 129_998], [1, 0, 0, 1], [2, 0, 1, 2]]
    assert not offsets(nowhere(embeds)).any()

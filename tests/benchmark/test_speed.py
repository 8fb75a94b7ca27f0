"""The benchmark of plans, on a small model of a real class and on the embedded one."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, Qwen2_5_VLForConditionalGeneration

from foveate import FoveateError, cli
from foveate.benchmark.nbytes import weight_bytes
from foveate.benchmark.profiling import median_error
from foveate.benchmark.results import read_results
from foveate.benchmark.speed import FULL_MODEL, SHAPES, TEXTS, Shape, SpeedSettings, models, plot, run, shapes, table
from foveate.benchmark.speed.measurement import PlanMeasurement
from foveate.benchmark.speed.models import subject
from foveate.benchmark.speed.settings import groups_of
from foveate.commands.lists import plans_in
from foveate.core.plan import Plan
from foveate.kv_cache.nbytes import stored_bytes
from foveate.loading import load_skeleton
from tests.families.zoo import zoo

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def _model(text: dict[str, Any], blocks: int | None) -> Any:
    model = zoo()["llava"].make()
    model.config.image_token_id = shapes.IMAGE
    model.resize_token_embeddings(shapes.IMAGE + 1)
    return model


def _view(pictures: list[Image.Image]) -> dict[str, Any]:
    processor = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    return dict(processor(images=pictures, return_tensors="pt"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> SpeedSettings:
    monkeypatch.setitem(SHAPES, "small", Shape("small", _model, _view, 56, 16, ("4",)))
    methods = ("divprune",)
    return SpeedSettings(("small",), methods, repeats=2, new_tokens=3, text_tokens=6, dtype="float32", batches=(1, 2))


def test_a_run_compares_every_plan_with_both_controls(small: SpeedSettings, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    settings = replace(small, plans=("divprune:8 + pool:50%", "divprune:8 + random-decoder:25%@1"))
    result = run(settings, path, command="foveate bench speed")
    assert json.loads(path.read_text()) == result
    assert result["kind"] == "speed" and result["settings"]["new_tokens"] == 3
    rows = {(row["plan"], row["batch"], row["group"]): row for row in result["rows"]}
    assert len(rows) == len(result["rows"]) == 2 * (4 + 8)
    for batch in (1, 2):
        full_model = rows["full model", batch, "4"]
        chance = rows["random:4", batch, "4"]
        assert full_model["tokens"] == full_model["tokens_in"] == 16
        assert full_model["speed_up"] == 1 and full_model["efficiency"] is None
        for method in ("random", "downsample", "divprune"):
            row = rows[f"{method}:4", batch, "4"]
            assert (row["tokens_in"], row["tokens"]) == (16, 4)
            assert row["speed_up"] == full_model["seconds"]["ttft"] / row["seconds"]["ttft"]
            assert row["efficiency"] == chance["seconds"]["ttft"] / row["seconds"]["ttft"]
            # What stays away are the cached keys and values of 16 - k tokens: 2 layers of 2 heads of 8 floats.
            gone = (16 - 4) * batch * 2 * (2 * 2 * 8 * 4)
            assert full_model["kv_bytes"] - row["kv_bytes"] == gone
            assert sum(row["kv_layers"]) == row["kv_bytes"] and len(row["kv_layers"]) == 2
        seconds = rows["divprune:4", batch, "4"]["seconds"]
        assert 0 < seconds["selection"] < seconds["ttft"] and seconds["preprocess"] > 0
        parts = seconds["encoder"] + seconds["selection"] + seconds["prefill"]
        assert 0 < parts < 1.2 * seconds["ttft"] and seconds["decode_per_token"] > 0
        chained = rows["divprune:8 + pool:50%", batch, ""]
        assert chained["budget"] == "4" and rows["random:4", batch, ""]["tokens"] == chained["tokens"] == 4
        assert chained["control"] == "random:4"
        inside = rows["divprune:8 + random-decoder:25%@1", batch, ""]
        assert inside["control"] == "random:8 + random-decoder:25%@1" and inside["tokens"] == 8
        assert (inside["tokens_mean"], inside["tokens_left"]) == ((8 + 2) / 2, 2)
        chance = rows[inside["control"], batch, ""]
        assert inside["efficiency"] == chance["seconds"]["ttft"] / inside["seconds"]["ttft"]
        assert inside["kv_layers"] == chance["kv_layers"] and inside["kv_layers"][0] > inside["kv_layers"][1]
    header, lines = table(result)
    assert len(lines) == len(rows) and {len(line) for line in lines} == {len(header)}
    plot(result, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size[0] > 500

    said: list[str] = []
    again = run(settings, path, resume=True, report=said.append)
    assert again["rows"] == result["rows"] and said == ["building small"]
    more = run(replace(settings, budgets=("4", "8"), batches=(1,)), path, resume=True)
    assert more["rows"][: len(rows)] == result["rows"] and len(more["rows"]) == len(rows) + 4
    with pytest.raises(FoveateError, match=r"other settings \(repeats\)"):
        run(replace(settings, repeats=1), path, resume=True)
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"hardware": document["hardware"] | {"cpu": "Zilog Z80"}}))
    with pytest.raises(FoveateError, match=r"measured on another CPU \(Zilog Z80, here "):
        run(settings, path, resume=True)
    path.write_text(json.dumps(json.loads((RESULTS / "selection-cpu.json").read_text())))
    with pytest.raises(FoveateError, match="not a result of `foveate bench speed`"):
        run(settings, path, resume=True)


def test_random_weights_are_in_bfloat16_where_the_processor_has_it(
    small: SpeedSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(small, dtype="auto", repeats=1, batches=(1,))
    made = {}
    for native in (False, True):
        monkeypatch.setattr(models, "bfloat16_pays", lambda device, native=native: native)
        made[native] = {row["dtype"] for row in run(settings, tmp_path / f"{native}.json")["rows"]}
    assert made == {False: {"float32"}, True: {"bfloat16"}}
    with pytest.raises(FoveateError, match=r"has small in float32, and here it is in bfloat16; set --dtype"):
        run(replace(settings, methods=("dart",)), tmp_path / "False.json", resume=True)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    SHAPES["llava-1.5"].picture().crop((0, 0, 160, 128)).save(path)
    return str(path)


def test_counted_operations_agree_with_the_formula(picture: str) -> None:
    one = subject("embedded", SpeedSettings(("embedded",), image=picture))
    model, processor = load_skeleton()
    width, height = processor.image_processor.target_size(*Image.open(picture).size)
    tokens = width * height // model.config.vision_config.unit**2
    for batch in (1, 2):
        measuring = PlanMeasurement(one, batch, 2, "sdpa")
        assert measuring.full_model_tokens == tokens
        for plan in (None, "divprune:25%", "downsample:10", "random:12 + pool:50%"):
            flops = measuring.exact(None if plan is None else Plan.of(plan))["flops"]
            assert flops["formula"] == pytest.approx(flops["counted"], rel=0.02)


def test_what_a_model_cannot_run_is_listed(small: SpeedSettings, picture: str) -> None:
    settings = replace(
        small, image=picture, models=("embedded",), methods=("tome",), budgets=("25%",), repeats=1, batches=(1,)
    )
    result = run(settings)
    assert [(line["model"], line["plan"]) for line in result["impossible"]] == [("embedded", "tome:25%")]
    assert [row["plan"] for row in result["rows"]] == ["full model", "random:25%", "downsample:25%"]


@pytest.mark.parametrize("name", [path.name for path in RESULTS.glob("selection-*.json")])
def test_results_of_the_earlier_command_are_read(name: str, tmp_path: Path) -> None:
    document = json.loads((RESULTS / name).read_text())
    header, lines = table(document)
    assert len(lines) == len(document["rows"])
    assert "TTFT, ms" in header and "preprocess, ms" not in header  # nobody measured it
    assert lines[0][header.index("TTFT, ms")] == f"{1000 * document['rows'][0]['seconds']['total']:,.0f}"
    plot(document, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size[0] > 500


def test_shapes_have_the_sizes_that_they_are_named_after() -> None:
    for name, tokens in (("llava-1.5", 576), ("llava-next", 576 + 48 * 49), ("qwen2.5-vl", 36 * 36)):
        shape = SHAPES[name]
        inputs = shape.inputs(shape.picture(), 4, 2)
        assert (inputs["input_ids"] == shapes.IMAGE).sum(dim=1).tolist() == [tokens, tokens]
        if name == "qwen2.5-vl":
            assert int(inputs["image_grid_thw"].prod(-1).sum()) == 2 * 4 * tokens
    with torch.device("meta"):
        assert sum(p.numel() for p in SHAPES["llava-1.5"].build(TEXTS["qwen2-0.5b"], None).parameters()) > 7e8


@pytest.mark.parametrize("name", ["llava-1.5", "llava-next", "qwen2.5-vl"])
def test_an_encoder_of_few_blocks_differs_in_these_alone(name: str) -> None:
    with torch.device("meta"):
        complete, short = (SHAPES[name].build(TEXTS["qwen2-0.5b"], blocks).state_dict() for blocks in (None, 9))
    assert short.keys() < complete.keys()
    assert all(complete[key].shape == value.shape for key, value in short.items())
    gone = complete.keys() - short.keys()
    assert gone and all(re.search(r"\.(blocks|layers)\.(9|[12]\d|3[01])\.", key) for key in gone)


def _clip_model(text: dict[str, Any], blocks: int | None) -> Any:
    """Qwen2.5-VL of the zoo, with patches of 14 pixels."""
    small = zoo()["qwen2.5-vl"].make().config
    small.vision_config.patch_size, small.vision_config.window_size = 14, 56
    small.vision_config.depth = blocks or small.vision_config.depth
    small.image_token_id, small.video_token_id = shapes.IMAGE, shapes.VIDEO
    small.text_config.vocab_size = shapes.VIDEO + 1
    return Qwen2_5_VLForConditionalGeneration(small).eval()


def test_clips_are_measured_at_every_number_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = replace(SHAPES["qwen2.5-vl"], name="clips", build=_clip_model)
    monkeypatch.setitem(SHAPES, "clips", shape)
    monkeypatch.setattr(shapes, "FRAME_SIDE", 56)
    settings = SpeedSettings(
        ("clips",), ("evs", "vidcom2"), ("50%",), frames=(3, 6), repeats=1, new_tokens=2, text_tokens=4, dtype="float32"
    )
    result = run(settings)
    rows = {(row["model"], row["plan"]): row for row in result["rows"]}
    for frames, tokens in ((3, 8), (6, 12)):
        for method in ("evs", "vidcom2", "random"):
            row = rows[f"clips, {frames} frames", f"{method}:50%"]
            assert (row["tokens_in"], row["tokens"], row["flops"]["formula"]) == (tokens, tokens // 2, None)
            assert row["control"] == "random:50%" and row["efficiency"] > 0
    assert not result["impossible"]
    clips = groups_of(replace(settings, methods=()), ("25%",))["50%"]
    assert "evs:50%" in clips and "divprune:50%" not in clips
    short = run(replace(settings, methods=("evs",), frames=(3,), encoder_blocks=1))
    names = {row["model"] for row in short["rows"]}
    assert names == {"clips with 1 encoder block, 3 frames"} and not short["impossible"]
    counted = [run_rows[0]["flops"]["counted"] for run_rows in (short["rows"], result["rows"])]
    assert counted[0] < counted[1]
    first, second = (torch.tensor(np.array(frame)) for frame in SHAPES["clips"].frames(2))
    assert torch.equal(first[:28], second[:28]) and not torch.equal(first, second)


def test_bytes_are_those_of_the_tensors() -> None:
    assert stored_bytes({"a": (torch.zeros(3), [torch.zeros(2, dtype=torch.int8)]), "b": "text"}) == 14
    tied = torch.nn.Linear(4, 4, bias=False)
    other = torch.nn.Linear(4, 4, bias=False)
    other.weight = tied.weight
    assert weight_bytes(torch.nn.Sequential(tied, other)) == 64


def test_plans_are_grouped_by_what_they_are_compared_at() -> None:
    settings = SpeedSettings(methods=("dart", "random"), plans=("divprune:25%", "divprune:64 + pool:50%"))
    groups = groups_of(settings, ("25%",))
    assert groups == {"25%": ["dart:25%", "divprune:25%"], "": ["divprune:64 + pool:50%"]}
    everything = groups_of(SpeedSettings(), ("8",))["8"]
    assert "divprune:8" in everything and not any("focusui" in plan for plan in everything)


def test_plans_in_a_list() -> None:
    assert plans_in(["a(x=1, y=[2, 3]):64; b:50%@8,16 ;", "c:1 + d:5"]) == (
        "a(x=1, y=[2, 3]):64",
        "b:50%@8,16",
        "c:1 + d:5",
    )
    assert plans_in(None) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("nothing",)}, "no model 'nothing'; possible are llava-1.5"),
        ({"models": ()}, "at least one model"),
        ({"methods": ("magic",)}, "methods .*magic.* are not known"),
        ({"plans": ("divprune",)}, "divprune needs a budget"),
        ({"repeats": 0}, "at least one model"),
        ({"new_tokens": 1}, "two new tokens"),
        ({"batches": (0,)}, "at least one prompt"),
        ({"dtype": "int8"}, "float32"),
        ({"text": "llama"}, "qwen2-0.5b"),
        ({"device": "tpu"}, "cpu and cuda"),
        ({"frames": (16,)}, "clips have at least one frame, and are measured on qwen2.5-vl"),
        ({"frames": (0,), "models": ("qwen2.5-vl",)}, "at least one frame"),
        ({"encoder_blocks": 0}, "an encoder has at least one block"),
        ({"encoder_blocks": 1, "models": ("embedded",)}, "only those of llava-1.5.* are shortened"),
    ],
)
def test_what_is_not_possible_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        replace(SpeedSettings(), **change)


def test_attention_that_is_not_installed_is_refused(small: SpeedSettings) -> None:
    if torch.cuda.is_available():
        pytest.skip("it may be installed where there is a GPU")
    with pytest.raises(FoveateError, match="attention 'flash_attention_2' is not available here"):
        subject("small", replace(small, attention="flash_attention_2"))


def test_the_command_writes_the_file_and_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    assert cli.main(["bench", "speed", "--plans", "dart:4", "--budgets", "8", "-o", str(path)]) == 2
    assert "--budgets are for --methods" in capsys.readouterr().err
    line = ["bench", "speed", "--models", "small", "--methods", "dart", "--budgets", "4", "--repeats", "1"]
    line += ["--new-tokens", "2", "--device", "cpu", "--dtype", "float32", "--threads", "1", "-o", str(path)]
    assert cli.main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())
    assert cli.main([*line, "--resume", "--plot", str(tmp_path / "plot.png")]) == 0
    assert "efficiency" in capsys.readouterr().out and (tmp_path / "plot.png").exists()
    assert cli.main([*line, "--batch", "one"]) == 2
    assert "--batch 'one' must be comma-separated whole numbers" in capsys.readouterr().err


def test_a_plan_saves_more_of_a_longer_clip():
    """What docs/video.md says of the committed results."""
    rows = read_results(RESULTS / "speed-clips-cpu.json")["rows"]
    speed_ups: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["method"] != FULL_MODEL and row["budget"] == "10%":
            speed_ups.setdefault(row["plan"], {})[row["tokens_in"]] = row["speed_up"]
    for plan, by_length in speed_ups.items():
        assert sorted(by_length) == [512, 2048, 8192], plan
        assert list(by_length.values()) == sorted(by_length.values()), plan
    methods = [row for row in rows if row["efficiency"] is not None and row["method"] != "downsample"]
    assert min(row["efficiency"] for row in methods) > 0.94


@pytest.mark.parametrize("path", sorted(RESULTS.glob("speed-clips-*.json")), ids=lambda path: path.stem)
def test_choosing_tokens_of_clips_costs_next_to_nothing(path: Path) -> None:
    """No efficiency is below 0.95 by more than two standard errors of the two times that it divides."""
    rows = {(row["model"], row["group"], row["plan"]): row for row in read_results(path)["rows"]}
    for (model, group, plan), row in rows.items():
        if row["efficiency"] is not None:
            times = [one["spread"]["ttft"]["all"] for one in (row, rows[model, group, row["control"]])]
            error = math.hypot(*map(median_error, times))
            assert row["efficiency"] * (1 + 2 * error) > 0.95, (model, plan)

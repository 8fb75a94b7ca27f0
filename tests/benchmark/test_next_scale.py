"""`foveate bench next-scale` on a tiny model, and the page's table of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from foveate import cli
from foveate.benchmark import next_scale as benchmark
from foveate.core.errors import FoveateError
from foveate.models.next_scale import NextScaleConfig, NextScaleForImageGeneration, compress_cache

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

from generator import tables

PLANS = ("hack:100%", "hack:40%", "scalekv(window=1):40%", "random:40%", "scalekv:40%")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = NextScaleConfig(
        image_size=16,
        scales=[1, 2, 3, 4],
        hidden_size=16,
        num_hidden_layers=2,
        tokenizer_width=4,
        initializer_range=0.3,
    )
    path = tmp_path_factory.mktemp("model") / "tiny"
    NextScaleForImageGeneration(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory) -> tuple[dict, Path]:
    root = tmp_path_factory.mktemp("bench")
    settings = benchmark.NextScaleSettings(str(folder), PLANS, samples=4, held_out=4, repeats=2)
    path = root / "benchmarks" / "results" / "next-scale-tiny.json"
    return benchmark.run(settings, path, command="a command", picture=root / "grid.png"), root


def test_every_plan_has_its_row(measured) -> None:
    document, root = measured
    rows = {row["plan"]: row for row in document["rows"]}
    assert list(rows) == ["full model", *PLANS[:4]]
    assert [line["plan"] for line in document["impossible"]] == ["scalekv:40%"]
    assert "window" in document["impossible"][0]["reason"]
    written = json.loads((root / "benchmarks/results/next-scale-tiny.json").read_text())
    assert (written["kind"], written["rows"]) == ("next-scale", document["rows"])
    full = rows["full model"]
    # 14 tokens before the last map, 2 layers, keys and values of 16 channels, 4 pictures with unconditional halves.
    assert full["kept_bytes"] == 14 * 2 * 2 * 16 * 8 * 4
    assert full["peak_bytes"] == 30 * 2 * 16 * 8 * 4 + 14 * 2 * 16 * 8 * 4
    for row in rows.values():
        assert len(row["seconds"]["all"]) == 2
        assert row["maps"][-1] == 0 and max(row["maps"]) == row["kept_bytes"]
        assert row["kept_share"] == row["kept_bytes"] / full["kept_bytes"]
    for name in ("full model", "hack:100%"):
        row = rows[name]
        assert (row["equal"], row["picture_mse"], row["best_equal"]) == (1, 0, 1)
        assert (row["nats"], row["kept_bytes"]) == (full["nats"], full["kept_bytes"])
    for name in PLANS[1:4]:
        row = rows[name]
        assert row["average"] == 6 and row["kept_share"] < 0.6
        assert row["nats"] != full["nats"] and 0 <= row["best_equal"] < 1
        assert row["equal_by_map"][:2] == [1, 1]  # nothing was dropped before them


def test_figures_are_those_of_the_model(measured, folder) -> None:
    document, _ = measured
    model = benchmark.load(str(folder))
    labels = torch.arange(4)
    full = model.generate(labels)
    with compress_cache(model, "hack:40%", profile=benchmark.calibrate(model, seed=1)) as handle:
        sample = model.generate(labels)
        report = handle.report(sample.cache)
    row = document["rows"][2]
    assert row["plan"] == "hack:40%"
    assert row["equal"] == pytest.approx(float((sample.token_ids == full.token_ids).float().mean()))
    assert row["picture_mse"] == pytest.approx(float((sample.pixel_values - full.pixel_values).square().mean()))
    assert (row["kept_bytes"], row["peak_bytes"]) == (report["kept_bytes"], report["peak_bytes"])


def test_a_picture_with_a_row_for_every_plan(measured) -> None:
    with Image.open(measured[1] / "grid.png") as image:
        assert image.size == (170 + 4 * 36, 4 + 5 * 36)


def test_rows_of_a_picture_are_in_the_order_of_the_plans(folder, tmp_path, monkeypatch) -> None:
    drawn: list[list[str]] = []
    monkeypatch.setattr(benchmark, "grid", lambda settings, samples, path: drawn.append(list(samples)))
    settings = benchmark.NextScaleSettings(str(folder), PLANS, samples=1, held_out=0, repeats=1)
    document = benchmark.run(settings, tmp_path / "result.json", picture=tmp_path / "grid.png")
    assert drawn == [[row["plan"] for row in document["rows"]]]
    assert drawn[0][1:] == [plan for plan in PLANS if plan in drawn[0]]


def test_resuming_measures_nothing_again(measured, folder) -> None:
    document, root = measured
    path = root / "benchmarks/results/next-scale-tiny.json"
    settings = benchmark.NextScaleSettings(str(folder), PLANS, samples=4, held_out=4, repeats=2)
    assert benchmark.run(settings, path, resume=True) == json.loads(json.dumps(document))
    assert benchmark.run(settings, path, resume=True, picture=root / "grid.png")["rows"] == document["rows"]
    with pytest.raises(FoveateError, match="does not hold the images of a picture"):
        benchmark.run(settings, path, resume=True, picture=root / "other.png")
    with pytest.raises(FoveateError, match="draws nothing"):
        benchmark.run(benchmark.NextScaleSettings(benchmark.LARGE), path, picture=root / "other.png")
    with pytest.raises(FoveateError, match="other settings"):
        benchmark.run(benchmark.NextScaleSettings(str(folder), PLANS, samples=5), path, resume=True)


def test_the_page_shows_the_file(measured) -> None:
    document, root = measured
    page = "<!-- generated: next-scale -->\nold\n<!-- end -->\n"
    text = tables.fill(page, root, root / "page.md")
    row = document["rows"][2]
    assert f"| hack:40% | {row['kept_bytes'] / 1024:,.0f} | {100 * row['kept_share']:.1f} |" in text
    assert "`a command`" in text and "- scalekv:40%: scalekv: a layer may hold" in text
    assert "Not measured" in tables.fill(page, root / "nowhere", root / "page.md")


def test_the_command(folder, tmp_path, capsys) -> None:
    out = tmp_path / "out.json"
    line = ["bench", "next-scale", "--model", str(folder), "--samples", "1", "--repeats", "1", "--held-out", "0"]
    assert cli.main([*line, "--plans", "recent:5; recent:7", "-o", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["average"] for row in document["rows"]] == [14, 5, 7]
    assert "nats" not in document["rows"][0]
    for wrong, message in (
        (["--model", str(tmp_path)], "not a folder with a model"),
        (["--plans", "fastv:30%"], "possible are hack"),
        (["--samples", "0"], "samples is 0"),
    ):
        assert cli.main([*line, *wrong, "-o", str(out), "--json"]) == 2
        assert message in json.loads(capsys.readouterr().out)["error"]

"""The benchmark as a whole on small models: content of the file, resuming, errors, table and picture."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from foveate import cli
from foveate.benchmark import competitors, profiling
from foveate.benchmark.competitors import COMPETITORS
from foveate.benchmark.encoders import EncoderSettings, compare, markdown, plot
from foveate.core.errors import FoveateError
from tests.benchmark.small_geometry import SMALL

TINY = EncoderSettings(sizes=(80,), repeats=2, text_tokens=4, geometry=SMALL)


def test_a_result_has_what_tables_need(tmp_path):
    path = tmp_path / "results" / "encoders-cpu.json"
    lines = []
    results = compare(TINY, path, command="foveate bench encoders", report=lines.append)
    assert json.loads(path.read_text()) == results
    assert list(path.parent.iterdir()) == [path]
    assert lines[-1] == "80 px"
    assert [row["name"] for row in results["rows"]] == list(COMPETITORS)
    for row in results["rows"]:
        assert row["spread"]["seconds"]["min"] <= row["seconds"] <= row["spread"]["seconds"]["max"]
        assert 0 < row["seconds"] < row["ttft_seconds"]
        assert len(row["spread"]["ttft_seconds"]["all"]) == 2
        assert abs(row["flops"] - row["flops_formula"]) <= 0.02 * row["flops"]
    assert [row["tokens"] for row in results["rows"]] == [4, 9, 9, 25]
    over = {ratio["over"]: ratio for ratio in results["ratios"]}
    assert over["siglip2"]["tokens"] == 25 / 4
    # 7B: 6.5e9 weights outside the embeddings take two operations a token each, far more than these small encoders.
    assert over["siglip2"]["flops_before_7b"] == pytest.approx((25 + 4) / (4 + 4), rel=0.03)
    assert {"python", "torch", "transformers", "foveate"} == set(results["versions"])
    assert all(claim["measured"] is None for claim in results["claims"])  # they are about 1024 px
    text = markdown(results)
    assert text.count("| ViT-UHD |") == 1 and "Weights are random" in text
    plot(results, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size[0] > 500


def test_resume_keeps_what_was_measured(tmp_path):
    path = tmp_path / "result.json"
    first = compare(TINY, path)
    lines = []
    second = compare(replace(TINY, sizes=(80, 120)), path, resume=True, report=lines.append)
    assert "80 px" not in lines and "120 px" in lines
    assert second["rows"][:4] == first["rows"]
    assert [row["pixels"] for row in second["rows"]] == [80] * 4 + [120] * 4
    again = compare(replace(TINY, sizes=(80, 120)), path, resume=True, command="again", report=lines.append)
    assert again == second | {"command": "again"} == json.loads(path.read_text())
    with pytest.raises(FoveateError, match=r"other settings \(repeats\)"):
        compare(replace(TINY, repeats=1), path, resume=True)
    path.write_text("[]")
    with pytest.raises(FoveateError, match="not a result"):
        compare(TINY, path, resume=True)


def test_a_formula_that_is_wrong_stops_the_benchmark(monkeypatch):
    monkeypatch.setattr(COMPETITORS["moonvit"], "flops", lambda self, pixels: 1000)
    with pytest.raises(FoveateError, match="FLOPs of MoonViT"):
        compare(replace(TINY, encoders=("moonvit",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoders": ("vit",)}, "possible are vit-uhd"),
        ({"sizes": ()}, "between 1 and 4096"),
        ({"repeats": 0}, "at least 1"),
        ({"dtype": "int8"}, "float32"),
        ({"device": "tpu"}, "cpu and cuda"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(FoveateError, match=message):
        replace(TINY, **change)


def test_peak_memory_sees_what_is_freed_again():
    need = 64 * 2**20
    peak = profiling.peak_memory(lambda: torch.ones(need // 4).sum(), torch.device("cpu"))
    assert peak is None or 0.9 * need < peak < 2 * need  # the kernel counts resident pages in batches


def test_the_command_writes_the_file_and_prints_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(competitors, "Geometry", lambda: SMALL)
    path = tmp_path / "result.json"
    line = [
        "bench",
        "encoders",
        "--sizes",
        "80",
        "--repeats",
        "1",
        "--device",
        "cpu",
        "-o",
        str(path),
        "--threads",
        "1",
    ]
    assert cli.main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())
    assert cli.main([*line, "--resume", "--plot", str(tmp_path / "plot.png")]) == 0
    assert "ViT-UHD" in capsys.readouterr().out
    assert (tmp_path / "plot.png").exists()


def test_quick_is_one_small_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(competitors, "Geometry", lambda: SMALL)
    options = ["--device", "cpu", "--threads", "1", "-o", str(tmp_path / "x.json"), "--json"]
    assert cli.main(["bench", "encoders", "--quick", *options]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["pixels"] for row in rows} == {256}
    assert {len(row["spread"]["seconds"]["all"]) for row in rows} == {2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "big"], "whole numbers"),
        (["--encoders", "vit-uhd,clip"], "possible are vit-uhd"),
        (["--dtype", "int8"], "possible are float32"),
    ],
)
def test_a_bad_line_is_one_sentence(arguments, message, capsys, tmp_path):
    assert cli.main(["bench", "encoders", "--device", "cpu", "-o", str(tmp_path / "x.json"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())

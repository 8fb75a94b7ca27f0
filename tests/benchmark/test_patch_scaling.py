"""The benchmark of patch sizes on small encoders: rows, growth, resuming, the command and the picture."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from foveate import cli
from foveate.benchmark.patch_scaling import PatchScalingSettings, compare, plot, sentences, table
from foveate.core.errors import FoveateError

SMALL = PatchScalingSettings(patch_sizes=(16, 8), image_size=32, num_hidden_layers=1, repeats=2)


def test_both_encoders_have_the_width_and_the_tokens_of_the_settings():
    encoders = replace(SMALL, hidden_size=128, num_hidden_layers=2).encoders(8)
    with torch.no_grad():
        shapes = {
            name: encoder(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape for name, encoder in encoders.items()
        }
    assert shapes == {"plain_vit": (1, 16, 128), "adventurer": (1, 16, 128)}
    assert all(len(encoder.blocks) == 2 for encoder in encoders.values())


def test_a_result_has_rows_growth_and_ratios(tmp_path):
    path = tmp_path / "results" / "patch-scaling-cpu.json"
    lines = []
    document = compare(SMALL, path, command="a command", report=lines.append)
    assert json.loads(path.read_text()) == document
    assert lines == ["patches of 16 px", "patches of 8 px"]
    rows = document["rows"]
    assert [(row["encoder"], row["patch_size"], row["tokens"]) for row in rows] == [
        ("plain_vit", 16, 4),
        ("plain_vit", 8, 16),
        ("adventurer", 16, 4),
        ("adventurer", 8, 16),
    ]
    for row in rows:
        assert 0 < row["spread"]["min"] <= row["seconds"] <= row["spread"]["max"]
    for growth, (coarse, fine) in zip(document["growth"], (rows[:2], rows[2:]), strict=True):
        assert growth["patch_sizes"] == [16, 8]
        assert 4 ** growth["seconds"] == pytest.approx(fine["seconds"] / coarse["seconds"])
    assert [ratio["seconds"] for ratio in document["ratios"]] == [
        pytest.approx(rows[index]["seconds"] / rows[index + 2]["seconds"]) for index in range(2)
    ]
    header, cells = table(document)
    assert all(len(row) == len(header) for row in cells) and cells[1][:3] == ["ViT (SDPA)", "8", "16"]
    assert sentences(document)[1].startswith(f"At 8 px the ViT took {document['ratios'][1]['seconds']:.2f} times")
    plot(document, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size[0] > 500


def test_what_was_too_small_to_measure_has_no_growth(tmp_path, monkeypatch):
    peaks = iter([1, 1, 0, 1000, 4000, None])
    monkeypatch.setattr("foveate.benchmark.profiling.peak_memory", lambda run, device: (run(), next(peaks))[1])
    document = compare(SMALL)
    assert [row["peak_bytes"] for row in document["rows"]] == [0, 4000, 1000, None]
    assert [growth["peak_bytes"] for growth in document["growth"]] == [None, None]
    assert [ratio["peak_bytes"] for ratio in document["ratios"]] == [None, None]
    assert "memory" not in "".join(sentences(document))
    assert table(document)[1][3][5:] == ["", ""]
    plot(document, tmp_path / "plot.png")


def test_resume_keeps_what_was_measured(tmp_path):
    path = tmp_path / "result.json"
    first = compare(replace(SMALL, patch_sizes=(16,)), path)
    lines = []
    second = compare(SMALL, path, resume=True, report=lines.append)
    assert lines == ["patches of 8 px"]
    assert [row for row in second["rows"] if row["patch_size"] == 16] == first["rows"]
    assert math.isfinite(second["growth"][0]["seconds"])
    with pytest.raises(FoveateError, match=r"other settings \(repeats\)"):
        compare(replace(SMALL, repeats=1), path, resume=True)
    path.write_text(json.dumps({"kind": "speed", "settings": {}, "rows": []}))
    with pytest.raises(FoveateError, match="not a result of `foveate bench patch-scaling`"):
        compare(SMALL, path, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_sizes": (16, 5)}, r"patch sizes \[16, 5\] must divide the 32 pixels"),
        ({"patch_sizes": ()}, "must divide"),
        ({"patch_sizes": (0,)}, "must divide"),
        ({"hidden_size": 96}, "multiple of 64, not 96"),
        ({"repeats": 0}, "at least 1"),
        ({"dtype": "int8"}, "possible are float32"),
        ({"device": "tpu"}, "cpu and cuda"),
        ({"scan": "cuda"}, "torch or mamba_ssm"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(FoveateError, match=message):
        replace(SMALL, **change).encoders(8)


def test_the_command_writes_the_file_and_prints_it(tmp_path, capsys):
    path, picture = tmp_path / "result.json", tmp_path / "plot.png"
    line = ["bench", "patch-scaling", "--patch-sizes", "16,8", "--image-size", "32", "--layers", "1", "--device", "cpu"]
    line += ["--threads", "1", "--repeats", "1", "-o", str(path)]
    assert cli.main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())
    assert cli.main([*line, "--resume", "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "Adventurer (scan)" in printed and "At 8 px the ViT took" in printed
    assert picture.exists()
    assert cli.main([*line, "--patch-sizes", "5"]) == 2
    assert "must divide the 32 pixels" in capsys.readouterr().err

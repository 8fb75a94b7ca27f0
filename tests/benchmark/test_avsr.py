"""The benchmark of audio-visual speech: trains, recognizes, resumes, and counts word errors."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate import compat, shipped
from foveate.benchmark import avsr
from foveate.benchmark.results import read_results
from foveate.core.errors import FoveateError
from foveate.training.avsr import AVSRRecipe, train_language_model
from foveate.training.avsr.recipe import read_recipe
from foveate.training.avsr.text import PROMPT, build_tokenizer, text_batch, transcripts
from foveate.training.callbacks import StopRequest
from foveate.training.run_directory import quiet

RECIPE = AVSRRecipe(
    utterances=6, noise="white", width=32, encoder_layers=1, text_layers=1, encoder_steps=2, encoder_batch_size=2,
    text_steps=4, text_batch_size=4, steps=2, batch_size=4,
)  # fmt: skip
SETTINGS = avsr.AVSRSettings(("audio-4", "mome"), RECIPE, held_out=2, snrs=(None, 0.0))


@pytest.mark.parametrize(
    ("reference", "hypothesis", "count"),
    [("a b c", "a b c", 0), ("a b c", "a x c", 1), ("a b c", "b c", 1), ("a b c", "", 3), ("a b", "a c b d", 2)],
)
def test_word_errors(reference: str, hypothesis: str, count: int) -> None:
    assert avsr.word_errors(reference.split(), hypothesis.split()) == count


def test_text_is_masked_to_the_transcript() -> None:
    tokenizer = build_tokenizer()
    ids, mask, labels = transcripts(tokenizer, ["one two", "three"])
    assert tokenizer.decode(ids[0]) == f"<s> {PROMPT} one two </s>"
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert tokenizer.decode(labels[1][labels[1] != -100]) == "three </s>"
    ids, _, labels = text_batch(tokenizer, 8, random.Random(0))
    for row, wanted in zip(ids, labels, strict=True):
        text = tokenizer.decode(row[row != 0]).split(f"{PROMPT} ")
        assert text[1] == tokenizer.decode(wanted[wanted != -100])
        assert text[0].startswith("<s> <audio>") or text[0].startswith("<s> <video>")


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    whole = train_language_model(RECIPE, tokenizer, tmp_path / "whole", quiet, StopRequest())
    assert whole is not None
    stop = StopRequest()
    parts = tmp_path / "parts"
    assert train_language_model(RECIPE, tokenizer, parts, lambda *_: stop.request(), stop) is None
    with pytest.raises(FoveateError, match="another recipe"):
        train_language_model(dataclasses.replace(RECIPE, seed=1), tokenizer, parts, quiet, StopRequest())
    resumed = train_language_model(RECIPE, tokenizer, parts, quiet, StopRequest())
    assert resumed is not None
    with pytest.raises(FoveateError, match="another recipe"):  # of a finished one, too
        train_language_model(dataclasses.replace(RECIPE, seed=1), tokenizer, parts, quiet, StopRequest())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_run_resumes_and_refuses_other_settings(tmp_path: Path) -> None:
    path, runs = tmp_path / "avsr.json", tmp_path / "runs"
    lines: list[str] = []
    document = avsr.run(SETTINGS, path, runs, report=lines.append)
    assert document["finished"]
    assert len(document["rows"]) == 2 * (1 + 4)
    for row in document["rows"]:
        assert row["words"] == 6 and row["low"] <= row["wer"] <= row["high"]
        assert row["wer"] == pytest.approx(row["errors"] / 6)
        assert row["tokens"]["audio"] == 100 // row["audio"]
    header, table = avsr.table(document)
    assert header[2:] == ["clean", "0 dB"] and len(table) == 5 and table[0][0] == "llama-avsr: audio 4"
    picture = tmp_path / "avsr.png"
    avsr.draw(document, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    # Trained models are read again, and their rows are the same.
    path.unlink()
    again = avsr.run(SETTINGS, path, runs, report=lines.append)
    assert again["rows"] == document["rows"]
    with pytest.raises(FoveateError, match="other settings"):
        avsr.run(dataclasses.replace(SETTINGS, held_out=3), path, runs)
    # Another table cannot take what the folder of runs has of other settings.
    other = tmp_path / "other.json"
    with pytest.raises(FoveateError, match="2 utterances in place of 3"):
        avsr.run(dataclasses.replace(SETTINGS, held_out=3), other, runs)
    with pytest.raises(FoveateError, match="another recipe"):
        avsr.run(dataclasses.replace(SETTINGS, recipe=dataclasses.replace(RECIPE, steps=3)), other, runs)


@pytest.mark.skipif(
    not compat.HAS_OMNI_THINKER_MODEL, reason="this version of transformers lacks what EchoingPixels extends"
)
def test_a_pool_is_measured_with_its_share_of_sound(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, systems=("echoing-pixels",))
    document = avsr.run(settings, tmp_path / "avsr.json", tmp_path / "runs")
    rows = document["rows"]
    assert document["finished"] and len(rows) == 3 * 2 * 2
    for row in rows:
        assert row["tokens"]["pool"] == round(100 * row["ratio"])
        assert 0 <= row["sound"]["low"] <= row["sound"]["share"] <= row["sound"]["high"] <= 1
    header, table = avsr.table(document, pooled=True)
    assert header[2:] == ["clean", "0 dB"]
    assert [line[:2] for line in table[:2]] == [["echoing-pixels: 50 %", "50"], ["echoing-pixels: 50 %, random", "50"]]
    assert avsr.table(document)[1] == table and avsr.table(document, pooled=False)[1] == []
    shares = avsr.sound_table(document)[1]
    assert [line[1] for line in shares] == ["50", "20", "10"]
    assert shares[0][2] == f"{100 * rows[0]['sound']['share']:.1f}"
    picture = tmp_path / "avsr.png"
    avsr.draw(document, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    # What it starts with was trained for it, and is measured where it is asked for.
    assert (tmp_path / "runs" / "pool" / "config.json").is_file()
    settings = dataclasses.replace(SETTINGS, systems=("pool", "echoing-pixels"))
    both = avsr.run(settings, tmp_path / "both.json", tmp_path / "runs")["rows"]
    assert [row["tokens"] for row in both[:2]] == [{"pool": 100}] * 2 and both[2:] == rows
    assert avsr.label(both[0]) == "pool: all" and both[0]["sound"]["share"] == 0.5


def test_the_recipe_of_the_package_has_the_defaults(tmp_path: Path) -> None:
    assert read_recipe(shipped.recipe("recipe:avsr", ".json")) == AVSRRecipe()
    for text, sentence in (
        ('{"stepps": 3}', "stepps"),
        ("[1]", "no recipe"),
        ("{", "no recipe"),
        ('{"steps": 0}', "steps is 0"),
        ('{"steps": 1.5}', "settings.steps: expected a whole number"),
        ('{"snrs": [null, "loud"]}', r"settings.snrs\[1\]: expected a number"),
        ('{"width": 30}', "4 heads do not divide"),
        ('{"noise": "rain"}', "possible are babble, white"),
    ):
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        with pytest.raises(FoveateError, match=sentence):
            read_recipe(tmp_path / "a.json")


def test_invalid_settings() -> None:
    with pytest.raises(FoveateError, match="no training 'asr'"):
        avsr.AVSRSettings(("asr",))
    with pytest.raises(FoveateError, match="held_out is 0"):
        avsr.AVSRSettings(held_out=0)
    with pytest.raises(FoveateError, match="steps is 0"):
        AVSRRecipe(steps=0)
    with pytest.raises(FoveateError, match="snrs names no level"):
        AVSRRecipe(snrs=())


def test_the_page_says_what_was_measured() -> None:
    """Sentences of docs/speech.md, on the committed results."""
    root = Path(__file__).parents[2]
    rows = read_results(root / "benchmarks/results/avsr.json")["rows"]
    lines: dict[str, dict[float | None, dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault(avsr.label(row), {})[row["snr"]] = row
    levels = [None, 10.0, 5.0, 0.0, -5.0, -10.0]
    error = {name: [line[snr]["wer"] for snr in levels] for name, line in lines.items()}
    both, sound = (error[f"llama-avsr: audio 4{lips}"][4] for lips in (", video 2", ""))
    assert both / sound == pytest.approx(0.1, abs=0.02)  # about a tenth at -5 dB
    pairs = ("audio 4, video 2", "audio 4, video 5", "audio 16, video 2", "audio 16, video 5")
    schemes = ("mtsk", "mtsk-shared-and-per-rate", "mtsk-shared")
    alone, both, shared = (sum(sum(error[f"{scheme}: {pair}"]) for pair in pairs) for scheme in schemes)
    assert max(alone, both) < shared
    for pair in (pairs[0], pairs[-1]):  # intervals of one pair of rates overlap
        for snr in levels:
            three = [lines[f"{name}: {pair}"][snr] for name in ("llama-avsr", "mome", "mtsk")]
            assert max(row["low"] for row in three) < min(row["high"] for row in three)

    share = {name: [line[snr]["sound"]["share"] for snr in levels] for name, line in lines.items() if "%" in name}
    fifth = zip(error["echoing-pixels: 20 %"], error["pool: all"], error["echoing-pixels: 20 %, random"], strict=True)
    assert all(some - every < 0.03 and some < drawn for some, every, drawn in fifth)
    for count in ("20 %", "10 %"):
        falling = share[f"echoing-pixels-no-layer: {count}"]
        assert falling == sorted(falling, reverse=True) and falling[-1] < 0.34 * falling[0]
    for name in ("echoing-pixels", "echoing-pixels-two-layers"):
        for count in ("50 %", "20 %", "10 %"):
            assert max(share[f"{name}: {count}"]) - min(share[f"{name}: {count}"]) < 0.07
    assert share["echoing-pixels: 50 %"] == sorted(share["echoing-pixels: 50 %"])
    two = "echoing-pixels-two-layers"
    for count in ("50 %", "20 %", "10 %"):
        assert sum(error[f"{two}: {count}, random"]) < sum(error[f"{two}: {count}"]) + 0.02

"""Compression together with quantised weights and caches: on small models of real classes, and on the embedded one."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate import FoveateError, cli, compat
from foveate.benchmark import joint, quantised
from foveate.benchmark.joint import ALL, JointSettings, run, table
from foveate.benchmark.nbytes import weight_bytes
from foveate.benchmark.quantised import CACHES, FULL, WEIGHTS, Int8Layer, cached, possible, quantise_weights
from foveate.benchmark.scores import scores
from foveate.kv_cache.nbytes import cache_bytes
from tests.families.zoo import Specimen, zoo

#: Mean difference of logits from those of the full cache or weights, as a share of their spread.
CLOSE = {"int8": 0.02, "fp8": 0.1, "int4": 0.25, "int2": 1.5, "nf4": 0.4}


def _logits(model: Any, inputs: dict[str, Any], cache: str) -> tuple[torch.Tensor, Any, int]:
    """Logits (4, B, V) of four tokens that do not depend on them, the cache, and its bytes as `cached` saw them."""
    with cached(model, cache) as seen:
        output = model.generate(
            **inputs,
            max_new_tokens=4,
            do_sample=False,
            prefix_allowed_tokens_fn=lambda row, ids: [5 + len(ids) % 7],
            return_dict_in_generate=True,
            output_logits=True,
        )
    ((size, prompts),) = seen
    assert prompts == 2
    return torch.stack(output.logits), compat.cache_of(output), size


def _inputs(specimen: Specimen) -> dict[str, Any]:
    return specimen.prompts(specimen.model(), [((4, 4),), ((4, 4), (4, 6))])


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl"])
@pytest.mark.parametrize(
    "cache",
    # optimum-quanto compiles its kernels when they are first used, which takes minutes.
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("int2", "int4") else [])
        for name in CACHES
        if name != FULL
    ],
)
def test_a_quantised_cache_is_as_short_as_a_full_one(name: str, cache: str) -> None:
    if cache not in possible(CACHES):
        pytest.skip(f"{cache} needs a package that is not installed")
    specimen = zoo()[name]
    model, inputs = specimen.model(), _inputs(specimen)
    with foveate.compress(model, "divprune:3") as handle:
        full, plain, plain_bytes = _logits(model, inputs, FULL)
        prompt_bytes = handle.report().kv_bytes
        small, kept, small_bytes = _logits(model, inputs, cache)
        assert handle.report().tokens_kept == 9
        assert handle.report().kv_bytes < 0.7 * prompt_bytes
    assert torch.equal(small[0], full[0])  # the prompt is read before it is quantised
    error = (small[1:] - full[1:]).abs().mean() / full.std()
    assert 0 < error < CLOSE[cache]
    assert kept.get_seq_length() == plain.get_seq_length() > len(kept.foveate_state.columns[0])
    assert cache_bytes(kept)[0] < 0.6 * cache_bytes(plain)[0]
    assert (small_bytes, plain_bytes) == (sum(cache_bytes(kept)), sum(cache_bytes(plain)))
    assert "generate" not in vars(model)


def test_int8_rounds_every_token_and_head_by_its_largest_value() -> None:
    values = torch.randn(2, 3, 5, 8) * torch.tensor([0.01, 1, 100]).view(1, 3, 1, 1)
    values[0, 0, 0] = 0
    layer = Int8Layer()
    back = layer._dequantize(layer._quantize(values, axis=0))
    for batch, head, token in ((0, 0, 0), (0, 1, 2), (1, 2, 4)):
        step = values[batch, head, token].abs().max() / 127
        assert ((back - values)[batch, head, token].abs() <= step * 0.51).all()


@pytest.mark.parametrize("kind", [name for name in WEIGHTS if name != FULL])
def test_quantised_weights_are_smaller_and_answer_alike(kind: str) -> None:
    if kind not in possible(WEIGHTS):
        with pytest.raises(FoveateError, match=f"{kind} need a package .*; possible here are full"):
            quantise_weights(zoo()["llava"].model(), kind)
        return
    model, processor = foveate.load(device="cpu", plan=None)
    text = model.model.language_model
    before, inner = weight_bytes(model), sum(p.numel() for p in text.layers.parameters())
    ids = torch.arange(97, 120)[None]
    with torch.no_grad():
        full = model(input_ids=ids).logits
        quantise_weights(model, kind)
        error = (model(input_ids=ids).logits - full).abs().mean() / full.std()
    assert 0 < error < CLOSE[kind]
    # Of four bytes a weight of the layers one is left, or half a one, and the scales.
    saved = (before - weight_bytes(model)) / inner
    assert (3.3 if kind == "nf4" else 2.5) < saved < (3.6 if kind == "nf4" else 3)
    with foveate.compress(model, "divprune:3"), cached(model, "int8"):
        inputs = foveate.answering.conversations.inputs_of(model, processor, _page(), "What is written here?")
        model.generate(**inputs, max_new_tokens=2, do_sample=False)


def _page() -> Any:
    from foveate.synthetic import render

    return render("read_word", 0, split="heldout", size=(128, 128)).image


SMALL = JointSettings(
    plans=("pool:25%",), weights=("int8",), caches=("int8",), tasks=("read_word", "chat"), count=1, sides=(128, 160)
)


@pytest.mark.skipif("int8" not in possible(WEIGHTS), reason="torchao is not installed")
def test_a_run_asks_every_plan_with_all_weights_and_caches(tmp_path: Path) -> None:
    path = tmp_path / "joint.json"
    result = run(SMALL, path, command="foveate bench joint")
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    rows = {(r["plan"], r["kind"], r["cache"], r["task"]): r for r in result["rows"]}
    assert len(rows) == len(result["rows"]) == 4 * 2 * 2 * 3 and not result["impossible"]
    for (plan, kind, cache, task), row in rows.items():
        whole = rows["full model", FULL, FULL, task]
        assert row["weights"] == ("float32" if kind == FULL else "int8")
        assert len(row["rights"]) == row["count"] and row["rights"].count("1") == row["right"]
        # Answers about one image are drawn together, as in the accuracy benchmark.
        assert (len(row["items"]) == row["count"]) if task != "read_word" else ("items" not in row)
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert (row["tokens_kept"] < row["tokens_in"]) == (plan != "full model")
        if whole["accuracy"]:
            parts = [rows[plan, FULL, FULL, task], rows["full model", kind, FULL, task]]
            parts.append(rows["full model", FULL, cache, task])
            expected = parts[0]["relative"] * parts[1]["relative"] * parts[2]["relative"]
            assert row["parts"] == pytest.approx(expected)
            assert row["relative"] == pytest.approx(row["accuracy"] / whole["accuracy"])
        else:
            assert row["relative"] is None and row["parts"] is None
    sizes = {kind: rows["full model", kind, FULL, ALL]["bytes"]["weights"] for kind in (FULL, "int8")}
    assert sizes["int8"] < 0.7 * sizes[FULL]
    kept = {key: row["bytes"]["kv"] for key, row in rows.items() if key[3] == ALL}
    product, full = kept["pool:25%", "int8", "int8", ALL], kept["full model", FULL, FULL, ALL]
    assert product < kept["pool:25%", FULL, FULL, ALL] < full and product < kept["full model", FULL, "int8", ALL] < full
    header, lines = table(result)
    assert len(lines) == 16 and {len(line) for line in lines} == {len(header)}

    said: list[str] = []
    assert run(SMALL, path, resume=True, report=said.append)["rows"] == json.loads(path.read_text())["rows"]
    assert not said
    more = run(replace(SMALL, plans=("pool:25%", "dart:25%")), path, resume=True)
    assert len(more["rows"]) == 5 * 2 * 2 * 3
    with pytest.raises(FoveateError, match=r"other settings \(count\)"):
        run(replace(SMALL, count=2), path, resume=True)


def test_intervals_of_chats_are_those_of_the_accuracy_benchmark() -> None:
    rng = random.Random(0)
    head = {"model": "m", "tokens_in": 4, "tokens_kept": 4, "text": "", "question": "", "answer": ""}
    answers = [
        head | {"task": "chat", "index": index, "turn": turn, "plan": plan, "right": bool((index + rng.random()) // 3)}
        for plan in ("full model", "pool:25%")
        for index in range(6)
        for turn in range(3)
    ]
    rows = []
    for plan in ("full model", "pool:25%"):
        mine = [row for row in answers if row["plan"] == plan]
        rows.append({"model": "m", "plan": plan, "kind": FULL, "cache": FULL, "task": "chat", **joint._score(mine)})
    joint._conclude(rows)
    scored = scores(answers, ["m"], lambda _: ["full model", "pool:25%"], ["chat"])
    expected = {row["plan"]: row for row in scored if row["task"] == "chat"}
    for row in rows:
        for name in ("accuracy", "low", "high", "relative_low", "relative_high"):
            assert row[name] == pytest.approx(expected[row["plan"]][name], abs=1e-4), name


def test_what_does_not_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for change, message in (
        ({"weights": ("int3",)}, "weights 'int3' are not known; possible here are full"),
        ({"caches": ("int3",)}, "caches 'int3' are not known; possible here are full, int8"),
        ({"count": 0}, "count, batch size and threads"),
        ({"dtype": "int8"}, "float32"),
    ):
        with pytest.raises(FoveateError, match=message):
            replace(SMALL, **change)
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(FoveateError, match="caches int4 need a package .*optimum-quanto.*possible here are full, int8"):
        replace(SMALL, weights=(), caches=("int4",))
    with pytest.raises(FoveateError, match="weights int8 need a package .*torchao.*; possible here are full"):
        replace(SMALL, weights=("int8",))


@pytest.mark.skipif("int4" not in possible(WEIGHTS), reason="torchao is not installed")
def test_weights_of_odd_widths_are_refused() -> None:
    model = copy.deepcopy(zoo()["llava"].model())  # its MLP is 48 wide
    with pytest.raises(FoveateError, match="int4 weights do not run .*not a multiple of 32.*possible are full, int8"):
        quantise_weights(model, "int4")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "joint.json"
    line = ["bench", "joint", "--plans", "pool:25%", "--weights", "full", "--caches", "full", "--device", "cpu"]
    line += ["--tasks", "shape_colour", "--count", "1", "--sides", "128,128", "-o", str(path), "--threads", "1"]
    assert cli.main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())
    assert cli.main([*line, "--resume"]) == 0
    assert "written" in capsys.readouterr().out
    assert cli.main([*line, "--caches", "int3"]) == 2
    said = capsys.readouterr().err
    assert "possible here are full" in said and "Traceback" not in said

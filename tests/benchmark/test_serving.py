"""`foveate bench serve` against a server in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import foveate
from foveate.benchmark import serving
from foveate.benchmark.serving import ServingSettings, rows, run
from foveate.cli import app
from foveate.core.errors import FoveateError
from tests.serving.live_server import running
from tests.tiny_model import save_qwen


def test_the_command_measures_both_sides_at_every_number_of_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = foveate.load()
    shown: list[str] = []

    def recorded(settings: ServingSettings, seed: int) -> dict:
        part = picture_of(settings, seed)
        shown.append(part["image_url"]["url"])
        return part

    picture_of = serving._shown
    monkeypatch.setattr(serving, "_shown", recorded)
    path = tmp_path / "serving.json"
    with running(model, processor) as server:
        options = ["--plans", "divprune:25%", "--clients", "1,3", "--requests", "2", "--turns", "2"]
        options += ["--side", "112", "--new-tokens", "4", "-o", str(path), "--json"]
        result = CliRunner().invoke(app, ["bench", "serve", f"{server.address}/v1", *options])
    assert result.exit_code == 0, result.output
    document = json.loads(path.read_text())
    assert json.loads(result.stdout) == document
    assert [(row["clients"], row["plan"]) for row in document["rows"]] == [
        (clients, plan) for clients in (1, 3) for plan in ("full model", "divprune:25%")
    ]
    for row in document["rows"]:
        assert row["requests"] == max(2, row["clients"])
        assert len(row["requests_per_second"]["all"]) == 2 and min(row["requests_per_second"]["all"]) > 0
        assert row["first_token"]["median"] > 0
        ratios = row["times_full_model"]["requests_per_second"]
        assert (ratios["median"] == 1) == (row["plan"] == "full model")
    timed = shown[2:]  # one each warms up
    # A server may keep what it made of an image, which would help whoever is asked later.
    assert len(set(timed)) == len(timed) == 2 * 2 * (2 + 3) and not set(shown[:2]) & set(timed)
    read = {row["plan"]: row["prompt_tokens"]["median"] for row in document["rows"]}
    assert read["divprune:25%"] <= read["full model"]
    assert "api_key" not in document["settings"]


def test_clips_and_another_server_in_the_same_turns(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path, folder = tmp_path / "serving.json", save_qwen(tmp_path / "qwen")
    with (
        running(*foveate.load(folder, plan=None)) as server,
        running(*foveate.load(folder, plan=None), plan="uniform-frames:4 + pool:4") as other,
    ):
        options = ["--plans", "evs:50%", "--against", f"four frames={other.address}/v1", "--frames", "8"]
        options += ["--clients", "2", "--requests", "2", "--turns", "2", "--side", "32", "--new-tokens", "4"]
        result = CliRunner().invoke(app, ["bench", "serve", f"{server.address}/v1", *options, "-o", str(path)])
    assert result.exit_code == 0, result.output
    rows = {row["plan"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == ["full model", "evs:50%", "four frames"]
    read = {name: row["prompt_tokens"]["median"] for name, row in rows.items()}
    tokens = 8 // 2 * 32 * 32 // 8**2  # two frames a token, and 2 x 2 patches of 4 pixels
    assert read["full model"] - read["evs:50%"] == tokens // 2
    assert read["full model"] - read["four frames"] == tokens - 4


def test_ratios_are_of_one_turn() -> None:
    def one(speed: float, first: float) -> dict[str, float | None]:
        return {"requests_per_second": speed, "first_token": first, "between_tokens": None, "prompt_tokens": 9}

    # The second turn had a slower machine, for both sides.
    found = {(1, "full model"): [one(2, 1), one(1, 2)], (1, "pool:9"): [one(4, 0.5), one(3, 1)]}
    _, row = rows(found, ServingSettings("http://x/v1", ("pool:9",)))  # ty: ignore[invalid-argument-type]
    assert row["times_full_model"]["requests_per_second"] == {"median": 2.5, "min": 2, "max": 3}
    assert row["times_full_model"]["first_token"]["median"] == 2
    assert row["times_full_model"]["between_tokens"] is None and row["between_tokens"]["median"] is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"plans": ()}, "name at least one plan"),
        ({"plans": ("full model",)}, "the full model always"),
        ({"dialect": "other"}, "'other' is not a kind of server; possible are foveate, vllm"),
        ({"clients": (0,)}, "must be positive integers"),
        ({"frames": 1}, "frames must be at least 2, or 0 for an image, not 1"),
        ({"frames": 4, "side": 31}, "an even number of pixels a side, not 31"),
        ({"against": (("pool:9", "http://x/v1"),)}, "each plan and server is measured once"),
        ({"turns": 0}, "turns must be a positive integer, not 0"),
        ({"new_tokens": 1}, "at least two tokens"),
    ],
)
def test_settings_that_measure_nothing_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(FoveateError) as refused:
        ServingSettings(**{"url": "http://localhost:1/v1", "plans": ("pool:9",), **fields})
    assert message in str(refused.value)


def test_a_server_without_a_name_is_refused() -> None:
    result = CliRunner().invoke(app, ["bench", "serve", "http://localhost:1/v1", "--against", "http://localhost:2/v1"])
    assert "--against is NAME=URL" in str(result.exception)


def test_a_server_that_is_not_there_and_one_that_refuses(tmp_path: Path) -> None:
    path = tmp_path / "serving.json"
    with pytest.raises(FoveateError, match="the server at http://127.0.0.1:9/v1 did not answer correctly"):
        run(ServingSettings("http://127.0.0.1:9/v1", ("pool:9",)), path)
    model, processor = foveate.load()
    with running(model, processor) as server, pytest.raises(FoveateError, match="unknown method 'nothing'"):
        run(ServingSettings(f"{server.address}/v1", ("nothing:9",), side=64), path)
    assert not path.exists()

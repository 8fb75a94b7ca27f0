"""Options of `foveate.load` on the command line: all commands that load one model pass them on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.cli import main
from foveate.commands.options import loading_options
from foveate.integrations.ray.cluster import Model
from tests.tiny_model import noise, save_llava_uhd


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_llava_uhd(tmp_path_factory.mktemp("model")))


def line(command: str, folder: str, tmp_path: Path) -> list[str]:
    noise(32, 32).save(tmp_path / "a.png")
    (tmp_path / "q.jsonl").write_text(json.dumps({"image": "a.png", "question": "?"}) + "\n")
    return {
        "ask": ["ask", str(tmp_path / "a.png"), "?", "--model", folder],
        "batch": ["batch", str(tmp_path / "q.jsonl"), "-o", str(tmp_path / "a.jsonl"), "--model", folder],
        "serve": ["serve", folder, "--port", "0"],
    }[command]


@pytest.mark.parametrize("command", ["ask", "batch", "serve"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--revision", "main"], "revision 'main' is of a model on the Hub"),
        (["--device", "cpu", "--device-map", "auto"], "give one of them"),
        (["--attn-implementation", "slow"], "is not supported"),
    ],
)
def test_they_reach_load(
    command: str, options: list[str], message: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line(command, folder, tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def test_batch_answers_with_them(folder: str, tmp_path: Path) -> None:
    options = ["--attn-implementation", "eager", "--device-map", "cpu", "--max-new-tokens", "2"]
    assert main([*line("batch", folder, tmp_path), *options]) == 0
    assert "text" in json.loads((tmp_path / "a.jsonl").read_text())


def test_replicas_load_with_them(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(folder).parent)
    options = loading_options(None, "eager", "cpu")
    assert options == {"attn_implementation": "eager", "device_map": "cpu"}
    settings = Model(Path(folder).name, options=options).anywhere
    assert settings.name == folder
    assert settings.load()[0].config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("arguments", "without_effect"),
    [
        (["flops", "--papers", "--model", "llava-1.5-7b", "--text", "64"], "--model and --text would have no effect"),
        (["flops", "--tokens", "100", "--image", "32x32"], "--image would have no effect with --tokens"),
        (["bench", "trained", "--show", "--steps", "2", "--only", "m3"], "--only and --steps would have no effect"),
        (["report", "a.json", "-o", "report", "--no-pictures", "--redraw"], "--redraw would have no effect"),
        (["report", "a.json", "-o", "report", "--no-pictures", "--pictures-model", "b"], "--pictures-model would have"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_without_effect_are_refused(
    arguments: list[str], without_effect: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert without_effect in capsys.readouterr().err

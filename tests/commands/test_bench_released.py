"""`foveate bench released`: what it refuses before anything runs."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from foveate.cli import main

LINE = ["bench", "released", "--model", "embedded", "--device", "cpu"]


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("unknown method", ["--plans", "nonsense:3"]),
        ("at least one plan", ["--plans", "full-model"]),
        ("there is no image 'nowhere.png'", ["--plans", "pool:50%", "--image", "nowhere.png"]),
        ("Missing option '--plans'", []),
    ],
)
def test_bad_input_is_one_sentence(
    said: str, arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*LINE, *arguments]) == 2
    printed = capsys.readouterr().err.strip()
    assert said in printed and "\n" not in printed
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("lmms_eval") is not None, reason="lmms-eval is installed")
def test_without_lmms_eval_the_command_says_what_to_install(
    capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*LINE, "--plans", "pool:50%"]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed == "error: this benchmark needs lmms-eval: pip install 'foveate[lmms]'."
    assert not any(tmp_path.iterdir())

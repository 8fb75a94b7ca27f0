"""The example package with a method of its own: installed, its name works everywhere; imported, without installing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foveate.cli import main
from tests.tiny_model import noise, save_llava

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "own_method"
FILE = EXAMPLE / "src" / "foveate_brightest" / "__init__.py"

#: One process, so that torch is loaded once.
SCRIPT = """
import json, sys
from foveate.cli import main
model, image, out = sys.argv[1:]
assert main(["methods", "brightest", "--json"]) == 0
assert main(["ask", image, "What?", "--model", model, "--plan", "brightest(power=1.0):50%", "--max-new-tokens", "2",
             "--json"]) == 0
assert main(["flops", "--model", "llava-1.5-7b", "--plan", "brightest:25%", "--json"]) == 0
assert main(["bench", "speed", "--models", model, "--methods", "brightest", "--budgets", "50%", "--repeats", "1",
             "--new-tokens", "2", "--image", image, "-o", out]) == 0
from foveate.integrations.vllm.plans import servable
from foveate.serving.protocol import Compression, plan_of
assert str(plan_of(Compression(plan="brightest:64"), None)) == "brightest:64"
assert "brightest" in servable()
"""


def python(*arguments: str, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), *filter(None, inherited)])}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def documents(text: str) -> list[dict]:
    """The JSON documents that stand one after the other in a text."""
    found, place, decoder = [], 0, json.JSONDecoder()
    while (place := text.find("{", place)) >= 0:
        document, place = decoder.raw_decode(text, place)
        found.append(document)
    return found


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    return str(save_llava(tmp_path / "model"))


@pytest.fixture
def image(tmp_path: Path) -> str:
    noise(64, 50).save(tmp_path / "noise.png")
    return str(tmp_path / "noise.png")


def test_an_installed_method_works_by_name(tmp_path: Path, model: str, image: str) -> None:
    packages = tmp_path / "packages"
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(packages))
    installed = python("-m", "pip", "install", *options, str(EXAMPLE))
    assert installed.returncode == 0, installed.stderr
    ran = python("-c", SCRIPT, model, image, str(tmp_path / "speed.json"), path=(packages, ROOT / "src"))
    assert ran.returncode == 0, ran.stderr
    entry, answer = documents(ran.stdout)[:2]
    assert [one["name"] for one in entry["methods"]] == ["brightest"]
    assert entry["methods"][0]["families"]["llava"]["outcome"] == "runs"
    assert answer["plan"] == "brightest(power=1.0):50%"
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert "brightest:50%" in [row["plan"] for row in rows]


def test_a_method_is_imported_from_its_file(model: str, image: str) -> None:
    line = ("-m", "foveate", "ask", image, "What?", "--model", model, "--plan", "brightest:50%", "--json")
    refused = python(*line, path=(ROOT / "src",))
    assert refused.returncode == 2 and "unknown method 'brightest'" in refused.stdout
    ran = python(*line, "--max-new-tokens", "2", "--import", os.path.relpath(FILE), path=(ROOT / "src",))
    assert ran.returncode == 0, ran.stderr
    assert documents(ran.stdout)[0]["plan"] == "brightest:50%"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["--import"], "--import needs a file or a module"),
        (["--import="], "--import needs a file or a module"),
        (["--import", "nothing.py"], "nothing.py cannot be imported: there is no such file"),
        (["--import", "no_such_module_here"], "no_such_module_here cannot be imported: ModuleNotFoundError"),
        (["--import", "BROKEN"], "broken.py cannot be imported: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_imported_ends_in_a_sentence(capsys, tmp_path: Path, value: list[str], message: str) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    value = [str(tmp_path / "broken.py") if part == "BROKEN" else part for part in value]
    assert main(["methods", *value]) == 2
    assert message in capsys.readouterr().err
    assert "FOVEATE_IMPORT" not in os.environ

"""Every cell of the notebooks runs, in order, on small models."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from foveate.core import registry
from tests.docs.shell import Shell, check_extras
from tests.docs.snippets import ROOT

FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
#: Numbers in the cells, and what takes their place here.
SMALLER = {
    "STEPS = 200": "STEPS = 1",
    "COUNT, TRIALS = 40, 20": "COUNT, TRIALS = 16, 2",
    'rows("train", 400), rows("heldout", 20)': 'rows("train", 1), rows("heldout", 1)',
    "train_batch_size=4": "train_batch_size=1",
    "max_new_tokens=64": "max_new_tokens=8",
}
#: The others train, search, start servers or ask many questions.
QUICK = ("write-a-method",)


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_valid_and_has_no_outputs(name: str) -> None:
    document = read(name)
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", one) for one in ids)
    assert document["cells"][0]["source"][0].startswith("# ")
    for cell in document["cells"]:
        assert cell["cell_type"] in ("code", "markdown") and cell["source"] and cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_the_readme_lists_every_notebook() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\(([\w-]+)\.ipynb\)", text)) == NOTEBOOKS


@pytest.mark.parametrize(
    "name", [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in NOTEBOOKS]
)
def test_the_cells_of_a_notebook_run(name: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "examples" / "notebooks"
    folder.mkdir(parents=True)
    for image in ("receipt.png", "chart.png"):
        shutil.copy(ROOT / "examples" / image, folder.parent)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(registry._methods, "added", dict(registry._methods.added))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    module = types.ModuleType("notebook")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "notebook", module)
    shell = Shell(folder, {"HF_HUB_CACHE": str(hub)})
    try:
        for number, cell in enumerate(read(name)["cells"]):
            if cell["cell_type"] == "code":
                run("".join(cell["source"]), f"{name}, cell {number}", module, shell)
    finally:
        if isinstance(process := vars(module).get("server"), subprocess.Popen):
            process.kill()


def run(code: str, place: str, module: types.ModuleType, shell: Shell) -> None:
    """Run a cell; lines that begin with `!` are commands, `%pip install` only checks the extras."""
    for large, small in SMALLER.items():
        code = code.replace(large, small)
    if code.startswith("%pip install"):
        check_extras([word.replace("../..", ".") for word in shlex.split(code)[2:] if not word.startswith("-")])
    elif code.startswith("!"):
        shell.run(re.sub(r"\{(\w+)\}", lambda match: str(vars(module)[match[1]]), code[1:]))
    else:
        exec(compile(code.replace("8000", shell.reserve()), place, "exec"), vars(module))

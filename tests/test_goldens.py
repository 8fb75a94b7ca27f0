"""Golden values say where they come from, so that they can be made again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_every_golden_carries_its_recipe(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    source = document["source"]
    hub = r"|on the Hugging Face Hub, .*\brevision [0-9a-f]{7}\b"  # as its pages show it
    assert re.search(rf"\b[0-9a-f]{{40}}\b{hub}", source), "the commit of the code that was run"
    assert re.search(r"\w/\w[\w./-]*\.py", source), "the file that holds it"
    assert not re.search(r"(^|[\s(\"'])(/|~/|[A-Z]:\\)\w", source), "no path of somebody's machine"
    assert any(isinstance(value, list | dict) and value for name, value in document.items() if name != "source")


def test_every_folder_of_goldens_carries_its_recipe() -> None:
    for folder in (path for path in GOLDEN.iterdir() if path.is_dir()):
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert re.search(r"`[\w./-]+\.py` of [\w-]+/[\w-]+", text), "the file that was run, and its repository"
        assert "commit" in text

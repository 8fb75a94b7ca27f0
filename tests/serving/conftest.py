"""One server of the embedded model for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

import foveate
from tests.serving.live_server import EXAMPLES, Served, running


@pytest.fixture
def embedded() -> tuple[Any, Any]:
    """The embedded model and its processor, for one server: an engine has its model to itself."""
    return foveate.load(plan=None)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a plan and a folder of files."""
    root = tmp_path_factory.mktemp("files")
    Image.open(EXAMPLES / "receipt.png").save(root / "receipt.png")
    (root / "note.txt").write_text("no image")
    with running(*foveate.load(plan=None), root=root, plan="divprune:50%") as server:
        yield server

"""A cache of the Hub that all tests of the documentation share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.hub import make_cache


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the Hub."""
    return make_cache(tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("models"))

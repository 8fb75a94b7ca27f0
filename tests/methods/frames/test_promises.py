"""The promises of every method that chooses frames. A new method is tested by being registered."""

from __future__ import annotations

from typing import Any

import pytest

from foveate.core.method import Site
from foveate.core.registry import methods_at
from foveate.methods.frames.diverse_frames import DiverseFrames
from foveate.methods.frames.query_frames import QueryFrames
from foveate.testing import FrameSamplerPromises
from tests.tiny_model import save_clip_model


class TestSamplers(FrameSamplerPromises):
    methods = tuple(cls() for cls in methods_at(Site.FRAMES).values() if cls not in (QueryFrames, DiverseFrames))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_clip_model(tmp_path_factory.mktemp("contrastive")))


class TestQueryFrames(FrameSamplerPromises):
    """With an encoder, which is in a folder of the run."""

    @pytest.fixture
    def method(self, encoder: str) -> QueryFrames:
        return QueryFrames(encoder)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """The fixture gives the method."""


class TestDiverseFrames(TestQueryFrames):
    """With an encoder as well."""

    @pytest.fixture
    def method(self, encoder: str) -> DiverseFrames:
        return DiverseFrames(encoder)


def test_all_are_registered() -> None:
    assert {"uniform-frames", "fps", "scene", "query-frames", "diverse-frames", "thumbnails"} <= set(
        methods_at(Site.FRAMES)
    )

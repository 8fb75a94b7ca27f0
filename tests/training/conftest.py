"""A processor and a model of the size that tests can train."""

import pytest

from foveate.training.building import new_model
from foveate.training.recipe import NewModel
from tests.training.small_training import IMAGES, TEXT, VISION


@pytest.fixture(scope="session")
def _built():
    return new_model(NewModel(VISION, TEXT, images=IMAGES), seed=0)


@pytest.fixture(scope="session")
def processor(_built):
    """Patches of 8 px, two stages: a token stands for 32 x 32 px."""
    return _built[1]


@pytest.fixture
def model(_built):
    """Read it, do not change it."""
    return _built[0]

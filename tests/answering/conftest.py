"""Small random models that tests of this folder ask."""

import pytest

from foveate.loading import load
from tests.tiny_model import save_llava, save_llava_uhd


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return load(save_llava_uhd(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return load(save_llava(tmp_path_factory.mktemp("llava")))

"""The public easy-VQA questions."""

import sys
from itertools import islice

import pytest

from foveate.core.errors import FoveateError
from foveate.synthetic import easy_vqa


def test_questions_and_images():
    pytest.importorskip("easy_vqa")
    for image, question, answer in islice(easy_vqa("test"), 20):
        assert image.size == (64, 64)
        assert image.mode == "RGB"
        assert question
        assert answer
    image, _, _ = next(iter(easy_vqa("train", upscale=3)))
    assert image.size == (192, 192)
    assert sum(1 for _ in easy_vqa("test")) == 9673


@pytest.mark.parametrize("arguments", [("validation",), ("train", 0)])
def test_bad_arguments(arguments):
    split, *more = arguments
    with pytest.raises(FoveateError):
        next(easy_vqa(split, **({"upscale": more[0]} if more else {})))


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(FoveateError, match="pip install easy-vqa"):
        next(easy_vqa())

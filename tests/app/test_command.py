"""`foveate app` as a command: what it refuses before anything is loaded, and the examples that it offers."""

import sys

import pytest

from foveate.cli import main
from foveate.commands.app import _examples
from foveate.shipped import examples
from tests.tiny_model import noise


def test_the_examples_of_the_package_are_offered():
    offered = [(path.rsplit("/", 1)[-1], question) for path, question in _examples(None)]
    assert offered == [(one.image, question) for one in examples() for question, _ in one.questions]


def test_a_folder_of_images_is_offered(tmp_path):
    noise(8, 8).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert _examples(tmp_path) == [(str(tmp_path / "a.png"), "What is in the image?")]


def test_without_gradio_one_sentence_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert "pip install 'foveate[app]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--examples", "no/such/folder"], "there is no folder 'no/such/folder'"),
        (["--plan", "divprun:5"], "did you mean divprune"),
        (["--share"], "No such option"),
    ],
)
def test_what_cannot_work_is_one_sentence(arguments, words, capsys):
    assert main(["app", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1

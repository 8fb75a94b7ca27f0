"""`load`: folders and names, right and wrong, with torchvision and without."""

import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import BertConfig
from transformers.utils import logging

import foveate.loading
from foveate import FoveateError, LlavaUHDForConditionalGeneration, LlavaUHDProcessor
from foveate.loading import load
from tests.tiny_model import save_llava_uhd


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llava_uhd(tmp_path_factory.mktemp("model"), dtype=torch.bfloat16)


def test_a_folder(folder):
    model, processor = load(folder)
    assert isinstance(model, LlavaUHDForConditionalGeneration) and isinstance(processor, LlavaUHDProcessor)
    assert not model.training
    assert model.dtype == torch.float32  # widened: faster on a CPU
    assert processor.image_processor.min_resolution is None


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), (torch.float64, torch.float64)])
def test_a_chosen_precision(folder, dtype, expected):
    model, _ = load(str(folder), dtype=dtype, device="cpu")
    assert model.dtype == expected and model.device.type == "cpu"


def test_progress_bars_are_as_before(folder, capsys):
    assert logging.is_progress_bar_enabled()
    load(folder)
    assert logging.is_progress_bar_enabled()
    assert "Loading weights" not in capsys.readouterr().err


def test_wrong_names(tmp_path, folder):
    (tmp_path / "file").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, message in [
        (tmp_path / "none", "there is no folder"),
        ("./none", "there is no folder"),
        ("a/b/c", "cannot be a Hub id"),
        ("", "no config.json|no folder"),
        (tmp_path / "empty", "no config.json in that folder"),
        (tmp_path / "file", "is a file"),
        ("foveate-tests/does-not-exist", "not in the local cache, and HF_HUB_OFFLINE"),
    ]:
        with pytest.raises(FoveateError, match=message):
            load(name)
    for options, message in [
        ({"device": "nonsense"}, "cannot use device 'nonsense'"),
        ({"dtype": "int8"}, "not one of auto, float32"),
        ({"dtype": torch.int8}, "not one of auto, float32"),
    ]:
        with pytest.raises(FoveateError, match=message):
            load(folder, **options)


def test_folders_that_hold_something_else(tmp_path, folder):
    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path / "bert")
    with pytest.raises(FoveateError, match="'bert' model, which does not answer questions about images"):
        load(tmp_path / "bert")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{not json")
    with pytest.raises(FoveateError, match="cannot load"):
        load(tmp_path / "broken")
    (tmp_path / "weightless").mkdir()
    (tmp_path / "weightless" / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(FoveateError, match="cannot load .*weightless"):
        load(tmp_path / "weightless")


def test_an_installation_without_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.setattr(foveate.loading, "EMBEDDED", tmp_path)
    with pytest.raises(FoveateError, match="holds no weights"):
        load()


def test_without_torchvision(folder):
    """Importing foveate, loading and asking work where torchvision is not installed."""
    program = f"""
        import sys
        sys.modules["torchvision"] = None  # as if it were not installed
        from transformers.utils import is_torchvision_available
        assert not is_torchvision_available()
        import foveate
        from foveate.answering import ask
        from PIL import Image
        answer = ask(Image.new("RGB", (40, 32), "red"), "What colour?", {str(folder)!r}, max_new_tokens=3)
        print([stage.tokens for stage in answer.stages])
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[0] == "[64, 16, 4]"
    assert "torchvision" not in run.stderr

"""`load`: folders and names, right and wrong, with torchvision and without."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import BertConfig, QuantoConfig
from transformers.utils import logging

import foveate.loading
from foveate import FoveateError, LlavaUHDForConditionalGeneration, LlavaUHDProcessor
from foveate.loading import load
from foveate.runtime import handle_of
from tests.tiny_model import noise, save_llava, save_llava_uhd


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


def test_options_of_from_pretrained(folder):
    model, _ = load(folder, attn_implementation="eager", device_map="cpu")
    assert model.config._attn_implementation == "eager"
    assert model.dtype == torch.bfloat16 and model.device.type == "cpu"  # a device_map keeps the precision
    widened, _ = load(folder, trust_remote_code=False, local_files_only=True, low_cpu_mem_usage=None)
    assert widened.dtype == torch.float32


def test_quantised_weights_are_not_converted(folder, tmp_path):
    quanto = pytest.importorskip("optimum.quanto")
    for place, skipped in ((folder, [".*merger", "lm_head"]), (save_llava(tmp_path), None)):
        # In bfloat16, torch 2.14's product with int8 weights crashes on CPUs with AVX512 at some sizes of small models.
        options = QuantoConfig(weights="int8", modules_to_not_convert=skipped)
        pair = load(place, dtype="float32", quantization_config=options)
        linear = [module for module in pair[0].modules() if isinstance(module, quanto.QLinear)]
        assert linear and all(isinstance(module.weight, quanto.QTensor) for module in linear)
        assert foveate.ask(noise(32, 32), "?", pair, max_new_tokens=2).tokens.generated >= 1
    with pytest.raises(FoveateError, match=r"stages of LLaVA-UHD cannot be quantised: name '\.\*merger'"):
        load(folder, quantization_config=QuantoConfig(weights="int8"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust_remote_code": True}, "trust_remote_code cannot be chosen: foveate runs no code"),
        ({"use_safetensors": False}, "from safetensors only"),
        ({"weights_only": False}, "from safetensors only"),
        ({"torch_dtype": "float32"}, "its name is dtype"),
        ({"output_loading_info": True}, "output_loading_info cannot be chosen"),
        ({"revision": "main"}, "revision 'main' is of a model on the Hub, and .* is a folder"),
        ({"subfolder": "a"}, "subfolder 'a' is of a model on the Hub"),
        ({"device": "cpu", "device_map": "auto"}, "give one of them"),
        ({"device_map": "everywhere"}, "cannot load .*everywhere"),
        ({"attn_implementation": "fast"}, "cannot load .*is not supported"),
        ({"quantization_config": 4}, "cannot load"),
        ({"nonsense": 1}, "unexpected keyword argument 'nonsense'"),
    ],
)
def test_options_that_are_not_possible(folder, options, message):
    with pytest.raises(FoveateError, match=message):
        load(folder, **options)


def test_a_revision_is_that_of_every_part(tmp_path, monkeypatch):
    """Two revisions of one repository in a cache of the Hub differ in weights, processor and plan."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for number, revision in enumerate(("first", "second")):
        commit = str(number) * 40
        snapshot = cache / "models--owner--name" / "snapshots" / commit
        save_llava_uhd(snapshot)
        settings = json.loads((snapshot / "tokenizer_config.json").read_text())
        (snapshot / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 100 + number}))
        foveate.Plan.of(f"random:{number + 1}").save(snapshot)
        refs = cache / "models--owner--name" / "refs"
        refs.mkdir(exist_ok=True)
        (refs / revision).write_text(commit)
    for number, revision in enumerate(("first", "second")):
        model, processor = load("owner/name", revision=revision, cache_dir=cache)
        assert processor.tokenizer.model_max_length == 100 + number
        assert str(handle_of(model).plan) == f"random:{number + 1}"
    with pytest.raises(FoveateError, match="cannot load 'owner/name'"):
        load("owner/name", revision="third", cache_dir=cache)


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


def test_the_embedded_model_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert foveate.loading.locate("embedded") == foveate.loading.locate(None)
    (tmp_path / "embedded").mkdir()
    with pytest.raises(FoveateError, match="'embedded' holds no model"):
        foveate.loading.locate("embedded")


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

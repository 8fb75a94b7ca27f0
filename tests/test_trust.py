"""What others made is data: a pickle that would run a program is refused unread, wherever a user may load from.

Each bomb makes a file when it is unpickled; none may be there afterwards. That the bombs work is shown first.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import foveate
from foveate import FoveateError
from foveate.benchmark import next_scale
from foveate.cli import main
from foveate.core.weights import read_state
from foveate.methods.decoding import load_draft
from foveate.methods.pre_llm.focusui import Scorer
from foveate.methods.pre_llm.relevance import Mapper
from foveate.methods.shared.contrastive import ContrastiveEncoder
from foveate.models.vit_uhd.sources import read_source
from foveate.training.recipe_file import read_recipe
from foveate.training.run import Run
from tests.tiny_model import save_clip_model, save_llava, save_llava_uhd
from tests.training.small_training import EVERYTHING, recipe, small_stage


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Where a bomb that went off would be seen."""
    return tmp_path / "it-went-off"


def planted(file: Path, mark: Path, *, torch_file: bool = True) -> Path:
    file.unlink(missing_ok=True)
    if torch_file:
        torch.save({"weight": Bomb(mark)}, file)
    else:
        file.write_bytes(pickle.dumps(Bomb(mark)))
    return file


@pytest.mark.parametrize("torch_file", [True, False])
def test_the_bombs_work(tmp_path: Path, mark: Path, torch_file: bool) -> None:
    file = planted(tmp_path / "bomb", mark, torch_file=torch_file)
    if torch_file:
        torch.load(file, weights_only=False)
    else:
        pickle.loads(file.read_bytes())
    assert mark.exists()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {"llava": save_llava, "llava-uhd": save_llava_uhd}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in made.items()}


@pytest.fixture(params=["llava", "llava-uhd"])
def model(models: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models[request.param], tmp_path / "model"))


@pytest.mark.parametrize("torch_file", [True, False])
def test_pickled_weights_of_a_model(model: Path, mark: Path, torch_file: bool) -> None:
    planted(model / "pytorch_model.bin", mark, torch_file=torch_file)
    foveate.load(model)  # beside safetensors it is not looked at
    (model / "model.safetensors").unlink()
    with pytest.raises(FoveateError, match="model.safetensors"):
        foveate.load(model)
    shutil.copy(model / "pytorch_model.bin", model / "model.safetensors")
    with pytest.raises(FoveateError, match="cannot load"):
        foveate.load(model)
    assert not mark.exists()


@pytest.mark.parametrize("content", ["[" * 100_000, "[1]", "7", '{"model_type": 7}', '{"model_type": ["llava"]}', "\0"])
def test_nonsense_in_the_folder_of_a_model(model: Path, content: str) -> None:
    for file in ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json"):
        whole = (model / file).read_text()
        (model / file).write_text(content)
        with contextlib.suppress(FoveateError):  # some files may hold more than is read
            foveate.load(model)
        if file == "config.json":
            with pytest.raises(FoveateError):
                foveate.load(model)
        (model / file).write_text(whole)
    foveate.load(model)


def test_pickled_weights_that_the_folder_names(model: Path, mark: Path) -> None:
    (model / "model.safetensors").unlink()
    for name in ("adapter_model.bin", "pytorch_model-00001-of-00001.bin"):
        planted(model / name, mark)
    index = model / "model.safetensors.index.json"
    for name in ("adapter_model.bin", "../outside.safetensors", "/etc/passwd.safetensors", 7):
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": name}}))
        with pytest.raises(FoveateError, match=r"no safetensors file|outside its folder"):
            foveate.load(model)
    for broken in ("[" * 100_000, "[]", "{}"):
        index.write_text(broken)
        with pytest.raises(FoveateError, match="list of weights"):
            foveate.load(model)
    index.unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))
    with pytest.raises(FoveateError, match="no safetensors file"):
        foveate.load(model)
    (model / "config.json").write_text(json.dumps(config))
    planted(model / ".metadata", mark, torch_file=False)
    with pytest.raises(FoveateError, match="distributed checkpoint"):
        foveate.load(model)
    assert not mark.exists()


def test_pickled_weights_of_the_encoder_that_a_plan_names(tmp_path: Path, mark: Path) -> None:
    folder = save_clip_model(tmp_path / "clip")
    ContrastiveEncoder(str(folder))
    planted(folder / "pytorch_model.bin", mark)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(FoveateError, match="cannot be loaded: .*model.safetensors"):
        ContrastiveEncoder(str(folder))
    shutil.copy(folder / "pytorch_model.bin", folder / "model.safetensors")
    with pytest.raises(FoveateError, match="cannot be loaded"):
        ContrastiveEncoder(str(folder))
    index = {"metadata": {}, "weight_map": {"logit_scale": "pytorch_model.bin"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FoveateError, match="no safetensors file"):
        ContrastiveEncoder(str(folder))
    assert not mark.exists()


def test_pickled_adapters(model: Path, mark: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(model), "r": 2, "target_modules": ["q_proj"]}
    (model / "adapter_config.json").write_text(json.dumps(settings))
    planted(model / "adapter_model.bin", mark)
    with pytest.raises(FoveateError, match="the adapter in .* safetensors"):
        foveate.load(model)
    assert not mark.exists()


def test_code_in_the_folder_of_a_model(model: Path, mark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "own.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Own: pass\n")
    names = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor")
    for file in model.glob("*config.json"):
        own = json.loads(file.read_text()) | {"auto_map": dict.fromkeys(names, "own.Own")}
        file.write_text(json.dumps(own))
    foveate.load(model)  # of a kind that is known: its code is not needed
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "own"}))
    with pytest.raises(FoveateError, match="cannot load"):
        foveate.load(model)
    assert main(["info", str(model)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not mark.exists()


def test_small_networks_beside_a_model(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "network"
    folder.mkdir()
    bomb = planted(folder / "model.safetensors", mark)
    about = {"kind": "covipal", "layers": [1], "width": 8}
    for text in (json.dumps(about), json.dumps({"kind": "specvlm"}), json.dumps({"kind": "flash"}), "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(FoveateError):
            load_draft(folder)
        with pytest.raises(FoveateError):
            foveate.ask(EXAMPLE, "?", plan=f"covipal(weights={str(folder)!r}):50%", max_new_tokens=1)
    for network in (Scorer, Mapper):
        with pytest.raises(FoveateError, match="no safetensors file"):
            network.load(bomb)
    (folder / "config.json").write_text(json.dumps(foveate.ViTUHDConfig().to_dict()))
    with pytest.raises(FoveateError, match="no safetensors file"):
        read_source(folder)
    with pytest.raises(FoveateError):
        foveate.ask(EXAMPLE, "?", plan=f"pospad(selector=uniform, embedding={str(bomb)!r}):50%", max_new_tokens=1)
    with pytest.raises(FoveateError):
        next_scale.load(str(folder))
    assert not mark.exists()


EXAMPLE = Path(__file__).parents[1] / "examples" / "receipt.png"


def test_checkpoints_of_a_training_run(tmp_path: Path, mark: Path) -> None:
    stage = small_stage([{"rendered": {}}], steps=2, train=EVERYTHING, batch_size=2)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path / "run", stage, save_every=1)))
    Run(read_recipe(path), workers=0).train()
    newest = sorted((tmp_path / "run" / "stages").rglob("checkpoint-1"))[0]
    shutil.rmtree(newest.with_name("checkpoint-2"))
    files = sorted(file.name for file in newest.iterdir() if file.suffix in (".pt", ".pth"))
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(files)
    whole = Path(shutil.copytree(newest, tmp_path / "whole"))
    for name in (*files, "learner.safetensors"):
        planted(newest / name, mark)
        with pytest.raises(FoveateError, match="checkpoint-1 is damaged"):
            Run(read_recipe(path), workers=0).train()
        shutil.copy(whole / name, newest / name)
    for broken in ("", "[]", "[" * 100_000, '{"step": 1, "other": 2}'):
        (newest / "progress.json").write_text(broken)
        with pytest.raises(FoveateError, match="checkpoint-1 is damaged"):
            Run(read_recipe(path), workers=0).train()
    shutil.copy(whole / "progress.json", newest / "progress.json")
    assert not mark.exists()
    assert Run(read_recipe(path), workers=0).train().finished


def test_states_of_small_networks(tmp_path: Path, mark: Path) -> None:
    for torch_file in (True, False):
        with pytest.raises(FoveateError, match="no state of a training run"):
            read_state(planted(tmp_path / "state.pt", mark, torch_file=torch_file), ("step",))
    torch.save([1], tmp_path / "state.pt")
    with pytest.raises(FoveateError, match="no such training run"):
        read_state(tmp_path / "state.pt", ("step",))
    torch.save({"step": 3, "network": {"weight": torch.ones(2)}}, tmp_path / "state.pt")
    assert read_state(tmp_path / "state.pt", ("step", "network"))["step"] == 3
    assert not mark.exists()

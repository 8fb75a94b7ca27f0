"""Every trainer keeps the contract, is found by name, and can come from another package."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import foveate
from foveate.cards import cards
from foveate.cli import main
from foveate.commands.train_method import methods_with
from foveate.core.errors import FoveateError
from foveate.core.trained import Trained
from foveate.gallery import gallery
from foveate.training import methods
from foveate.training.methods import summaries, trainer_of
from foveate.training.methods.shared.base import StepTrainer
from foveate.training.methods.shared.config import TrainConfig, identity, option, option_names
from tests.tiny_model import save_llava_uhd

NAMES = list(summaries())


@dataclass(frozen=True, kw_only=True)
class LineConfig(TrainConfig):
    slope: float = option(2.0, "Of the line.")


class LineTrainer(StepTrainer[LineConfig]):
    """Fits a line, in another package."""

    name = "line"
    config_class = LineConfig
    output = "line.pt"

    def data(self) -> torch.Tensor:
        return torch.linspace(-1, 1, 8)[:, None]

    def network(self, model: Any) -> nn.Module:
        return nn.Linear(1, 1)

    def step(self, model: Any, processor: Any, network: Any, data: torch.Tensor, step: int) -> Any:
        yield step, lambda: (network(data) - self.config.slope * data).square().mean()

    def save(self, network: nn.Module, output: Path) -> None:
        torch.save(network.state_dict(), output)

    def evaluate(self, model: Any, processor: Any, state: Any, output: Path) -> dict[str, Any]:
        return {"measured": float(state.network.weight.detach())}

    def report_measured(self, document: dict[str, Any]) -> Any:
        yield f"slope {document['measured']:.2f}"


@pytest.mark.parametrize("name", NAMES)
def test_a_trainer_keeps_the_contract(name: str) -> None:
    trainer = trainer_of(name)
    config = trainer.config_class
    assert trainer.name == name and config.__dataclass_params__.frozen
    for field in dataclasses.fields(config):
        assert field.metadata["help"].endswith("."), field.name
    assert summaries()[name].endswith(".") and "arXiv" in summaries()[name]
    assert f"foveate train-method {name} " in trainer.examples
    assert f" -o {trainer.output}" in trainer.examples or " -o " in trainer.examples
    required = {f.name: {"images": (Path("x"),), "count": 3}[f.name]
                for f in dataclasses.fields(config) if f.default is dataclasses.MISSING}  # fmt: skip
    about = trainer(config(**required)).about()
    assert json.loads(json.dumps(about)) == about  # what a directory of a run can compare
    assert set(about) >= ({"steps", "learning_rate", "seed"} if issubclass(config, TrainConfig) else {"method"})


def test_every_method_with_weights_of_its_own_can_be_trained() -> None:
    gallery()  # imports every method
    trained = {cls.name for cls in Trained.__subclasses__() if "name" in vars(cls)}
    assert {"covipal", "dpn", "focusui", "relevance"} <= trained <= set(NAMES)
    assert {card.name for card in cards() if "train-method" in card.use} <= set(NAMES)


def test_options_are_known_by_their_methods() -> None:
    assert methods_with("--pressure") == ["dpn"]
    assert methods_with("--data-answers") == ["flash", "relevance", "specvlm"]
    assert methods_with("--nothing") == []
    assert option_names(LineConfig) == ["--steps", "--batch-size", "--learning-rate", "--seed", "--slope"]
    assert identity(LineConfig(steps=3)) == {
        "steps": 3,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "seed": 0,
        "slope": 2.0,
    }


@pytest.mark.parametrize("by", ["register_trainer", "entry point"])
def test_a_trainer_of_another_package(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(methods, "_registered", {})
    if by == "entry point":
        points = [EntryPoint("line", f"{__name__}:LineTrainer", methods.GROUP)]
        monkeypatch.setattr(methods, "entry_points", lambda group: points if group == methods.GROUP else [])
    else:
        assert foveate.register_trainer(LineTrainer) is LineTrainer
        foveate.register_trainer(LineTrainer)  # twice changes nothing
        assert summaries()["line"] == "Fits a line, in another package."
        with pytest.raises(FoveateError, match="a trainer of 'dpn' already"):
            foveate.register_trainer(type("Other", (LineTrainer,), {"name": "dpn"}))
    assert "line" in summaries() and trainer_of("line") is LineTrainer
    model = str(save_llava_uhd(tmp_path / "model"))
    arguments = ["train-method", "line", "--model", model, "-o", str(tmp_path / "line.pt"), "--device", "cpu"]
    arguments += ["--steps", "200", "--learning-rate", "0.1", "--slope", "-3"]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["finished"] and document["steps"] == 200 and document["samples"] == 1600
    assert document["measured"] == pytest.approx(-3, abs=0.05)
    assert main(arguments) == 0  # goes on with the finished run
    assert f"slope {document['measured']:.2f}" in capsys.readouterr().out
    assert main([*arguments, "--slope", "4"]) == 2
    assert "contains a run with another slope" in capsys.readouterr().err


def test_a_module_without_its_trainer_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("other", f"{__name__}:LineTrainer", methods.GROUP)]
    monkeypatch.setattr(methods, "entry_points", lambda group: points)
    with pytest.raises(TypeError, match="no MethodTrainer named 'other'"):
        trainer_of("other")


@pytest.mark.parametrize("name", ["covipal", "dpn", "flash", "relevance", "specvlm"])
def test_a_folder_of_images_needs_files_that_name_them(name):
    with pytest.raises(FoveateError, match="--images is the folder of the files' image paths"):
        trainer_of(name).config_class(images=Path("photos"))

"""Training of FocusUI's scorer: labels against loops, interrupted runs, the trained file in use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import foveate
from foveate.answering.conversations import inputs_of
from foveate.commands.train_method import train_method
from foveate.core.errors import FoveateError
from foveate.core.tokens import Crop, Grid, Need, VisualTokens
from foveate.loading import load
from foveate.methods.pre_llm.focusui import Scorer
from foveate.synthetic.page import Box
from foveate.synthetic.screens import render_screen
from foveate.training.callbacks import StopRequest
from foveate.training.methods.focusui import (
    FocusUITrainConfig,
    FocusUITrainer,
    box_coverage,
    loss_of,
    measure,
    sample_element,
    token_labels,
    token_reader,
)
from foveate.training.run_directory import RunDirectory
from tests.tiny_model import save_llava, save_llava_uhd

SMALL = FocusUITrainConfig(steps=4, batch_size=2, heads=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load(folder, device="cpu")


def test_a_method_is_given_what_training_saw(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    screen = render_screen(0)
    with token_reader(model, processor) as read:
        tokens = read(screen.image, "Click Save.")
    inputs = inputs_of(model, processor, screen.image, "Click Save.")
    embeds = model.get_input_embeddings()(inputs["input_ids"][0])
    ids = inputs["input_ids"][0].tolist()
    letters = processor.tokenizer("Click Save.")["input_ids"]
    start = next(n for n in range(len(ids)) if ids[n : n + len(letters)] == letters)
    torch.testing.assert_close(tokens.get(Need("instruction")), embeds[start : start + len(letters)].detach())
    assert tokens.crops[0].grid == Grid(8, 8)
    assert foveate.runtime.handle_of(model) is None


def test_what_a_box_covers_crop_by_crop() -> None:
    image, box = Image.new("RGB", (80, 40), "white"), Box(10, 5, 45, 30)
    crops = (
        Crop(torch.arange(8), Grid(2, 4), kind="thumbnail"),
        Crop(torch.tensor([9, 10, 11, -1]), Grid(2, 2), (0.5, 0.0, 1.0, 1.0), "tile"),
    )
    separators = torch.zeros(12, dtype=torch.bool)
    separators[8] = True
    tokens = VisualTokens(torch.zeros(12, 4), crops, {}, separators)
    inside = torch.zeros(40, 80)
    inside[5:30, 10:45] = 1
    slow = [float(inside[r * 20 : r * 20 + 20, c * 20 : c * 20 + 20].mean()) for r in range(2) for c in range(4)]
    slow += [0.0]
    slow += [float(inside[r * 20 : r * 20 + 20, c * 20 + 40 : c * 20 + 60].mean()) for r in range(2) for c in range(2)]
    torch.testing.assert_close(box_coverage(tokens, image, box), torch.tensor(slow[:12]))
    # An even picture is one region in each crop: the graph is 1 / ln(n + 1) everywhere.
    graph = torch.tensor([1 / torch.tensor(n + 1.0).log() for n in [8] * 8 + [4] * 4])
    graph[8] = 0
    expected = 2 * (torch.tensor(slow[:12]) + 0.5 * graph).clamp(0, 1) - 1
    torch.testing.assert_close(token_labels(tokens, image, box), expected)


def test_a_run_that_was_stopped_gives_the_same_weights(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    fit = FocusUITrainer(SMALL).fit
    whole = fit(*loaded, None, RunDirectory(tmp_path / "whole.safetensors", {}))
    assert whole.finished
    stop = StopRequest()
    parts = RunDirectory(tmp_path / "parts.safetensors", {})
    stopped = fit(*loaded, None, parts, lambda stage, step, steps, loss: stop.request() if step == 2 else None, stop)
    assert (stopped.finished, stopped.step) == (False, 2)
    # The line that a killed run wrote after its last state is written again, not twice.
    parts.log.append({"step": 3, "loss": 0.0, "learning_rate": 0.0, "seconds": 0.0})
    rest = fit(*loaded, None, RunDirectory(tmp_path / "parts.safetensors", {}))
    assert rest.finished
    for name, value in whole.network.state_dict().items():
        assert torch.equal(rest.network.state_dict()[name], value), name
    lines = [json.loads(line) for line in parts.log.path.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in loaded[0].parameters())
    other = FocusUITrainer(replace(SMALL, seed=1))
    with pytest.raises(FoveateError, match="other settings"):
        other.fit(*loaded, None, RunDirectory(tmp_path / "parts.safetensors", {}))
    with pytest.raises(FoveateError, match="--no-resume"):
        RunDirectory(tmp_path / "parts.safetensors", {}, resume=False)


@pytest.mark.slow
def test_training_lowers_the_loss_and_the_file_beats_random(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = loaded
    embeddings, projector = model.model.vision_tower.embeddings, model.model.multi_modal_projector
    with torch.no_grad():  # random weights whose tokens tell what is in a patch rather than where it is
        embeddings.position_embedding.weight.zero_()
        embeddings.patch_embedding.weight.mul_(50)
        projector.linear_1.weight.mul_(20)
        projector.linear_2.weight.mul_(20)
    config = FocusUITrainConfig(steps=120, batch_size=4, learning_rate=3e-3, dropout=0.0)
    file = tmp_path / "scorer.safetensors"
    trainer = FocusUITrainer(config)
    trained = trainer.fit(model, processor, None, RunDirectory(file, {})).network
    trainer.save(trained, file)
    torch.manual_seed(0)
    new = Scorer(trained.size).eval()
    with token_reader(model, processor) as read, torch.no_grad():
        losses = [
            sum(float(loss_of(scorer, read, *sample_element(seed, "heldout"))) for seed in range(12))
            for scorer in (new, trained)
        ]
    assert losses[1] < 0.98 * losses[0]
    # So small a random model can be learned little from: enough for a quarter of the tokens.
    shares = measure(model, processor, file, 32)["25%"]
    assert shares["focusui"] > shares["random"] + 0.04, shares

    screen, element = sample_element(0, "heldout")
    inputs = inputs_of(model, processor, screen.image, element.instruction)
    with token_reader(model, processor) as read:
        tokens = read(screen.image, element.instruction)
    with torch.no_grad():
        best = trained(tokens.features, tokens.get(Need("instruction"))).topk(32).indices.sort().values
    with foveate.compress(model, f"focusui(weights={file}):50%") as handle, torch.no_grad():
        model(**inputs)
        assert torch.equal(handle.report().images[0].selection.indices, best)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(save_llava_uhd(tmp_path / "model"))
    output = tmp_path / "scorer.safetensors"
    options: dict[str, Any] = {"model": model, "steps": 2, "batch_size": 1, "held_out": 2, "device": "cpu"}
    train_method("focusui", output, **options, max_minutes=0, as_json=True)
    assert json.loads(capsys.readouterr().out)["finished"] is False
    assert not output.exists()
    train_method("focusui", output, **options, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["finished"] and document["samples"] == 2
    assert set(document["measured"]["25%"]) == {"focusui", "random", "uniform"}
    assert Scorer.load(output).size == 32
    with pytest.raises(FoveateError, match="another batch_size"):
        train_method("focusui", output, model=model, steps=2, batch_size=2)
    with pytest.raises(FoveateError, match="no folder"):
        train_method("focusui", tmp_path / "none" / "scorer.safetensors", model=model)
    with pytest.raises(FoveateError, match="learning_rate"):
        train_method("focusui", output, model=model, learning_rate=0.0)
    with pytest.raises(FoveateError, match="dropout"):
        train_method("focusui", output, model=model, dropout=1.0)

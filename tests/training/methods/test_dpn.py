"""Training of DPN's routers: losses by hand, what is tried, interrupted runs, the trained folder in use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import foveate
from foveate.commands.train_method import train_method
from foveate.loading import load
from foveate.methods.decoder.dpn import Router
from foveate.training.callbacks import StopRequest
from foveate.training.methods.dpn import (
    DPNTrainConfig,
    DPNTrainer,
    SampledExperts,
    Trial,
    batch_loss,
    routing_loss,
    trial,
)
from foveate.training.methods.shared.questions import samples
from foveate.training.methods.shared.relevance_targets import read_example
from foveate.training.methods.shared.teacher_forcing import record, text_of
from foveate.training.run_directory import RunDirectory
from tests.tiny_model import save_llava, save_llava_uhd

SMALL = DPNTrainConfig(layers=(1,), steps=4, batch_size=2)
EXAMPLES = samples([], None, None, 0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return load(save_llava(tmp_path_factory.mktemp("model")), device="cpu")


def routers(size: int) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"1": Router(size, (1, 2, 4))})


def test_the_routing_loss_by_hand() -> None:
    three, two = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.2, 0.7]]), torch.tensor([[0.25, 0.75], [0.6, 0.4]])
    assert float(routing_loss([three])) == pytest.approx(1.5 - ((0.2 + 0.6) + (0.2 + 1.4)) / 2)
    assert float(routing_loss([three], expected=False)) == pytest.approx(1.5 - (0 + 2 * 0.7) / 2)
    assert float(routing_loss([three, two])) == pytest.approx(((1.5 - 1.2) + (1.5 - (0.75 + 0.4) / 2)) / 2)
    assert float(routing_loss([torch.tensor([[0.0, 0.1, 0.9]])])) == 0
    assert float(routing_loss([])) == 0


def test_every_expert_is_tried(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    """Losses are those of the method with a router that is sure of the expert."""
    model = loaded[0]
    seen = record(*loaded, EXAMPLES(0), (1,))
    networks = routers(text_of(model).config.hidden_size)
    torch.manual_seed(0)
    found = trial(model, networks, seen, 1)
    assert found.losses is not None
    (tokens,) = seen.tokens[1]
    torch.testing.assert_close(found.contexts[1], tokens.prompt.hidden[tokens.prompt.asking[0]])
    labels = seen.inputs["input_ids"].clone()
    labels[:, : -len(seen.answer)] = -100
    for expert, loss in enumerate(found.losses):
        sure = replace(SampledExperts(networks), experts={1: expert})
        with torch.no_grad(), foveate.compress(model, sure):
            torch.testing.assert_close(model(**seen.inputs, labels=labels).loss, loss, atol=1e-5, rtol=1e-5)
    assert len(set(found.losses.tolist())) == 3
    assert foveate.runtime.handle_of(model) is None
    assert "forward" not in vars(model.model.vision_tower)


def test_few_tokens_are_never_drawn(loaded: tuple[Any, Any]) -> None:
    """64 tokens: 4 x 4 would leave 4 of them, 2 x 2 leaves 16; both are less than 18."""
    seen = record(*loaded, EXAMPLES(0), (1,))
    (tokens,) = seen.tokens[1]
    assert len(tokens) == 64
    for draw in range(20):
        torch.manual_seed(draw)
        drawn = SampledExperts(routers(tokens.features.shape[1]))
        assert len(drawn(tokens, None)) == 64
        assert drawn.experts == {1: 0}


def test_the_loss_is_the_expectation() -> None:
    networks, torch_losses = routers(6), torch.tensor([1.0, 2.0, 4.0])
    torch.manual_seed(1)
    contexts = torch.randn(3, 6)
    tried = [Trial({1: contexts[0]}, 1, torch_losses), Trial({1: contexts[1]}, 1, 3 * torch_losses), Trial({}, 1, None)]
    shares = [networks["1"](context) for context in contexts[:2]]
    expected = (sum(shares[0] * torch_losses) + sum(shares[1] * 3 * torch_losses)) / 2
    routing = 1.5 - sum(float(own[1] + 2 * own[2]) for own in shares) / 2
    loss = batch_loss(networks, tried, 0.5)
    torch.testing.assert_close(loss, expected + 0.5 * routing)
    loss.backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in networks.parameters())
    nothing = batch_loss(networks, [Trial({}, 1, None)], 1.0)
    nothing.backward()  # a batch of images that are all too small teaches nothing
    assert float(nothing) == 0


@pytest.mark.parametrize("pressure", [0.0, 50.0])
def test_routers_learn_what_is_asked_of_them(loaded: tuple[Any, Any], tmp_path: Path, pressure: float) -> None:
    """With a strong routing loss routers pool as much as they can; without one they take what answers best."""
    examples = lambda number: EXAMPLES(0)  # noqa: E731
    config = DPNTrainConfig(layers=(1,), steps=25, batch_size=1, learning_rate=0.05, pressure=pressure)
    trained = DPNTrainer(config).fit(*loaded, examples, RunDirectory(tmp_path / "run", {})).network
    seen = record(*loaded, EXAMPLES(0), (1,))
    tried = trial(loaded[0], trained, seen, 1)
    assert tried.losses is not None
    with torch.no_grad():
        shares = trained["1"](tried.contexts[1])
    assert int(shares.argmax()) == (1 if pressure else int(tried.losses.argmin()))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in loaded[0].parameters())


def test_a_run_that_was_stopped_gives_the_same_weights(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    fit = DPNTrainer(SMALL).fit
    whole = fit(*loaded, EXAMPLES, RunDirectory(tmp_path / "whole", {}))
    stop = StopRequest()
    tell = lambda stage, step, steps, loss: stop.request() if step == 2 else None  # noqa: E731
    stopped = fit(*loaded, EXAMPLES, RunDirectory(tmp_path / "parts", {}), tell, stop)
    assert (whole.finished, stopped.finished, stopped.step) == (True, False, 2)
    rest = fit(*loaded, EXAMPLES, RunDirectory(tmp_path / "parts", {}))
    for name, value in whole.network.state_dict().items():
        assert torch.equal(rest.network.state_dict()[name], value), name
    DPNTrainer(SMALL).save(rest.network, tmp_path / "routers")
    with torch.no_grad(), foveate.compress(loaded[0], f"dpn(weights={str(tmp_path / 'routers')!r})") as handle:
        loaded[0](**read_example(*loaded, EXAMPLES(0))[0])
        assert [layer.layer for layer in handle.report().images[0].layers] == [1]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = str(save_llava_uhd(tmp_path / "model")), tmp_path / "routers"
    train_method(
        "dpn", output, model=model, steps=2, batch_size=1, held_out=1, device="cpu", pressure=0.5, as_json=True
    )
    document = json.loads(capsys.readouterr().out)
    assert document["finished"] and (document["method"], document["layers"]) == ("dpn", [1])
    assert f"dpn(weights={str(output)!r})" in document["measured"]
    assert json.loads((output / "config.json").read_text())["strides"] == {"1": [1, 2]}
    with pytest.raises(foveate.FoveateError, match="pressure must be 0 or more"):
        train_method("dpn", tmp_path / "other", model=model, pressure=-1.0)

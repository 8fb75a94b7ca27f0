"""Training of CoViPAL's modules: targets and gates against loops, interrupted runs, the trained folder in use."""

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
from foveate.core.errors import FoveateError
from foveate.families import family_of
from foveate.loading import load
from foveate.methods.decoder.covipal import Pruner
from foveate.training.callbacks import StopRequest
from foveate.training.methods import covipal
from foveate.training.methods.covipal import CoViPALTrainConfig, CoViPALTrainer
from foveate.training.methods.shared.fidelity import measure
from foveate.training.methods.shared.frozen import frozen
from foveate.training.methods.shared.questions import Pages, samples
from foveate.training.methods.shared.teacher_forcing import RecordedActivations, encoding_once, record, text_of
from foveate.training.run_directory import RunDirectory
from tests.runtime.test_decoder_hooks import deep
from tests.tiny_model import save_llava, save_llava_uhd

SMALL = CoViPALTrainConfig(layers=(1,), steps=4, batch_size=2, guided=0.5, width=8, heads=2)
EXAMPLES = samples([], None, None, 0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return load(save_llava(tmp_path_factory.mktemp("model")), device="cpu")


def seen_of(loaded: tuple[Any, Any], number: int = 0) -> RecordedActivations:
    return record(*loaded, EXAMPLES(number), (1,), attention_layer=1)


def modules(size: int, seed: int = 0) -> nn.ModuleDict:
    torch.manual_seed(seed)
    return nn.ModuleDict({"1": Pruner(size, 8, 2)})


def test_what_is_seen_is_what_the_model_does(loaded: tuple[Any, Any]) -> None:
    model = loaded[0]
    seen = seen_of(loaded)
    (tokens,) = seen.tokens[1]
    prompt = seen.inputs["input_ids"].shape[1] - len(seen.answer)
    with torch.no_grad():
        out = model(**seen.inputs, use_cache=False, output_hidden_states=True)
    torch.testing.assert_close(tokens.features, out.hidden_states[1][0, tokens.indices])
    torch.testing.assert_close(model.get_output_embeddings()(seen.hidden), out.logits[0, seen.rows])
    assert seen.rows.tolist() == list(range(prompt - 1, prompt - 1 + len(seen.answer)))
    image = (seen.inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    assert torch.equal(tokens.indices, image)
    assert tokens.question.tolist() == list(range(int(image[-1]) + 1, prompt))  # the answer is not looked at
    assert foveate.runtime.handle_of(model) is None


def test_guidance_is_what_later_tokens_pay(loaded: tuple[Any, Any]) -> None:
    model = loaded[0]
    seen = seen_of(loaded)
    (tokens,) = seen.tokens[1]
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attention = model(**seen.inputs, use_cache=False, output_attentions=True).attentions[1][0]
    finally:
        model.set_attn_implementation("sdpa")
    first, length = int(tokens.indices[0]), attention.shape[-1]
    sums = [
        sum(float(head[row, place]) for head in attention for row in range(first, length)) for place in tokens.indices
    ]
    mean = sum(sums) / len(sums)
    torch.testing.assert_close(
        covipal.guidance(seen, tokens), torch.tensor([value / mean for value in sums]), atol=1e-4, rtol=1e-4
    )


def test_the_threshold_lets_a_share_stay() -> None:
    torch.manual_seed(0)
    scores = (3 * torch.randn(12, dtype=torch.float64)).requires_grad_()
    for share in (0.1, 0.5, 0.9):
        t = covipal.threshold(scores, share)
        assert sum(1 / (1 + float((t - score).exp())) for score in scores) == pytest.approx(12 * share, abs=1e-6)
    torch.autograd.gradcheck(lambda x: covipal.threshold(x, 0.3), (scores,), atol=1e-4)
    torch.manual_seed(1)
    drawn = torch.stack([covipal.log_gates(scores.detach(), 0.3, 0.01).exp() for _ in range(400)]).mean(dim=0)
    expected = (scores - covipal.threshold(scores, 0.3)).sigmoid()  # as good as hard, a gate is open that often
    torch.testing.assert_close(drawn, expected.detach(), atol=0.1, rtol=0)


def test_hard_gates_are_the_method(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    """Scores far apart make gates of 0 and 1: what comes out is what tokens left out give."""
    model = loaded[0]
    seen, text = seen_of(loaded), text_of(model)
    (tokens,) = seen.tokens[1]
    networks = modules(text.config.hidden_size)
    with torch.no_grad():
        networks["1"].head[1].weight.mul_(1e7)
    CoViPALTrainer(CoViPALTrainConfig(width=8, heads=2)).save(networks, tmp_path / "hard")
    torch.manual_seed(0)
    with torch.no_grad(), covipal.gated(text, networks, seen.tokens, 16 / len(tokens)):
        found = model.get_output_embeddings()(text(**seen.call).last_hidden_state[0, seen.rows])
    labels = seen.inputs["input_ids"].clone()
    labels[:, : -len(seen.answer)] = -100
    with torch.no_grad(), foveate.compress(model, f"covipal(weights={str(tmp_path / 'hard')!r}):16"):
        out = model(**seen.inputs, labels=labels, use_cache=False).logits[0, -len(seen.answer) - 1 : -1]
    torch.testing.assert_close(found, out, atol=1e-3, rtol=1e-3)
    with torch.no_grad(), covipal.gated(text, networks, seen.tokens, 1.0 - 1e-9):
        whole = text(**seen.call).last_hidden_state[0, seen.rows]
    torch.testing.assert_close(whole, seen.hidden, atol=1e-3, rtol=1e-3)


def test_both_losses_reach_the_modules_and_nothing_else(loaded: tuple[Any, Any]) -> None:
    model = loaded[0]
    seen = seen_of(loaded)
    for stage in ("guided", "adapted"):
        networks = modules(text_of(model).config.hidden_size)
        with frozen(model):
            loss = (
                covipal.guided_loss(networks, seen)
                if stage == "guided"
                else covipal.adapted_loss(networks, model, seen)
            )
            loss.backward()
        assert float(loss) > 0
        for name, parameter in networks.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), (stage, name)
        assert sum(float(p.grad.abs().sum()) for p in networks.parameters() if p.grad is not None) > 0
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_run_that_was_stopped_gives_the_same_weights(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    fit = CoViPALTrainer(SMALL).fit
    whole = fit(*loaded, EXAMPLES, RunDirectory(tmp_path / "whole", {}))
    stop = StopRequest()
    tell = lambda stage, step, steps, loss: stop.request() if step == 2 else None  # noqa: E731
    stopped = fit(*loaded, EXAMPLES, RunDirectory(tmp_path / "parts", {}), tell, stop)
    assert (whole.finished, stopped.finished, stopped.step) == (True, False, 2)
    rest = fit(*loaded, EXAMPLES, RunDirectory(tmp_path / "parts", {}))
    for name, value in whole.network.state_dict().items():
        assert torch.equal(rest.network.state_dict()[name], value), name
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(FoveateError, match="layers 1 to 1 of this model, not for 1, 2"):
        CoViPALTrainer(replace(SMALL, layers=(1, 2))).fit(*loaded, EXAMPLES, RunDirectory(tmp_path / "other", {}))


@pytest.mark.parametrize("guided", [1.0, 0.0])
def test_training_lowers_the_loss(loaded: tuple[Any, Any], tmp_path: Path, guided: float) -> None:
    model = loaded[0]
    config = CoViPALTrainConfig(
        layers=(1,), steps=20, batch_size=2, learning_rate=1e-2, guided=guided, width=16, heads=2
    )
    run, examples = RunDirectory(tmp_path / "run", {}), lambda number: EXAMPLES(number % 4)
    trained = CoViPALTrainer(config).fit(*loaded, examples, run).network
    torch.manual_seed(0)
    new = nn.ModuleDict({"1": Pruner(text_of(model).config.hidden_size, 16, 2)})
    losses = []
    with torch.no_grad():
        for networks in (new, trained):
            torch.manual_seed(0)
            seen = [seen_of(loaded, number) for number in range(4)]
            if guided:
                losses.append(sum(float(covipal.guided_loss(networks, one)) for one in seen))
            else:
                losses.append(sum(float(covipal.adapted_loss(networks, model, one)) for one in seen for _ in range(8)))
    assert losses[1] < 0.95 * losses[0], losses


def test_masks_of_all_forms_are_added_to() -> None:
    hidden, bias = torch.zeros(1, 3, 2), torch.tensor([0.0, -1.0, -2.0])
    allowed = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
    expected = torch.tensor([[0.0, -1.0, -2.0]] * 3).masked_fill(~allowed[0, 0], torch.finfo(torch.float32).min)
    added = torch.zeros(1, 1, 3, 3).masked_fill(~allowed, torch.finfo(torch.float32).min)
    for mask in (None, allowed, added):
        assert torch.equal(covipal._added(mask, bias, hidden)[0, 0], expected)
    with pytest.raises(FoveateError, match="load the model with sdpa"):
        covipal._added(torch.ones(1, 3), bias, hidden)


def test_the_guide_is_deeper() -> None:
    assert covipal.guiding_layer(32, (2,)) == 16
    assert covipal.guiding_layer(32, (2, 20)) == 21
    assert covipal.guiding_layer(4, (2,)) == 3
    assert covipal.guiding_layer(4, (3,)) == 3


def test_measuring(loaded: tuple[Any, Any]) -> None:
    found = measure(*loaded, [EXAMPLES(0), EXAMPLES(1)], ["random-decoder:100%@1", "random-decoder:25%@1"])
    assert found["full model"]["kl"] == 0 and found["full model"]["agreement"] == 1
    assert found["random-decoder:100%@1"] == pytest.approx(found["full model"], abs=1e-5)
    assert found["random-decoder:25%@1"]["kl"] > 0 and found["random-decoder:25%@1"]["tokens"] == 0.25


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = str(save_llava_uhd(tmp_path / "model")), tmp_path / "pruner"
    options: dict[str, Any] = {"steps": 2, "batch_size": 1, "held_out": 1, "device": "cpu", "width": 8}
    train_method("covipal", output, model=model, **options, max_minutes=0, as_json=True)
    assert json.loads(capsys.readouterr().out)["finished"] is False
    assert not output.exists()
    train_method("covipal", output, model=model, **options, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["finished"] and document["layers"] == [1]
    assert {"full model", "random-decoder:25%@1"} < set(document["measured"])
    with pytest.raises(FoveateError, match="another batch_size"):
        train_method("covipal", output, model=model, **options | {"batch_size": 2})
    with pytest.raises(FoveateError, match="no folder"):
        train_method("covipal", tmp_path / "none" / "pruner", model=model)
    for wrong, words in (
        ({"guided": 1.5}, "0 to 1"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"limit": 3}, "--limit is for files"),
    ):
        with pytest.raises(FoveateError, match=words):
            train_method("covipal", tmp_path / "other", model=model, **wrong)


def test_rendered_pages_have_the_sizes_asked_for():
    pages = Pages((96, 128), 0.1)
    learned = samples([], None, None, 0, pages)
    sides = [side for number in range(12) for side in learned(number).images[0].size]
    assert min(sides) >= 96
    assert max(sides) < 128 + 32  # half of the pages are up to a unit larger, as for the embedded model
    measured = pages.held_out(30)
    assert max(side for example in measured for side in example.images[0].size) <= 128
    assert len({example.conversations[0]["value"] for example in measured}) > 20


def test_pages_that_nothing_can_be_drawn_on_are_refused():
    with pytest.raises(FoveateError, match="none of the rendered tasks fits on pages of at most 16 pixels"):
        Pages((16, 16))
    with pytest.raises(FoveateError, match="the shortest first, not 200,100"):
        Pages((200, 100))


@pytest.mark.parametrize("kind", ["llava", "llava-next", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "gemma3", "internvl"])
def test_an_encoder_that_runs_once_gives_every_plan_the_same(kind: str) -> None:
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, (((3, 4),),))
    runs = []
    tower = family_of(model).vision_tower(family_of(model).core(model))
    next(tower.children()).register_forward_pre_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        alone = model(**inputs).logits
        once = len(runs)
        with encoding_once(model):
            assert all(torch.equal(model(**inputs).logits, alone) for _ in range(3))
            with foveate.compress(model, "random-decoder:50%@2"):
                assert not torch.equal(model(**inputs).logits, alone)
    assert "forward" not in vars(tower)
    assert once > 0 and len(runs) == 2 * once

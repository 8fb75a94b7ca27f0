"""EchoingPixels on features of frozen encoders: its sequence, selection, greedy text and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.training.avsr import AVSRRecipe, PoolTask, train_recognizer
from foveate.training.avsr.data import Features
from foveate.training.avsr.tasks import Share
from foveate.training.avsr.text import PROMPT, build_tokenizer, transcripts
from foveate.training.callbacks import StopRequest
from foveate.training.run_directory import quiet

pytestmark = pytest.mark.skipif(
    not compat.HAS_OMNI_THINKER_MODEL, reason="this version of transformers lacks what EchoingPixels extends"
)
RECIPE = AVSRRecipe(utterances=6, width=32, text_layers=2, steps=4, batch_size=3)
TASK = PoolTask((0.5, 0.2), 1)
TOKENIZER = build_tokenizer()
TEXTS = ["one two three", "four five six", "one six two", "three three one", "five one", "two four six"]
#: Tokens of sound and of video in two seconds, and columns of the sequence before the rest of the text.
AUDIO, VIDEO, BEFORE = 50, 50, 105


@pytest.fixture(scope="module")
def text_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(RECIPE.llama(len(TOKENIZER))).eval()


@pytest.fixture(scope="module")
def features() -> Features:
    chance = torch.Generator().manual_seed(1)
    audio, video = (torch.randn(len(TEXTS), frames, 32, generator=chance) for frames in (2 * AUDIO, VIDEO))
    return Features(audio.half(), video.half(), TEXTS)


def build(text_model: LlamaForCausalLM, task: PoolTask = TASK, start: Any = None) -> Any:
    torch.manual_seed(2)
    parts: Any = (None, None, text_model)
    return task.build(RECIPE, parts, len(TOKENIZER), start).eval()


def prompt(rows: int) -> Tensor:
    return torch.tensor([TOKENIZER.convert_tokens_to_ids(["<s>", PROMPT])]).expand(rows, -1)


def scores_by(model: Any, of_columns: Tensor) -> Any:
    """Make the scores those of columns."""
    return model.language_model.selector.register_forward_hook(
        lambda module, args, scores: of_columns[: scores.shape[1]].expand_as(scores)
    )


def test_tokens_of_a_moment_share_their_time(text_model: LlamaForCausalLM, features: Features) -> None:
    model = build(text_model)
    inputs = features.inputs(torch.arange(2), True, True)
    embeds, positions, pool = model._sequence(prompt(2), *inputs.values())
    assert embeds.shape[:2] == pool.shape == (2, BEFORE + 1) and positions.shape == (3, 2, BEFORE + 1)
    time, height, width = positions[:, 0]
    video, audio = slice(2, 2 + VIDEO), slice(4 + VIDEO, 4 + VIDEO + AUDIO)
    assert pool[0].nonzero().flatten().tolist() == [*range(2, 52), *range(54, 104)]
    assert time[video].tolist() == time[audio].tolist() == list(range(2, 52))
    assert set(height[video].tolist()) == set(width[video].tolist()) == {2}
    assert height[audio].tolist() == list(range(2, 52))
    assert time[BEFORE:].tolist() == [54] and time[BEFORE - 1] == 53  # the end of the sound, and the prompt
    # Pairs of Whisper's frames are averaged.
    pairs = inputs["audio_features"].unflatten(1, (-1, 2)).mean(dim=2)
    torch.testing.assert_close(embeds[:, audio], model.audio_projector(pairs))


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_greedy_text_is_that_of_whole_passes(text_model: LlamaForCausalLM, features: Features, ratio: float) -> None:
    model = build(text_model)
    inputs = features.inputs(torch.arange(3), True, True)
    with scores_by(model, torch.arange(200.0).sin()):
        written, share = model.generate(prompt(3), ratio, max_new_tokens=5, **inputs)
        ids = torch.cat([prompt(3), written], dim=1)
        embeds, positions, pool = model._sequence(ids, *inputs.values())
        answers = torch.arange(embeds.shape[1]).expand(3, -1) > BEFORE
        with model.language_model.pooling(pool, answers, ratio), torch.no_grad():
            hidden = model.language_model(position_ids=positions, inputs_embeds=embeds).last_hidden_state
    expected = model.lm_head(hidden)[:, -6:-1].argmax(dim=-1)
    for row, wanted in zip(written.tolist(), expected.tolist(), strict=True):
        end = row.index(6) + 1 if 6 in row else len(row)  # tokens behind the end are padding
        assert row[:end] == wanted[:end] and set(row[end:]) <= {0}
    kept = [column for column in model.language_model.columns[0].tolist() if bool(pool[0, column])]
    assert len(kept) == round(100 * ratio)
    assert float(share[0]) == pytest.approx(sum(column > 52 for column in kept) / len(kept))


def test_scores_decide_the_share_of_sound(text_model: LlamaForCausalLM, features: Features) -> None:
    model = build(text_model)
    inputs = features.inputs(torch.arange(2), True, True)
    for sign, share in ((1.0, 1.0), (-1.0, 0.0)):
        with scores_by(model, sign * torch.arange(200.0)):
            assert TASK.transcribe(model, prompt(2), Share(0.2), inputs)[1].tolist() == [share, share]
    drawn = TASK.transcribe(model, prompt(2), Share(0.2, random=True), inputs)
    again = TASK.transcribe(model, prompt(2), Share(0.2, random=True), inputs)
    assert torch.equal(drawn[0], again[0]) and torch.equal(drawn[1], again[1])
    assert 0 < float(drawn[1].mean()) < 1
    assert not model.language_model.selector._forward_hooks


def test_it_starts_with_the_weights_of_its_start(text_model: LlamaForCausalLM) -> None:
    first = build(text_model, PoolTask((1.0,), 0))
    for name, value in text_model.model.state_dict().items():
        assert torch.equal(first.language_model.state_dict()[name], value), name
    assert torch.equal(first.lm_head.weight, text_model.lm_head.weight)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1)
    second = build(text_model, TASK, first)
    expected = first.state_dict()
    for name, value in second.state_dict().items():
        if "refiner" in name:
            name = name.replace("refiner", "layers")
        zero = "selector.linear_2" in name
        assert torch.equal(value, torch.zeros_like(value) if zero else expected[name]), name
    assert TASK.trained_parameters(second) == sum(parameter.numel() for parameter in second.parameters())


def test_the_loss_is_the_mean_over_ratios(text_model: LlamaForCausalLM, features: Features) -> None:
    model = build(text_model)
    ids, mask, labels = transcripts(TOKENIZER, TEXTS[3:5])  # of three words and of two
    inputs = features.inputs(torch.arange(3, 5), True, True)
    loss, _ = TASK.loss(model, (ids, mask, labels), inputs)
    alone = [float(PoolTask((ratio,), 1).loss(model, (ids, mask, labels), inputs)[0].detach()) for ratio in TASK.ratios]
    assert float(loss.detach()) == pytest.approx(sum(alone) / 2, rel=1e-5)
    # Padding is no part of it: each row alone, weighted by its labels.
    rows = []
    for row, count in ((0, 4), (1, 3)):
        some = {name: value[row : row + 1] for name, value in inputs.items()}
        text = [value[row : row + 1, : count + 2] for value in (ids, mask, labels)]
        rows.append(count * float(TASK.loss(model, text, some)[0].detach()))
    assert float(loss.detach()) == pytest.approx(sum(rows) / 7, rel=1e-5)


def test_an_interrupted_training_has_the_same_noise(
    text_model: LlamaForCausalLM, features: Features, tmp_path: Path
) -> None:
    parts: Any = (None, None, text_model)

    def train(folder: Path, stop: StopRequest, on_progress: Any = quiet) -> Any:
        return train_recognizer(RECIPE, TASK, parts, TOKENIZER, features, folder, on_progress, stop)

    whole = train(tmp_path / "whole", StopRequest())
    stop = StopRequest()
    torch.manual_seed(7)  # the state of torch's generator is no part of it
    assert train(tmp_path / "parts", stop, lambda *_: stop.request()) is None
    resumed = train(tmp_path / "parts", StopRequest())
    loaded = train(tmp_path / "parts", StopRequest())
    untrained = build(text_model).state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert not torch.equal(
        whole.state_dict()["language_model.selector.linear_2.weight"],
        untrained["language_model.selector.linear_2.weight"],
    )
    with pytest.raises(FoveateError, match="another task"):
        train_recognizer(
            RECIPE, PoolTask((0.5,), 1), parts, TOKENIZER, features, tmp_path / "parts", quiet, StopRequest()
        )


def test_invalid_ratios() -> None:
    with pytest.raises(FoveateError, match="needs a ratio"):
        PoolTask((), 1)
    with pytest.raises(FoveateError, match="at most 1, not 1.5"):
        PoolTask((0.5, 1.5), 1)

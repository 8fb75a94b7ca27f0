"""Models under a plan in the Trainer of transformers and in the trainers of TRL: metrics, smoothing, preferences."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Trainer, TrainingArguments

import foveate
from tests.families.zoo import IMAGE, zoo

NAMES = ("llava", "qwen2.5-vl")
#: What no metric looks at: the Trainer cannot gather the encoder's output, without a plan either.
IGNORED = ["cache", "past_key_values", "image_outputs", "video_outputs"]
PLANS = ("uniform:3", "fastv:3@1")


def example(name: str, number: int) -> dict[str, Any]:
    """A prompt with an image and an answer of three words."""
    specimen = zoo()[name]
    inputs = specimen.prompts(specimen.model(), (((3, 4),),), seed=number)
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    return {**inputs, "labels": labels}


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.cat([one[name] for one in examples]) for name in examples[0]}


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        max_steps=2,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        seed=0,
        **options,
    )


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of words that the model says, logits and labels paired as everybody does."""
    logits = prediction.predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    labels = torch.as_tensor(prediction.label_ids)[:, 1:]
    said = torch.as_tensor(logits)[:, :-1].argmax(dim=-1)
    return {"accuracy": (said == labels)[labels >= 0].float().mean().item()}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NAMES)
def test_evaluation_with_metrics(name: str, plan: str, tmp_path: Path) -> None:
    """With all columns a metric is what it is on the short sequence, which the other output tells how to pair."""
    model = copy.deepcopy(zoo()[name].model())
    examples = [example(name, number) for number in range(3)]
    right = total = 0
    losses = []
    with torch.no_grad(), foveate.compress(model, plan):
        for one in examples:
            out = model(**one)
            labels = out.labels[:, 1:]
            right += int((out.logits[:, :-1].argmax(dim=-1) == labels)[labels >= 0].sum())
            total += int((labels >= 0).sum())
            losses.append(out.loss)
    with foveate.compress(model, plan, align_logits=True):
        trainer = Trainer(model, arguments(tmp_path), collate, eval_dataset=examples, compute_metrics=accuracy)
        found = trainer.evaluate(ignore_keys=IGNORED)
    assert found["eval_accuracy"] == pytest.approx(right / total)
    assert found["eval_loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_logits_are_made_small_before_they_are_gathered(tmp_path: Path) -> None:
    model = copy.deepcopy(zoo()["llava"].model())
    examples = [example("llava", number) for number in range(3)]
    shapes = []

    def small(logits: Any, labels: Tensor) -> Tensor:
        logits = logits[0] if isinstance(logits, tuple) else logits
        shapes.append((logits.shape[:2], labels.shape))
        return logits.argmax(dim=-1)

    def metric(prediction: Any) -> dict[str, float]:
        labels = torch.as_tensor(prediction.label_ids)[:, 1:]
        said = torch.as_tensor(prediction.predictions)[:, :-1]
        return {"accuracy": (said == labels)[labels >= 0].float().mean().item()}

    with foveate.compress(model, "uniform:3", align_logits=True):
        trainer = Trainer(
            model,
            arguments(tmp_path),
            collate,
            eval_dataset=examples,
            compute_metrics=metric,
            preprocess_logits_for_metrics=small,
        )
        assert 0 <= trainer.evaluate(ignore_keys=IGNORED)["eval_accuracy"] <= 1
    assert shapes and all(one == other for one, other in shapes)


def test_metrics_on_the_short_sequence(tmp_path: Path) -> None:
    """Without all columns, the last two things that are predicted say what belongs to the logits."""
    model = copy.deepcopy(zoo()["llava"].model())
    examples = [example("llava", number) for number in range(3)]

    def metric(prediction: Any) -> dict[str, float]:
        logits, columns, labels = (torch.as_tensor(prediction.predictions[place]) for place in (0, -2, -1))
        assert columns.shape == labels.shape == logits.shape[:2]
        words = labels[:, 1:] >= 0
        return {"accuracy": (logits[:, :-1].argmax(dim=-1) == labels[:, 1:])[words].float().mean().item()}

    with foveate.compress(model, "uniform:3"):
        short = Trainer(model, arguments(tmp_path), collate, eval_dataset=examples, compute_metrics=metric).evaluate(
            ignore_keys=IGNORED
        )
    with foveate.compress(model, "uniform:3", align_logits=True):
        long = Trainer(model, arguments(tmp_path), collate, eval_dataset=examples, compute_metrics=accuracy).evaluate(
            ignore_keys=IGNORED
        )
    assert short["eval_accuracy"] == long["eval_accuracy"]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", NAMES)
def test_training_with_a_smoothed_loss(name: str, smoothing: float, tmp_path: Path) -> None:
    """The first loss is that of the short sequence; the weights change."""
    model = copy.deepcopy(zoo()[name].model())
    examples = [example(name, number) for number in range(4)]
    with torch.no_grad(), foveate.compress(model, "uniform:3"):
        losses = []
        for one in examples:
            out = model(**one)
            logits, labels = out.logits[:, :-1].flatten(0, 1), out.labels[:, 1:].flatten()
            losses.append(F.cross_entropy(logits, labels))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with foveate.compress(model, "uniform:3", align_logits=True):
        options = arguments(tmp_path, label_smoothing_factor=smoothing)
        trainer = Trainer(model, options, collate, train_dataset=examples, eval_dataset=examples)
        if not smoothing:
            assert trainer.evaluate(ignore_keys=IGNORED)["eval_loss"] == pytest.approx(
                float(torch.stack(losses).mean()), rel=1e-4
            )
        trainer.train()
    assert all(torch.isfinite(torch.tensor(one["loss"])) for one in trainer.state.log_history if "loss" in one)
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_packed_rows_train_as_their_samples(tmp_path: Path) -> None:
    """A step of the Trainer on a packed row and one on its samples, row by row, leave the same weights."""
    specimen = zoo()["llava"]
    first, second = example("llava", 0), example("llava", 1)
    for one in (first, second):
        del one["attention_mask"]
        one["position_ids"] = torch.arange(one["input_ids"].shape[1])[None]
    row = {name: torch.cat([first[name], second[name]], dim=0 if name == "pixel_values" else 1) for name in first}
    weights = []
    for data, size in (([row], 1), ([first, second], 2)):
        model = copy.deepcopy(specimen.model())
        options = arguments(tmp_path, optim="sgd")
        options.per_device_train_batch_size, options.max_steps = size, 1
        with foveate.compress(model, "fastv:3@1"):
            Trainer(model, options, collate, train_dataset=data).train()
        weights.append(model.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], atol=1e-4, rtol=1e-3)
    assert int((row["input_ids"] == IMAGE).sum()) == 32

"""Models under a plan in the trainers of TRL: supervised, preference and reward training with images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from tests import tiny_model

trl = pytest.importorskip("trl", reason="TRL comes with the extra dev")
datasets = pytest.importorskip("datasets")

from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

PLANS = ("uniform:3", "fastv:3@1")
OPTIONS = {
    "per_device_train_batch_size": 2,
    "max_steps": 1,
    "report_to": [],
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "seed": 0,
    "dataloader_pin_memory": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def parts(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    return model, AutoProcessor.from_pretrained(folder)


def asked(number: int) -> list[dict[str, Any]]:
    content = [{"type": "image"}, {"type": "text", "text": f"Which word is number {number}?"}]
    return [{"role": "user", "content": content}]


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def rows(**columns: Any) -> Any:
    found = {"images": [[tiny_model.noise(32, 32, seed)] for seed in range(4)], **columns}
    kinds = {"images": datasets.List(datasets.Image())} | dict.fromkeys(columns, TURNS)
    return datasets.Dataset.from_dict(found, features=datasets.Features(kinds))


def _turns() -> Any:
    part = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    return datasets.List({"role": datasets.Value("string"), "content": datasets.List(part)})


TURNS = _turns()


def words(number: int) -> str:
    return "one two three"[: 5 + number]


@pytest.mark.parametrize("plan", PLANS)
def test_supervised_training(folder: Path, plan: str, tmp_path: Path) -> None:
    """Loss and token accuracy are those of the short sequence."""
    model, processor = parts(folder)
    data = rows(prompt=[asked(n) for n in range(4)], completion=[said(words(n)) for n in range(4)])
    arguments = trl.SFTConfig(output_dir=str(tmp_path), max_length=None, **OPTIONS)
    trainer = trl.SFTTrainer(model, arguments, train_dataset=data, eval_dataset=data, processing_class=processor)
    inputs = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad(), foveate.compress(model, plan):
        out = model(**inputs, use_cache=False)
        on_progress = out.labels[:, 1:]
        right = (out.logits[:, :-1].argmax(dim=-1) == on_progress)[on_progress >= 0].float().mean()
    with foveate.compress(model, plan, align_logits=True) as handle:
        trainer.model.eval()
        with torch.no_grad():
            loss = trainer.compute_loss(trainer.model, dict(inputs))
        torch.testing.assert_close(loss, out.loss, atol=1e-5, rtol=1e-4)
        assert trainer._metrics["eval"]["mean_token_accuracy"][-1] == pytest.approx(float(right), abs=1e-6)
        trainer.train()
        assert math.isfinite(trainer.state.log_history[0]["loss"])
        assert math.isfinite(trainer.evaluate()["eval_loss"])
        assert handle.report().images


def test_a_plan_that_was_there_before_the_trainer(folder: Path, tmp_path: Path) -> None:
    """TRL calls the model without its output layer by itself, and gets all columns."""
    model, processor = parts(folder)
    data = rows(prompt=[asked(n) for n in range(4)], completion=[said(words(n)) for n in range(4)])
    with foveate.compress(model, "uniform:3", align_logits=True):
        arguments = trl.SFTConfig(output_dir=str(tmp_path), max_length=None, **OPTIONS)
        trainer = trl.SFTTrainer(model, arguments, train_dataset=data, processing_class=processor)
        inputs = next(iter(trainer.get_train_dataloader()))
        model.eval()
        with torch.no_grad():
            loss = trainer.compute_loss(model, dict(inputs))
            torch.testing.assert_close(loss, model(**inputs, use_cache=False).loss, atol=1e-5, rtol=1e-4)
        trainer.train()


@pytest.mark.parametrize("plan", PLANS)
def test_preferences(folder: Path, plan: str, tmp_path: Path) -> None:
    """With the plan on both models the first loss is that of no difference, and log-probabilities are the plan's."""
    model, processor = parts(folder)
    reference, _ = parts(folder)
    data = rows(
        prompt=[asked(n) for n in range(4)],
        chosen=[said(words(n)) for n in range(4)],
        rejected=[said("no") for _ in range(4)],
    )
    arguments = trl.DPOConfig(output_dir=str(tmp_path), max_length=None, **OPTIONS)
    trainer = trl.DPOTrainer(model, reference, arguments, train_dataset=data, processing_class=processor)
    inputs = next(iter(trainer.get_train_dataloader()))
    with (
        foveate.compress(model, plan, align_logits=True),
        foveate.compress(reference, plan, align_logits=True),
    ):
        model.eval()
        with torch.no_grad():
            loss = trainer.compute_loss(model, dict(inputs))
        assert float(loss) == pytest.approx(math.log(2), abs=1e-5)
        trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_rewards(folder: Path, tmp_path: Path) -> None:
    """Answers are written under the plan, and their log-probabilities are those with which they were written."""
    model, processor = parts(folder)
    data = datasets.Dataset.from_dict(
        {"prompt": [asked(n) for n in range(4)], "image": [tiny_model.noise(32, 32, seed) for seed in range(4)]},
        features=datasets.Features({"prompt": TURNS, "image": datasets.Image()}),
    )
    lengths: list[int] = []

    def reward(completions: Any, **rest: Any) -> list[float]:
        lengths.extend(len(str(one)) for one in completions)
        return [float(number % 2) for number in range(len(completions))]

    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path), num_generations=2, max_completion_length=5, beta=0.0, temperature=1.0, **OPTIONS
    )
    trainer = trl.GRPOTrainer(model, reward, arguments, train_dataset=data, processing_class=processor)
    with foveate.compress(model, "uniform:3", align_logits=True) as handle:
        trainer.train()
        assert all(image.tokens_kept == 3 for image in handle.report(everything=True).images)
    assert lengths
    assert math.isfinite(trainer.state.log_history[0]["loss"])
    # On policy, a step's importance ratios are 1 before it is taken: what was written is what is scored.
    log = trainer.state.log_history[0]
    for name in ("clip_ratio/region_mean", "clip_ratio/high_mean", "clip_ratio/low_mean"):
        assert log.get(name, 0.0) == 0.0


@pytest.mark.parametrize("plan", PLANS)
def test_log_probabilities_of_the_fused_output_layer(folder: Path, plan: str) -> None:
    """What all trainers of TRL work with: a log-probability for each column but the last."""
    from trl.trainer.utils import add_fused_lm_head

    model, processor = parts(folder)
    model.eval()
    turns = asked(0) + said(words(0))
    turns[0]["content"][0]["image"] = tiny_model.noise(32, 32)
    inputs = processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
    labels = inputs["input_ids"].clone()
    labels[:, :-6] = -100
    add_fused_lm_head(model, outputs=("log_probs",))
    with torch.no_grad(), foveate.compress(model, plan):
        out = model(**inputs, labels=labels, use_cache=False)
        own = out.logits[:, :-1].log_softmax(dim=-1)
        on_progress = out.labels[:, 1:]
        expected = own.gather(2, on_progress.clamp(min=0)[..., None])[..., 0][on_progress >= 0]
    with torch.no_grad(), foveate.compress(model, plan, align_logits=True):
        found = model(**inputs, labels=labels, fused_lm_head=True).log_probs
    assert found.shape[1] == labels.shape[1] - 1
    torch.testing.assert_close(found[labels[:, 1:] >= 0], expected, atol=1e-4, rtol=1e-4)

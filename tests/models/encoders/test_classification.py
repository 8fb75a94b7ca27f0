"""Encoders with a classifier: what the Trainer of `transformers` does with all of them."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from foveate.models.encoders.adventurer import AdventurerForImageClassification
from foveate.models.encoders.sit import SiTForImageClassification
from foveate.models.encoders.stvit import STViTForImageClassification
from tests.models.encoders.small_encoders import images, small_config


@pytest.mark.parametrize(
    "cls", [AdventurerForImageClassification, SiTForImageClassification, STViTForImageClassification]
)
def test_the_trainer_accumulates_gradients(cls, tmp_path):
    """The loss of a step is the mean over its batches; here all of them are equal."""
    torch.manual_seed(0)
    model = cls(small_config(cls.config_class.model_type, num_labels=3)).train()
    pixels = images(1).expand(2, -1, -1, -1)
    with torch.no_grad():
        expected = float(model(pixels, labels=torch.tensor([1, 1])).loss)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
    )
    trainer = Trainer(model, arguments, train_dataset=[{"pixel_values": pixels[0], "labels": 1}] * 4)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-3)

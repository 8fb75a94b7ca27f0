"""Ordinary use of foveate asks for nothing that the installed libraries are about to take away."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.utils import logging as transformers_logging

import foveate
from foveate.loading import load
from tests.families.zoo import zoo
from tests.runtime.matrix import inside_plans
from tests.tiny_model import save_llava, save_llava_uhd

ROWS = (((3, 4),), ((2, 3), (4, 3)))
#: What is said of kernels that are not installed.
KERNELS = "is falling back to its reference PyTorch implementation"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What transformers logs, also what it would say once a process."""
    transformers_logging.get_logger("transformers.modeling_utils").warning_once.cache_clear()  # ty: ignore
    caplog.set_level(logging.WARNING, logger="transformers")
    return caplog.records


def of_transformers(said: list[logging.LogRecord]) -> list[str]:
    ours = [record.getMessage() for record in said if record.name.startswith("transformers")]
    return [message for message in ours if KERNELS not in message]


@pytest.mark.parametrize("name", sorted(zoo()))
def test_models_under_plans_warn_of_nothing(name: str, said: list[logging.LogRecord]) -> None:
    specimen = zoo()[name]
    model: Any = specimen.model()
    inputs = specimen.prompts(model, ROWS)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= 100, -100)
    family = foveate.families.families()[specimen.family]
    plans = ["divprune:3", *([inside_plans()[len(name) % len(inside_plans())]] if family.decoder else [])]
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("error", kind)
        for plan in plans:
            with foveate.compress(model, plan) as handle, torch.no_grad():
                model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
                model(**inputs, labels=labels)
                str(handle.report())
    assert of_transformers(said) == []


@pytest.mark.parametrize("save", [save_llava, save_llava_uhd])
def test_loading_asking_and_saving_warn_of_nothing(save: Any, tmp_path: Path, said: list[logging.LogRecord]) -> None:
    folder, picture = save(tmp_path / "model"), tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "navy").save(picture)
    said.clear()
    transformers_logging.get_logger("transformers.modeling_utils").warning_once.cache_clear()  # ty: ignore
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("error", kind)
        model, processor = load(folder)
        foveate.ask(picture, "What is it?", (model, processor), "divprune:50%", max_new_tokens=2)
        model.save_pretrained(tmp_path / "again")
        processor.save_pretrained(tmp_path / "again")
        load(tmp_path / "again")
    assert of_transformers(said) == []

"""Two processes on the CPU compute what one computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed
import yaml

from foveate.training.recipe_file import read_recipe
from foveate.training.run import Run
from tests.training.small_training import EVERYTHING, read_log, recipe, small_stage, write_conversations


def write_recipe(folder: Path, output: Path) -> Path:
    """Answers of different length, images of different size, and pictures without known characters: the halves of a
    batch hold different numbers of learned tokens and cells, and the loss must still be the mean over all."""
    rendered = {"tasks": {"text_page": 1, "read_word": 1}, "sizes": {"width": [64, 128], "height": [64, 96]}}
    stage = small_stage(
        [{"rendered": rendered}, {"files": {"path": str(write_conversations(folder))}}],
        groups=2,
        accumulate=2,
        steps=6,
        train=EVERYTHING | {"heads": 1e-3},
        loss={"answer": 1, "cells": 0.5, "early_cells": 0.5},
    )
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(output, stage, log_every=1, save_every=3)), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_give_the_loss_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    path = write_recipe(tmp_path, one)
    Run(read_recipe(path), workers=0).train()

    # With --cpu the launcher starts one process unless MPI is installed; --multi_gpu means "several on this machine".
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, "-m", "foveate", "train", str(path), "--output", str(two), "--workers", "0", "--json"]
    on_cpu = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=on_cpu, timeout=600)
    assert result.returncode == 0, result.stderr

    expected, actual = read_log(one), read_log(two)
    assert [entry["step"] for entry in actual] == [entry["step"] for entry in expected] == list(range(1, 7))
    for a, e in zip(actual, expected, strict=True):
        assert set(a) == set(e)
        assert (a["processes"], e["processes"]) == (2, 1)
        assert a["samples"] == e["samples"]
        for name in ("loss", "answer_loss", "cell_loss", "early_cell_loss", "grad_norm"):
            assert a[name] == pytest.approx(e[name], rel=2e-5), (name, a["step"])
        for name in ("answer_accuracy", "cell_accuracy", "early_cell_accuracy"):
            assert a[name] == pytest.approx(e[name], abs=1e-12), (name, a["step"])
    # One report, from one process.
    assert result.stdout.count('"finished": true') == 1

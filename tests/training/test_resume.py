"""A run that is killed at any moment continues on the loss curve of a run that never stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_training import EVERYTHING, read_log, recipe, small_stage

from foveate.training.recipe import read_recipe
from foveate.training.run import Run

# What differs between two runs on the same machine.
CLOCK = ("seconds", "samples_per_second", "time")


def write_recipe(folder: Path, output: Path, steps: int) -> Path:
    """Everything a run has: stages, both optimisers, bfloat16, accumulation, images of several sizes, all losses."""
    rendered = {"sizes": {"width": [64, 128], "height": [64, 96]}, "tasks": {"text_page": 1, "read_word": 1}}
    shared = {"batch_size": 4, "accumulate": 2, "groups": 2, "schedule": {"kind": "cosine", "warmup": 4}}
    read = small_stage(
        [{"rendered": rendered}],
        name="read",
        steps=8,
        train={"vision_tower": 1e-3, "stages": 1e-3, "heads": 1e-3},
        loss={"answer": 0, "cells": 1, "before": 0.5},
        **shared,
    )
    answer = small_stage(
        [{"rendered": rendered | {"final_sizes": {"width": [96, 128], "height": [96, 128]}}}],
        name="answer",
        steps=steps,
        train=EVERYTHING | {"heads": 1e-3},
        loss={"answer": 1, "cells": 0.5, "before": 0.5},
        optimizer="muon",
        **shared,
    )
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(output, read, answer, bf16=True)), encoding="utf-8")
    return path


def start(path: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "foveate.training", str(path), "--output", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def kill_when(process: subprocess.Popen, ready) -> None:
    """Kills the process and its workers as soon as `ready()`; fails where it ends before."""
    while not ready():
        if process.poll() is not None:
            pytest.fail(f"ended before it was killed: {process.stderr.read().decode()}")
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def without_clock(log: list[dict]) -> list[dict]:
    return [{name: value for name, value in entry.items() if name not in CLOCK} for entry in log]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_run_resumes_to_the_same_loss_curve(tmp_path):
    steps = 24
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    path = write_recipe(tmp_path, whole, steps)
    Run(read_recipe(path)).train()

    def logged(step: int):
        return lambda: (killed / "log.jsonl").exists() and (killed / "log.jsonl").read_text().count("\n") >= step // 2

    # In the first stage, after its first checkpoint; then in the second, while a checkpoint is being written.
    kill_when(start(path, killed), logged(6))
    kill_when(
        start(path, killed),
        lambda: logged(16)() and any((killed / "stages" / "2-answer").glob(".writing-*")),
    )
    process = start(path, killed)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()

    expected, actual = read_log(whole), read_log(killed)
    assert [entry["step"] for entry in expected] == list(range(2, 8 + steps + 1, 2))
    assert without_clock(actual) == without_clock(expected)
    seconds = [entry["seconds"] for entry in actual]
    assert seconds == sorted(seconds)
    # The same weights too, after five processes instead of one.
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]

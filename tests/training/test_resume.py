"""A run that is killed at any moment continues on the loss curve of a run that never stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from foveate.cli import main
from foveate.training.recipe_file import read_recipe
from foveate.training.run import Run
from tests.full_disk import room
from tests.training.small_training import EVERYTHING, read_log, recipe, small_stage

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
        loss={"answer": 0, "cells": 1, "early_cells": 0.5},
        **shared,
    )
    answer = small_stage(
        [{"rendered": rendered | {"final_sizes": {"width": [96, 128], "height": [96, 128]}}}],
        name="answer",
        steps=steps,
        train=EVERYTHING | {"heads": 1e-3},
        loss={"answer": 1, "cells": 0.5, "early_cells": 0.5},
        optimizer="muon",
        **shared,
    )
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(output, read, answer, bf16=True)), encoding="utf-8")
    return path


def start(path: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "foveate", "train", str(path), "--output", str(output)]
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


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_full_disk_loses_nothing_but_the_steps_since_the_last_checkpoint(tmp_path, capsys):
    rendered = {"sizes": {"width": [64, 96], "height": [64, 64]}, "tasks": {"read_word": 1}}
    stage = small_stage([{"rendered": rendered}], steps=6, train=EVERYTHING, batch_size=2)
    path, outputs = tmp_path / "recipe.yaml", [tmp_path / "whole", tmp_path / "full"]
    path.write_text(yaml.safe_dump(recipe(outputs[0], stage, save_every=2)), encoding="utf-8")
    Run(read_recipe(path), outputs[0], workers=0).train()
    command = ["train", str(path), "--output", str(outputs[1]), "--workers", "0"]

    def until_full(size: int) -> None:
        with room(size):
            assert main(command) == 2
        error = capsys.readouterr().err
        assert "could not be written" in error and "Traceback" not in error

    until_full(20_000)  # no checkpoint fits
    assert not list((outputs[1] / "stages").rglob("checkpoint-*"))
    largest = max(file.stat().st_size for file in (outputs[0] / "stages").rglob("optimizer.pt"))
    until_full(largest - 1000)  # the weights fit, the optimiser does not
    assert not list((outputs[1] / "stages").rglob("checkpoint-*"))
    Run(read_recipe(path), outputs[1], workers=0).train()
    assert without_clock(read_log(outputs[1])) == without_clock(read_log(outputs[0]))
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in outputs]
    assert weights[0] == weights[1]
    assert not list(outputs[1].rglob(".writing-*"))
    with room(1000):
        assert main([*command, "--export", str(tmp_path / "model")]) == 2
    assert "the model could not be saved" in capsys.readouterr().err
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.slow
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

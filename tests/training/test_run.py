"""Runs of recipes: what they train, where they stop, and what they leave."""

import io
import json
import os
import shutil
import signal

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors import safe_open

from foveate import FoveateError
from foveate.cli import main
from foveate.models.llava_uhd import LlavaUHDForConditionalGeneration, LlavaUHDProcessor
from foveate.training.architectures import ARCHITECTURES
from foveate.training.building import build_model, new_model
from foveate.training.callbacks import StopRequest
from foveate.training.log import RunLog
from foveate.training.recipe import NewModel
from foveate.training.recipe_file import parse_recipe
from foveate.training.run import Run
from tests.training.small_training import EVERYTHING, TEXT, VISION, read_log, recipe, small_stage, write_conversations


@pytest.fixture
def data(tmp_path):
    return [{"files": {"path": str(write_conversations(tmp_path))}}]


def run_of(tmp_path, *stages, **changes) -> Run:
    return Run(parse_recipe(recipe(tmp_path / "out", *stages, **changes)), workers=0)


def exported(run: Run) -> dict[str, torch.Tensor]:
    return LlavaUHDForConditionalGeneration.from_pretrained(run.output / "model", dtype=torch.float32).state_dict()


@pytest.mark.slow
def test_a_model_learns_what_it_is_shown(tmp_path, data):
    stage = small_stage(data, steps=300, batch_size=12, train=dict.fromkeys(EVERYTHING, 5e-3), schedule={"warmup": 5})
    run = run_of(tmp_path, stage, log_every=20, save_every=1000)
    result = run.train()
    log = read_log(run.output)
    assert log[0]["answer_loss"] > 3
    assert log[-1]["answer_accuracy"] > 0.95  # 12 pictures by heart
    assert result.finished
    assert result.progress.step == 300
    assert result.progress.samples == log[-1]["samples"] == 300 * 12
    record = json.loads((run.output / "model" / "training.json").read_text(encoding="utf-8"))
    assert (record["steps"], record["samples"]) == (300, 300 * 12)
    assert record["stages"] == {
        "one": {"steps": 300, **{name: log[-1][name] for name in ("loss", "answer_loss", "answer_accuracy")}}
    }


@pytest.mark.parametrize("parts", [("connector",), ("stages", "language_model"), ("vision_tower",)])
def test_only_the_named_parts_change(tmp_path, data, parts):
    run = run_of(tmp_path, small_stage(data, steps=2, train=dict.fromkeys(parts, 1e-2)))
    before = {
        name: tensor.bfloat16().float()
        for name, tensor in build_model(run.recipe.model, run.recipe.seed)[0].state_dict().items()
    }
    run.train()
    after = exported(run)
    changed = {
        ARCHITECTURES["llava-uhd"].part_of(f"model.{name}")
        for name in before
        if not torch.equal(before[name], after[name])
    }
    assert changed == set(parts)


def test_accumulated_batches_give_the_loss_of_one_batch(tmp_path, data):
    """Answers differ in length, so a mean of means would differ."""
    losses = []
    for batch_size, accumulate in ((12, 1), (4, 3), (2, 6)):
        folder = tmp_path / str(batch_size)
        stage = small_stage(data, steps=3, batch_size=batch_size, accumulate=accumulate, clip=0)
        run = run_of(folder, stage, log_every=1)
        run.train()
        losses.append([(entry["loss"], entry["answer_loss"], entry["grad_norm"]) for entry in read_log(run.output)])
        assert [entry["samples"] for entry in read_log(run.output)] == [12, 24, 36]
    for other in losses[1:]:
        for expected, actual in zip(losses[0], other, strict=True):
            assert actual == pytest.approx(expected, rel=1e-5)


def test_learning_rates_follow_parts_and_schedule(tmp_path, data):
    rates = {"connector": 1e-2, "language_model": 1e-3}
    stage = small_stage(data, steps=4, train=rates, schedule={"kind": "linear", "warmup": 2, "final": 0.5})
    run = run_of(tmp_path, stage, log_every=1)
    run.train()
    factors = [entry["learning_rates"]["connector"] / 1e-2 for entry in read_log(run.output)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.75])
    assert all(
        e["learning_rates"]["language_model"] == pytest.approx(e["learning_rates"]["connector"] / 10)
        for e in read_log(run.output)
    )


def test_out_of_time_is_a_clean_stop(tmp_path, data):
    stages = (small_stage(data), small_stage(data, name="two", steps=2))
    run = run_of(tmp_path, *stages)
    first = run.train(max_minutes=0)
    assert not first.finished
    assert first.progress.step == 1
    assert (run.output / "stages" / "1-one" / "checkpoint-1").is_dir()
    assert first.model.is_dir()
    second = run.train()
    assert second.finished
    assert [entry["step"] for entry in read_log(run.output)] == [1, 2, 4, 6, 8, 10]
    assert [entry["stage"] for entry in read_log(run.output)][-2:] == ["one", "two"]
    assert second.progress.seconds > first.progress.seconds
    # Nothing is left to do: the third run changes nothing.
    log = run.log.path.read_bytes()
    assert run.train().finished
    assert run.log.path.read_bytes() == log


def test_signals_ask_for_a_clean_stop():
    stop = StopRequest()
    before = signal.getsignal(signal.SIGTERM)
    with stop.on_signals():
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_stage_can_be_trained_alone(tmp_path, data):
    stages = (small_stage(data, steps=4), small_stage(data, name="two", steps=2))
    run = run_of(tmp_path, *stages)
    run.train(max_minutes=0, only="one")
    run.train(only="two")  # from the unfinished first stage
    log = read_log(run.output)
    assert [(entry["stage"], entry["stage_step"]) for entry in log] == [("one", 1), ("two", 2)]
    with pytest.raises(FoveateError, match="no stage 'three'; its stages are one, two"):
        run.train(only="three")


def test_a_folder_with_the_last_stage_alone_is_resumed(tmp_path, data):
    stages = (small_stage(data, steps=2), small_stage(data, name="two", steps=3))
    run = run_of(tmp_path, *stages, save_every=1)
    run.train()
    shutil.rmtree(run.output / "stages" / "1-one")
    shutil.rmtree(run.output / "stages" / "2-two" / "checkpoint-3")
    with (console := Console(file=io.StringIO())).capture() as shown:
        assert run.train(console=console).finished
    assert "stage one has no checkpoint" in shown.get()
    assert sorted(path.name for path in (run.output / "stages").iterdir()) == ["2-two"]
    assert [(entry["stage"], entry["stage_step"]) for entry in read_log(run.output)][-1] == ("two", 3)


def test_old_checkpoints_are_removed_and_none_is_overwritten_without_resume(tmp_path, data):
    run = run_of(tmp_path, small_stage(data, steps=6), save_every=1, keep=2)
    run.train(resume=False)
    folder = run.output / "stages" / "1-one"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-5", "checkpoint-6"]
    with pytest.raises(FoveateError, match="already holds checkpoints"):
        run.train(resume=False)


def test_the_trained_model_is_small_complete_and_without_heads(tmp_path):
    rendered = {"tasks": {"read_word": 1}, "sizes": {"width": [64, 96], "height": [64, 64]}}
    parts = EVERYTHING | {"heads": 1e-3}
    stage = small_stage([{"rendered": rendered}], steps=2, train=parts, loss={"answer": 1, "cells": 1})
    run = run_of(tmp_path, stage, bf16=True)
    run.train()
    with safe_open(run.output / "model" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "reader" in name]  # noqa: SIM118 (not a dict)
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    saved = json.loads((run.output / "model" / "config.json").read_text(encoding="utf-8"))
    assert saved["dtype"] == "bfloat16"
    assert "use_cache" not in saved

    model = LlavaUHDForConditionalGeneration.from_pretrained(run.output / "model")
    processor = LlavaUHDProcessor.from_pretrained(run.output / "model")
    inputs = processor(images=Image.new("RGB", (64, 64)), text="<image>?", return_tensors="pt")
    assert model.generate(**inputs.to(dtype=model.dtype), max_new_tokens=2).shape[1] <= inputs["input_ids"].shape[1] + 2

    again = run.export(tmp_path / "again")
    assert again.finished
    first, second = exported(run), LlavaUHDForConditionalGeneration.from_pretrained(again.model, dtype=torch.float32)
    assert all(torch.equal(first[name], tensor) for name, tensor in second.state_dict().items())


def test_nothing_to_export_is_an_error(tmp_path, data):
    with pytest.raises(FoveateError, match="no checkpoint to export"):
        run_of(tmp_path, small_stage(data)).export(tmp_path / "model")


def test_a_pretrained_model_can_be_trained_on(tmp_path, data):
    first = run_of(tmp_path, small_stage(data, steps=2))
    first.train()
    content = recipe(tmp_path / "more", small_stage(data, steps=2, train={"connector": 1e-2}))
    content["model"] = {"from": str(first.output / "model")}
    second = Run(parse_recipe(content), workers=0)
    second.train()
    before, after = exported(first), exported(second)
    assert {
        ARCHITECTURES["llava-uhd"].part_of(f"model.{n}") for n in before if not torch.equal(before[n], after[n])
    } == {"connector"}


def test_a_model_that_is_not_there_is_named(tmp_path, data):
    content = recipe(tmp_path / "out", small_stage(data), model={"from": str(tmp_path / "absent")})
    with pytest.raises(FoveateError, match="there is no folder .*absent"):
        Run(parse_recipe(content)).train()


def test_bad_data_stops_a_run_before_it_starts(tmp_path, data):
    (tmp_path / "3.png").unlink()
    run = run_of(tmp_path, small_stage([{"easy_vqa": True}]), small_stage(data, name="two"))
    with pytest.raises(FoveateError, match=r"data\.jsonl, line 4: the image .*3\.png does not exist"):
        run.train()
    assert not run.output.exists()


def test_weights_depend_on_the_seed_alone():
    new = NewModel(
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "merger_layer_index": [0]},
        {"model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16},
    )
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second, other = (new_model(new, seed)[0].state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (NewModel(VISION | {"hiden_size": 32}, TEXT), ["model.new.vision", "hiden_size", "hidden_size"]),
        (NewModel(VISION, TEXT | {"rope_thetas": 1}), ["model.new.text", "rope_thetas"]),
        (NewModel(VISION, TEXT | {"model_type": "lama"}), ["model.new.text.model_type", "lama"]),
        (
            NewModel(VISION | {"hidden_size": 30, "num_attention_heads": 4}, TEXT),
            ["model.new.vision", "hidden_size=30"],
        ),
        (NewModel(VISION, TEXT, tokenizer="./absent"), ["model.new.tokenizer", "absent"]),
        (NewModel(VISION, TEXT, images={"max_edges": 5}), ["model.new.images", "max_edges"]),
    ],
)
def test_mistakes_in_a_new_model_are_named(new, words):
    with pytest.raises(FoveateError) as error:
        new_model(new, 0)
    for word in words:
        assert word in str(error.value)


def test_the_log_is_rewound_to_the_resumed_step(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    assert log.read() == []
    log.rewind(5)
    for step in (2, 4, 6, 8):
        log.append({"step": step, "seconds": 1.0})
    with log.path.open("a") as file:
        file.write('{"step": 10, "sec')  # killed while writing
    assert [entry["step"] for entry in log.read()] == [2, 4, 6, 8]
    log.rewind(6)
    log.append({"step": 8, "seconds": 2.0})
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [2, 4, 6, 8]


def test_the_command_reports_in_json_and_draws_the_losses(tmp_path, data, capfd):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path / "ignored", small_stage(data, steps=2))), encoding="utf-8")
    output = tmp_path / "out"
    assert main(["train", str(path), "--output", str(output), "--workers", "0", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["finished"] is True
    assert (report["step"], report["samples"]) == (2, 8)
    assert report["model"] == str(output / "model")
    with Image.open(output / "losses.png") as picture:
        picture.load()
        assert len(picture.getcolors(2**20)) > 10
    assert not (tmp_path / "ignored").exists()

    assert main(["train", str(path), "--output", str(output), "--export", str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy" / "config.json").is_file()


def test_mistakes_end_in_one_sentence_and_code_2(tmp_path, capfd):
    assert main(["train", str(tmp_path / "absent.yaml")]) == 2
    error = capfd.readouterr().err
    assert "absent.yaml" in error
    assert "Traceback" not in error

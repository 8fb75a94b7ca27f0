"""Runs of recipes: what they train, where they stop, and what they leave."""

import io
import itertools
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
from safetensors.torch import load_file

from foveate import FoveateError
from foveate.cli import main
from foveate.models.llava_uhd import LlavaUHDForConditionalGeneration, LlavaUHDProcessor
from foveate.training import building, sources
from foveate.training.architectures import ARCHITECTURES
from foveate.training.building import build_model, new_model
from foveate.training.callbacks import StopRequest
from foveate.training.log import RunLog
from foveate.training.recipe import NewModel
from foveate.training.recipe_file import parse_recipe
from foveate.training.run import Run
from foveate.training.trainer import WEIGHTS
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
    for minutes in (-1.0, float("nan")):
        with pytest.raises(FoveateError, match="0 minutes or more"):
            StopRequest(minutes)


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


def test_a_run_that_was_killed_before_its_model_was_saved_saves_it(tmp_path, data, monkeypatch):
    run = run_of(tmp_path, small_stage(data, steps=3), small_stage(data, name="two", steps=2))
    saved, numbers = [], itertools.count()

    def killed(*args, **options):
        saved.append(next(numbers))
        if len(saved) == 2:
            raise KeyboardInterrupt
        return building.export(*args, **options)

    monkeypatch.setattr("foveate.training.run.export", killed)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    (run.output / ".model.1.partial").mkdir()
    result = run.train()  # the second stage is complete, and its model is not there
    assert result.finished and len(saved) == 3 and not list(run.output.glob(".*"))
    record = json.loads((result.model / "training.json").read_text(encoding="utf-8"))
    assert record["steps"] == result.progress.step == 5
    assert run.train().finished and len(saved) == 3


def test_the_record_of_a_model_ends_with_its_checkpoint(tmp_path, data):
    run = run_of(tmp_path, small_stage(data, steps=4), log_every=1)
    run.train()
    last = read_log(run.output)[-1]
    run.log.append(last | {"step": 5, "stage_step": 5})  # written by a run that was killed before its next checkpoint
    run.export(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "training.json").read_text(encoding="utf-8"))["steps"] == 4


LLAVA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32}


@pytest.mark.parametrize(
    ("llava", "changes", "words"),
    [
        (False, {"loss": {"answer": 1, "page": 1}}, r"loss\.page reads a \[CLS\] token"),
        (False, {"loss": {"answer": 1, "cells": 1}}, r"loss\.cells needs to know where something is drawn"),
        (False, {"loss": {"answer": 1, "question_attention": 1}}, r"loss\.question_attention needs to know where"),
        (True, {"loss": {"answer": 1, "early_cells": 1}}, r"loss\.early_cells reads the tokens before the last stage"),
        (
            True,
            {"train": {"stages": 1e-3, "connector": 1e-3}},
            r"train\.stages is no part .* vision_tower, connector",
        ),
    ],
)
def test_losses_and_parts_that_a_model_does_not_have_are_refused(tmp_path, data, llava, changes, words):
    train = {"vision_tower": 1e-3, "connector": 1e-3}
    model = {"new": {"architecture": "llava", "vision": LLAVA | {"patch_size": 8}, "text": TEXT}}
    stage = small_stage(data, **{"train": train, **changes})
    with pytest.raises(FoveateError, match=words):
        run_of(tmp_path, stage, **({"model": model} if llava else {})).train()


@pytest.mark.parametrize("key", ["frames", "videos"])
def test_what_is_for_clips_is_refused_where_none_are_read(tmp_path, data, key):
    value = {"frames": "uniform-frames:8", "videos": str(tmp_path)}[key]
    stage = small_stage([{"files": data[0]["files"] | {key: value}}])
    with pytest.raises(FoveateError, match=f"files.{key} is for clips, .* llava-uhd reads no clips"):
        run_of(tmp_path, stage).train()


def test_another_recipe_in_the_same_folder_is_noticed(tmp_path, data):
    stage = small_stage(data, steps=2)
    run_of(tmp_path, stage).train()

    def shown(*stages, **changes) -> str:
        with (console := Console(file=io.StringIO(), width=500)).capture() as captured:
            run_of(tmp_path, *stages, **changes).train(console=console)
        return captured.get()

    assert "another" not in shown(stage)
    assert "is complete, and was trained with another seed, train:" in shown(
        stage | {"train": {"connector": 1e-3}}, seed=4
    )
    (tmp_path / "data.jsonl").write_text((tmp_path / "data.jsonl").read_text().split("\n")[0], encoding="utf-8")
    assert "stage one was begun with another data, and continues" in shown(stage | {"steps": 3})
    for change in ({"train": {"connector": 1e-3}}, {"optimizer": "muon"}):
        with pytest.raises(FoveateError, match="cannot be continued with other parts in train or another optimizer"):
            shown(stage | {"steps": 4} | change)
    assert "another" not in shown(stage | {"steps": 4})  # what the last checkpoint was trained with counts
    log = read_log(tmp_path / "out")
    with pytest.raises(FoveateError, match=r"stages that this recipe does not have \(1-one\)"):
        run_of(tmp_path, small_stage(data, name="two")).train()
    assert read_log(tmp_path / "out") == log


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_goes_on_with_the_rates_of_the_recipe(tmp_path, data, optimizer):
    stage = small_stage(data, optimizer=optimizer)
    run_of(tmp_path, stage | {"steps": 4}).train()
    before = load_file(tmp_path / "out" / "stages" / "1-one" / "checkpoint-4" / WEIGHTS)
    rates = dict.fromkeys(EVERYTHING, 1e-12)
    run_of(tmp_path, stage | {"steps": 8, "train": rates, "weight_decay": 0}).train()
    after = load_file(tmp_path / "out" / "stages" / "1-one" / "checkpoint-8" / WEIGHTS)
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-9) for name in before)
    state = torch.load(tmp_path / "out" / "stages" / "1-one" / "checkpoint-8" / "optimizer.pt", weights_only=True)
    groups = [group for part in state.get("parts", [state]) for group in part["param_groups"]]
    assert {group["initial_lr"] for group in groups} == {1e-12} and not any(group["weight_decay"] for group in groups)


def test_an_error_of_a_worker_is_one_sentence(tmp_path, data, monkeypatch):
    content = parse_recipe(recipe(tmp_path / "out", small_stage(data)))

    def late(*args, **options):
        source = sources.open_source(*args, **options)
        for path in tmp_path.glob("*.png"):  # after they were checked
            path.unlink()
        return source

    monkeypatch.setattr("foveate.training.run.open_source", late)
    with pytest.raises(FoveateError) as error:
        Run(content, workers=1).train()
    assert ".png" in str(error.value) and "\n" not in str(error.value)


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
        (NewModel(VISION, TEXT | {"hidden_size": "32"}), ["model.new.text", "hidden_size", "expected int"]),
        (NewModel(VISION, TEXT | {"num_attention_heads": 0}), ["model.new.text", "zero"]),
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
    arguments = ["train", str(path), "--output", str(output), "--export", str(tmp_path / "other")]
    assert main([*arguments, "--stage", "one", "--no-resume"]) == 2
    assert "leave --stage and --no-resume out" in capfd.readouterr().err
    assert not (tmp_path / "other").exists()


def test_mistakes_end_in_one_sentence_and_code_2(tmp_path, capfd):
    assert main(["train", str(tmp_path / "absent.yaml")]) == 2
    error = capfd.readouterr().err
    assert "absent.yaml" in error
    assert "Traceback" not in error

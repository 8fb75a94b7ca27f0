"""Connectors trained under one protocol: the table of trainings, claims, fronts, and a whole run on a small model."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate import cli, shipped
from foveate.benchmark.trained import (
    SYSTEMS,
    VIDEO_SYSTEMS,
    ClipTrainedSettings,
    System,
    TrainedSettings,
    conclude,
    front,
    run,
    trainings,
)
from foveate.benchmark.trained import recipes as bench_recipes
from foveate.benchmark.trained.claims import CLAIMS, CLIP_CLAIMS, NO_ROW, NOT_SHOWN, REVERSED, SHOWN, Claim
from foveate.benchmark.trained.cost import Prompted, first_token_flops
from foveate.benchmark.trained.formatting import COSTS, markdown, table
from foveate.benchmark.trained.recipes import recipe_of
from foveate.benchmark.trained.settings import CLIP_BASE
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.core.tokens import Grid
from foveate.cost import flops
from foveate.models.connectors import all_connectors
from foveate.models.connectors.registry import connector_of_sizes
from foveate.models.encoders import encoder_named
from foveate.models.encoders.configuration import StagedConfig
from foveate.models.llava.lengths import nested_part
from foveate.models.video_connectors import all_video_connectors, video_connector_of_sizes
from foveate.report import build
from foveate.training.building import new_model
from foveate.training.recipe import NewModel
from foveate.training.recipe_file import read_recipe
from tests.training.small_video import new_fields

SETTINGS = TrainedSettings(base="")
ALL = trainings()


def test_names_of_trainings_are_unique_and_select_them():
    assert len({training.name for training in ALL}) == len(ALL) > 15
    assert [training.name for training in trainings(["m3"])] == ["m3"]
    assert {training.name for training in trainings(["tokenpacker", "average-36"])} == {
        "average-36", "tokenpacker-4", "tokenpacker-9", "tokenpacker-16", "tokenpacker-36",
    }  # fmt: skip
    with pytest.raises(FoveateError, match="no training 'pooling'; possible are mlp, mlp-144"):
        trainings(["pooling"])


def test_nested_trainings_and_equal_lengths_come_first():
    kinds = [bool(training.encoder) for training in ALL]
    assert kinds == sorted(kinds) and any(kinds)  # connectors before encoders
    for kind in (False, True):
        lengths = [training.lengths for training in ALL if bool(training.encoder) is kind]
        nested = [len(found) > 1 for found in lengths]
        assert nested == sorted(nested, reverse=True)
        single = [found[0] for found in lengths if len(found) == 1]
        assert [tokens for tokens, _ in itertools.groupby(single)] == list(dict.fromkeys(single))
        assert single[0] == 36


@pytest.mark.parametrize("training", [one for one in ALL if one.encoder], ids=lambda training: training.name)
def test_an_encoder_gives_its_tokens_and_is_trained_from_random_weights(training, tmp_path):
    recipe = recipe_of(training, replace(SETTINGS, base="a/model"), tmp_path)
    new, (stage,) = recipe.model.new, recipe.stages
    fields = dict(new.vision)
    vision = encoder_named(fields.pop("type")).config_class(**fields)
    options = dict(new.connector)
    connector = connector_of_sizes(options.pop("type"), options)
    grid = vision.output_grid(vision.image_size, vision.image_size)
    lengths = tuple(nested_part(connector, vision).training_lengths(grid)) if training.plan else ()
    assert training.lengths == (lengths or (connector.output_grid(grid).size,))
    assert stage.lengths == ("sampled" if training.plan else None)
    teacher = str(tmp_path.parent / f"{training.teacher}.run/model") if training.teacher else None
    assert new.vision_tower == teacher and new.language_model == "a/model"
    reference = recipe_of(trainings(["mlp"])[0], SETTINGS, tmp_path)
    assert stage.train == {"vision_tower": 1e-3, **reference.stages[0].train}
    assert (stage.teacher, stage.loss.recalibration) == ((teacher, 2.0) if training.system == "sit" else (None, 0.0))
    same = {name: getattr(stage, name) for name in ("lengths", "train", "teacher", "loss")}
    assert stage == replace(reference.stages[0], **same)
    assert replace(stage.loss, recalibration=0.0) == reference.stages[0].loss
    assert vision.num_hidden_layers == 6 or isinstance(vision, StagedConfig)


def test_a_training_that_starts_from_another_one_comes_after_it():
    """Distilled or not, the slimmed tower starts from the same teacher, and only the loss differs."""
    names = [training.name for training in trainings(["sit", "sit-from-teacher"])]
    assert names == ["sit-teacher-36", "sit-from-teacher-36", "sit-36"]
    every = [training.name for training in ALL]
    for training in ALL:
        assert not training.teacher or every.index(training.teacher) < every.index(training.name)
    teacher, plain, distilled = trainings(["sit"])[0], trainings(["sit-from-teacher-36"])[1], trainings(["sit-36"])[1]
    assert {**teacher.encoder, "slimming": True} == {
        **plain.encoder,
        "slimming": True,
    } and plain.teacher == teacher.name
    same = replace(distilled, system=plain.system, name=plain.name, recalibration=0.0)
    assert same == plain and distilled.recalibration > 0


def test_patches_differ_in_nothing_but_their_size():
    sizes = {
        training.system: training.encoder["patch_size"] for training in ALL if training.system.startswith("patch-")
    }
    assert sizes == {"patch-32": 32, "patch-16": 16, "patch-8": 8}
    others = [{**one.encoder, "patch_size": None} for one in ALL if one.system in sizes]
    assert len(others) == 3 and all(fields == others[0] for fields in others)


def test_runs_of_connectors_are_described_as_before():
    """So that a run that was begun without encoders in the table goes on."""
    described = trainings(["mlp"])[0].described
    assert list(described) == ["system", "name", "recipe", "lengths", "options", "plan", "image_size"]
    assert "teacher" not in trainings(["vit-36"])[0].described and "teacher" in trainings(["sit-36"])[1].described
    assert "encoder" in trainings(["vit-36"])[0].described


@pytest.mark.parametrize("training", [one for one in ALL if not one.encoder], ids=lambda training: training.name)
def test_a_training_gives_its_tokens_and_differs_in_nothing_but_its_connector(training, tmp_path):
    recipe = recipe_of(training, SETTINGS, tmp_path)
    new, (stage,) = recipe.model.new, recipe.stages
    side = new.vision["image_size"] // new.vision["patch_size"]
    options = dict(new.connector)
    connector = connector_of_sizes(options.pop("type"), options)
    if training.plan:
        assert set(training.lengths) <= set(connector.training_lengths(Grid(side, side)))
        methods = {Plan.of(plan).steps[0].method.name for plan in training.plans.values()}
        assert connector.nested and methods == {training.plan} and stage.lengths == "sampled"
    else:
        assert stage.lengths == ("full" if connector.nested else None)
        assert training.lengths == (connector.output_grid(Grid(side, side)).size,)
    reference = recipe_of(trainings(["mlp"])[0], SETTINGS, tmp_path)
    vision = reference.model.new.vision | {"image_size": new.vision["image_size"]}
    same = replace(reference.model.new, connector=new.connector, vision=vision)
    assert new == same and stage == replace(reference.stages[0], lengths=stage.lengths)
    assert recipe.seed == reference.seed


def test_settings_replace_what_the_recipe_has(tmp_path):
    settings = replace(SETTINGS, steps=7, train_batch_size=8, seed=5, base="a/model")
    recipe = recipe_of(ALL[0], settings, tmp_path)
    stage = recipe.stages[0]
    assert (stage.steps, stage.batch_size, recipe.seed, recipe.model.new.vision_tower) == (7, 8, 5, "a/model")
    assert recipe.model.new.language_model == "a/model"
    with pytest.raises(FoveateError, match="at least 1"):
        replace(SETTINGS, steps=-1)


def _row(system: str, tokens: int, answers: str, **more: Any) -> dict[str, Any]:
    share = answers.count("1") / len(answers)
    task = {"accuracy": share, "majority": 0.5}
    return {
        "system": system, "training": f"{system}-{tokens}", "tokens": tokens, "accuracy": share, "low": share - 0.05,
        "high": share + 0.05, "rights": {"sign": answers}, "tasks": {"sign": task},
        "flops": {"encoder": 10**9, "connector": 10**6 * tokens, "prefill": 10**7 * tokens},
        "training_cost": {"flops": 10**13, "steps": 2, "images": 4},
        "recipe": f"connectors/{system}", "first_token_seconds": {"median": 0.01 + 1e-4 * tokens}, **more,
    }  # fmt: skip


def test_claims_are_judged_by_the_interval_of_the_difference():
    above = Claim("a", "paper", "above b", "b")
    good, bad, mixed = "1" * 180 + "0" * 20, "1" * 80 + "0" * 120, "01" * 90 + "1" * 20
    judged = above.judge([_row("a", 36, good), _row("b", 36, bad), _row("b", 16, good)])
    assert judged["verdict"] == SHOWN and judged["tokens"] == [36]
    assert judged["difference"] == pytest.approx(0.5) and 0.4 < judged["low"] < 0.5 < judged["high"] < 0.6
    assert above.judge([_row("a", 36, bad), _row("b", 36, good)])["verdict"] == REVERSED
    assert above.judge([_row("a", 36, mixed), _row("b", 36, mixed)])["verdict"] == NOT_SHOWN
    assert above.judge([_row("a", 36, good), _row("b", 16, bad)])["verdict"] == NO_ROW
    close = replace(above, margin=-0.01)
    assert close.judge([_row("a", 36, mixed), _row("b", 36, mixed)])["verdict"] == SHOWN
    few = replace(above, most=15)
    rows = [_row("a", 9, good), _row("b", 9, bad), _row("a", 16, bad), _row("b", 16, good)]
    assert few.judge(rows)["verdict"] == SHOWN and few.judge(rows)["tokens"] == [9]
    many = replace(above, least=16, reverse=True)
    assert many.judge(rows)["verdict"] == SHOWN and many.judge(rows)["tokens"] == [16]
    both = above.judge(rows)  # pooled over both lengths: they cancel
    assert both["tokens"] == [9, 16] and both["difference"] == 0 and both["verdict"] == NOT_SHOWN


def test_claims_compare_systems_that_exist_or_will():
    known = {system.name for system in SYSTEMS}
    for claim in CLAIMS:
        if claim.system in known:
            assert claim.against in known and set(_lengths(claim.system)) & set(_lengths(claim.against))
    of_clips = {system.name for system in VIDEO_SYSTEMS if not system.control}
    assert {claim.system for claim in CLIP_CLAIMS} == of_clips


def _lengths(system: str) -> list[int]:
    return [tokens for training in ALL if training.system == system for tokens in training.lengths]


def test_the_front_has_what_no_other_row_exceeds():
    rows = [
        _row("a", n, "1" * right + "0" * (10 - right)) for n, right in ((144, 9), (64, 9), (36, 5), (16, 6), (9, 2))
    ]
    for cost in COSTS.values():
        slow = [
            row
            for row in rows
            if not any(
                cost(other) <= cost(row) and other["accuracy"] >= row["accuracy"] and other is not row for other in rows
            )
        ]
        assert (
            sorted(row["tokens"] for row in front(rows, cost)) == sorted(row["tokens"] for row in slow) == [9, 16, 64]
        )


VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56,
    "patch_size": 14, "projection_dim": 32,
}  # fmt: skip
ENCODER = {
    "type": "lookupvit", "image_size": 56, "patch_size": 14, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 48, "lookup_intermediate_size": 16, "compressed_side": 2,
    "training_sides": [1, 2],
}  # fmt: skip
SMALL = (
    System("average", {4: {"scale": 2}}, control=True),
    System("m3", nested=(1, 16)),
)
WITH_ENCODER = (System("lookupvit-nested", nested=(1, 4), plan="nested", recipe="connectors/mlp", encoder=ENCODER),)


@pytest.fixture
def small(monkeypatch):
    """Two systems on a model of 4 x 4 patches."""
    read = bench_recipes.read_recipe

    def read_small(path: Path) -> Any:
        recipe = read(path)
        text = recipe.model.new.text | {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2,
        }  # fmt: skip
        new = replace(recipe.model.new, vision=VISION, text=text, language_model=None)
        return replace(recipe, model=replace(recipe.model, new=new))

    monkeypatch.setattr(bench_recipes, "read_recipe", read_small)
    monkeypatch.setattr(TrainedSettings, "systems", SMALL)
    return replace(SETTINGS, tasks=("shape_colour", "read_word"), count=3, steps=3, train_batch_size=4, turns=2)


def test_trainings_run_one_after_another_and_continue(small, tmp_path, capsys):
    path, runs, lines = tmp_path / "trained.json", tmp_path / "runs", []
    stopped = run(small, path, runs, max_minutes=0, report=lines.append)
    assert stopped["rows"] == [] and "m3 was stopped" in lines[-1]
    assert [step.name for step in (runs / "m3.run/stages/1-answer").iterdir()] == ["checkpoint-1"]

    document = run(small, path, runs, command="foveate bench trained", report=lines.append)
    assert json.loads(path.read_text()) == document
    assert [(row["system"], row["tokens"]) for row in document["rows"]] == [("m3", 16), ("average", 4), ("m3", 1)]
    assert not (runs / "m3.run/stages").exists() and (runs / "m3.run/model/model.safetensors").is_file()
    logged = [json.loads(line)["stage_step"] for line in (tmp_path / "trained/m3.jsonl").read_text().splitlines()]
    assert logged[0] == 1 and logged[-1] == 3
    full, average, one = document["rows"]
    for row in document["rows"]:
        assert row["flops"]["encoder"] == full["flops"]["encoder"] > 0
        assert {task: len(answers) for task, answers in row["rights"].items()} == {"shape_colour": 3, "read_word": 3}
        assert all(score["right"] == row["rights"][task].count("1") for task, score in row["tasks"].items())
        assert row["accuracy"] == pytest.approx(sum(s["accuracy"] for s in row["tasks"].values()) / 2, abs=1e-3)
        assert row["training_cost"]["steps"] == 3 and row["training_cost"]["images"] == 12
        assert len(row["first_token_seconds"]["all"]) == 2
    assert full["flops"]["connector"] == one["flops"]["connector"] == flops.connector(16, 32, 32, 32)
    assert average["flops"]["connector"] == flops.connector(4, 32, 32, 32)
    assert one["flops"]["prefill"] < average["flops"]["prefill"] < full["flops"]["prefill"]
    assert full["training_cost"] == one["training_cost"] and full["training_cost"]["flops"] % 3 == 0

    lines.clear()
    again = run(small, path, runs, report=lines.append)
    assert not [line for line in lines if line.startswith(("training", "evaluating"))]
    assert [row["rights"] for row in again["rows"]] == [row["rights"] for row in document["rows"]]
    with pytest.raises(FoveateError, match=r"other settings \(seed\)"):
        run(replace(small, seed=4), path, runs)
    with pytest.raises(FoveateError, match=r"contains a run with another settings"):
        run(replace(small, seed=4), tmp_path / "other.json", runs)

    header, rows = table(document)
    assert len(rows) == 3 and all(len(line) == len(header) for line in rows)
    assert markdown(document).count("\n| average | 4 |") == 1
    for arguments, words in (([], "Pareto front of accuracy and tokens"), (["--json"], '"kind": "trained"')):
        assert cli.main(["bench", "trained", "--show", "-o", str(path), *arguments]) == 0
        assert words in capsys.readouterr().out
    made = build([path], tmp_path / "report", pictures=False)
    page = Path(made["page"]).read_text()
    assert "Trained connectors" in page and "average at 4 tokens" in page and "no row yet" in page
    assert made["rows"]["trained"] == 3 and len(made["plots"]) == 3
    assert "3 rows of 2 trained systems. Every number" in page and "0 plans" not in page and "<select" not in page


def test_encoders_train_from_random_weights_and_give_rows(small, monkeypatch, tmp_path):
    monkeypatch.setattr(TrainedSettings, "systems", WITH_ENCODER)
    document = run(small, tmp_path / "trained.json", tmp_path / "runs")
    assert [(row["system"], row["tokens"], row["plan"]) for row in document["rows"]] == [
        ("lookupvit-nested", 4, "nested:4"), ("lookupvit-nested", 1, "nested:1"),
    ]  # fmt: skip
    four, one = document["rows"]
    assert four["encoder"] == one["encoder"] == ENCODER and four["flops"]["encoder"] > one["flops"]["encoder"] > 0
    log = [json.loads(line) for line in (tmp_path / "trained/lookupvit-nested.jsonl").read_text().splitlines()]
    assert sum(sum(line["lengths"].values()) for line in log) == 3
    assert conclude(document)["claims"]


SLIMMED = {
    "type": "sit", "image_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "stage_blocks": [1, 1],
}  # fmt: skip
DISTILLED = (
    System("sit-teacher", {16: {}}, recipe="connectors/mlp", encoder={**SLIMMED, "slimming": False}),
    System("sit", {8: {}}, recipe="connectors/mlp", encoder=SLIMMED, teacher="sit-teacher-16", recalibration=2.0),
)


def test_a_slimmed_tower_is_taught_by_the_trained_teacher(small, monkeypatch, tmp_path):
    monkeypatch.setattr(TrainedSettings, "systems", DISTILLED)
    path, runs = tmp_path / "trained.json", tmp_path / "runs"
    teacher, sit = run(small, path, runs, only=["sit"])["rows"]
    assert (teacher["tokens"], sit["tokens"], sit["teacher"]) == (16, 8, "sit-teacher-16")
    log = [json.loads(line) for line in (tmp_path / "trained/sit-8.jsonl").read_text().splitlines()]
    assert all(line["recalibration_loss"] > 0 for line in log)
    assert "recalibration_loss" not in (tmp_path / "trained/sit-teacher-16.jsonl").read_text()
    # The teacher's forward pass and the reverse modules cost training alone.
    assert sit["training_cost"]["flops"] > teacher["training_cost"]["flops"]
    assert sit["flops"]["encoder"] < 1.1 * teacher["flops"]["encoder"]
    shutil.rmtree(runs / "sit-teacher-16.run")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": [teacher]}))
    with pytest.raises(FoveateError, match="sit-8 starts from the model of sit-teacher-16, which is not in"):
        run(small, path, runs, only=["sit"])


def test_a_file_that_is_no_table_is_refused(tmp_path, capsys):
    path = tmp_path / "other.json"
    for content in (None, "{}", '{"kind": "speed", "rows": []}', "[]"):
        if content is not None:
            path.write_text(content)
        assert cli.main(["bench", "trained", "--show", "-o", str(path)]) == cli.INVALID_INPUT
        message = "there is no result" if content is None else "is no result of"
        assert message in " ".join(capsys.readouterr().err.split())


def test_every_connector_of_a_paper_has_a_recipe():
    folder = Path(__file__).parents[2] / "recipes/connectors"
    assert {path.stem for path in folder.glob("*.yaml")} == set(all_connectors())
    trained = {training.recipe for training in trainings()}
    assert trained == {f"connectors/{name}" for name in all_connectors()}


def test_rows_of_systems_that_are_gone_stay():
    document = {"rows": [_row("old", 36, "10"), _row("average", 36, "11")]}
    assert [row["system"] for row in conclude(document)["rows"]] == ["average", "old"]


def test_video_connectors_are_compared_with_average_pooling():
    rows = [_row("average", 64, "10" * 20), _row("slow_fast", 64, "11" * 20)]
    claims = conclude({"rows": [{**row, "recipe": f"video/{row['system']}"} for row in rows]})["claims"]
    assert {claim["system"]: claim["verdict"] for claim in claims if claim["verdict"] != NO_ROW} == {"slow_fast": SHOWN}


def test_video_connectors_stand_beside_average_pooling_at_their_number_of_tokens(tmp_path):
    made = trainings(systems=VIDEO_SYSTEMS)
    assert {training.system for training in made} == all_video_connectors().keys()
    pooled = {training.lengths for training in made if training.system == "average"}
    for training in made:
        assert training.lengths in pooled
        recipe = recipe_of(training, ClipTrainedSettings(), tmp_path)
        options = dict(recipe.model.new.connector)
        connector = video_connector_of_sizes(options.pop("type"), options)
        assert training.lengths == (connector.output_shape(8, Grid(8, 8)).size,)
        new, (stage,) = recipe.model.new, recipe.stages
        assert new.language_model == CLIP_BASE
        # The tower of PVC attends over time, which it learns.
        assert new.vision_tower == CLIP_BASE
        assert ("vision_tower" in stage.train) == (training.system == "temporal_pvc")


def test_trainings_of_clips_start_from_the_model_of_the_recipe(tmp_path, monkeypatch):
    recipe = read_recipe(shipped.recipe("recipe:video/base"))
    assert recipe.model.new.vision == ClipTrainedSettings.vision
    assert Path(CLIP_BASE).parent == Path(recipe.output)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FoveateError, match="train it with `foveate train recipe:video/base`"):
        run(ClipTrainedSettings(), tmp_path / "trained.json", tmp_path / "runs")
    with pytest.raises(FoveateError, match="there is no benchmarks/models/measure-llava, .* in a clone"):
        run(TrainedSettings(), tmp_path / "trained.json", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_clips_with_fewer_tokens_than_placeholders_are_measured():
    """Trained, B-VLLM merges mixtures of frames that are alike, and gives fewer tokens than the prompt has places."""
    model, processor = new_model(NewModel(**new_fields("b_vllm")), seed=0)
    for parameter in model.model.multi_modal_projector.frame_projection.parameters():
        torch.nn.init.zeros_(parameter)  # all mixtures are the mean of the frames
    prompted = Prompted.of(model, processor)
    with pytest.raises(FoveateError, match="fewer tokens than placeholders"), torch.no_grad():
        model(**prompted.inputs, use_cache=True)
    assert min(first_token_flops(prompted).values()) > 0


@pytest.mark.slow
def test_a_video_connector_is_trained_and_measured(tmp_path, capsys):
    path = tmp_path / "trained.json"
    line = ["bench", "trained", "--clips", "--quick", "-o", str(path), "--runs", str(tmp_path / "runs"), "--count", "1"]
    assert cli.main([*line, "--only", "slow_fast", "--json"]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["system"], row["tokens"], row["recipe"]) == ("slow_fast", 64, "video/slow_fast")
    assert set(row["tasks"]) == {*ClipTrainedSettings().tasks} and row["first_token_seconds"]["median"] > 0
    assert min(row["flops"].values()) > 0 and row["training_cost"]["steps"] == 2

"""A recipe says what it means, or the error says where it does not."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from foveate import FoveateError
from foveate.training.building import build_model
from foveate.training.recipe import NewModel, Schedule
from foveate.training.recipe_file import parse_recipe, read_recipe
from foveate.training.run import _check_reach
from foveate.training.sources import open_source
from foveate.training.training_model import TrainingModel
from tests.training.small_training import recipe, small_stage

RENDERED = [{"rendered": {}}]
SHIPPED = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path):
    assert read_recipe(path).stages


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.yaml")), ids=lambda path: path.stem)
def test_stages_of_shipped_recipes_fit_their_models(path):
    """No loss, part or rendered task of theirs is passed over."""
    read = read_recipe(path)
    new = read.model.new and replace(read.model.new, language_model=None, vision_tower=None)
    model, _ = build_model(replace(read.model, new=new), 0)
    training_model = TrainingModel(model, 0, read.cells)
    unit = training_model.architecture.unit(model.config)
    for stage in read.stages:
        _check_reach(stage, training_model)
        assert all(open_source(data, unit, 0) for data in stage.data if data.files is None and not data.easy_vqa)


def test_values_arrive_with_their_types():
    stage = small_stage(
        [{"rendered": {"sizes": {"width": [64, 96], "height": [32, 64]}}, "weight": 2}, {"easy_vqa": True}],
        loss={"answer": 0.5, "cells": 1},
        schedule={"kind": "linear", "warmup": 10},
        train={"vision_tower": "1e-3", "heads": 2},
    )
    result = parse_recipe(recipe(Path("out"), stage))
    (one,) = result.stages
    assert one.data[0].rendered.sizes.width == (64, 96)
    assert one.data[0].weight == 2.0
    assert isinstance(one.data[0].weight, float)
    assert one.data[1].easy_vqa is True
    assert one.loss.cells == 1.0
    assert one.schedule.warmup == 10
    assert one.train == {"vision_tower": 1e-3, "heads": 2.0}
    assert result.model.pretrained is None


def test_from_names_a_pretrained_model():
    content = recipe(Path("out"), small_stage(RENDERED), model={"from": "some/model"})
    assert parse_recipe(content).model.pretrained == "some/model"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": {"cels": 1}}, ["stages[0].loss", "cels", "cells"]),
        ({"step": 5}, ["stages[0]", "step", "steps"]),
        ({"steps": "many"}, ["stages[0].steps", "whole number", "many"]),
        ({"steps": True}, ["stages[0].steps", "whole number"]),
        ({"steps": 0}, ["stages[0].steps", "at least 1"]),
        ({"data": []}, ["stages[0].data"]),
        ({"data": [{}]}, ["stages[0].data[0]", "exactly one"]),
        ({"data": [{"rendered": {}, "easy_vqa": True}]}, ["stages[0].data[0]", "exactly one"]),
        ({"data": [{"rendered": {"sizes": {"width": [64, 32], "height": [32, 64]}}}]}, ["sizes.width", "64"]),
        ({"data": [{"rendered": {"sizes": {"width": [64], "height": [32, 64]}}}]}, ["sizes.width", "2 values"]),
        ({"data": [{"rendered": {"difficulty": [0.5, 1.5]}}]}, ["rendered.difficulty", "1.5"]),
        ({"data": [{"rendered": {"tasks": {"read_word": 0}}}]}, ["tasks.read_word", "not positive"]),
        ({"train": {}}, ["stages[0].train", "vision_tower"]),
        ({"train": {"vision": 1e-3}}, ["stages[0].train", "vision", "vision_tower"]),
        ({"train": {"vision_tower": 0}}, ["train.vision_tower", "not positive"]),
        ({"train": {"heads": 1e-3}}, ["train.heads", "losses"]),
        ({"loss": {"answer": 0, "cells": 1}, "train": {"connector": 1e-3}}, ["train.connector", "losses"]),
        ({"loss": {"answer": 0}}, ["stages[0].loss", "weight 0"]),
        ({"loss": {"answer": -1}}, ["loss.answer", "negative"]),
        ({"schedule": {"kind": "cosin"}}, ["schedule.kind", "cosine"]),
        ({"schedule": {"final": 2}}, ["schedule.final"]),
        ({"groups": 3}, ["groups", "batch of 4"]),
        ({"optimizer": "sgd"}, ["stages[0].optimizer", "sgd", "adamw, muon"]),
        ({"name": "a/b"}, ["stages[0].name", "a/b"]),
        ({"weight_decay": -0.1}, ["stages[0].weight_decay", "negative"]),
        ({"clip": -1}, ["stages[0].clip", "negative"]),
        ({"betas": [0.9, 1]}, ["stages[0].betas", "below 1"]),
    ],
)
def test_mistakes_in_a_stage_are_named_with_their_place(changes, words):
    with pytest.raises(FoveateError) as error:
        parse_recipe(recipe(Path("out"), small_stage(RENDERED) | changes))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": []}, ["stages"]),
        ({"stages": [small_stage(RENDERED)] * 2}, ["same name", "one"]),
        ({"model": {}}, ["model", "from", "new"]),
        ({"model": {"from": "a", "new": {"vision": {}, "text": {}}}}, ["model", "not both"]),
        ({"model": {"new": {"vision": {}}}}, ["model.new", "text", "missing"]),
        ({"model": "small"}, ["model", "small"]),
        ({"keep": 0}, ["keep"]),
        ({"outputs": "x"}, ["unknown key", "output"]),
        ({"seed": -1}, ["recipe.seed", "-1"]),
        ({"seed": 2**32}, ["recipe.seed", "2^32"]),
        ({"bf16": 1}, ["recipe.bf16", "auto, True, False"]),
    ],
)
def test_mistakes_outside_stages_are_named(changes, words):
    with pytest.raises(FoveateError) as error:
        parse_recipe(recipe(Path("out"), small_stage(RENDERED)) | changes)
    for word in words:
        assert word in str(error.value)


def test_a_missing_key_is_named():
    content = recipe(Path("out"), small_stage(RENDERED))
    del content["stages"][0]["steps"]
    with pytest.raises(FoveateError, match=r"stages\[0\]: the key steps is missing"):
        parse_recipe(content)


def test_errors_of_files_name_the_file(tmp_path):
    with pytest.raises(FoveateError, match=r"absent\.yaml"):
        read_recipe(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("stages: [1, 2", encoding="utf-8")
    with pytest.raises(FoveateError, match=r"broken\.yaml is not valid YAML.*line 1"):
        read_recipe(broken)
    broken.write_text("- a list", encoding="utf-8")
    with pytest.raises(FoveateError, match=r"broken\.yaml: recipe: expected keys"):
        read_recipe(broken)


@pytest.mark.parametrize("again", ["seed: 4", '"seed": 4', "seed: 3"])
def test_a_key_that_is_written_twice_is_refused(tmp_path, again):
    path = tmp_path / "recipe.yaml"
    content = recipe(Path("out"), small_stage(RENDERED))
    path.write_text(yaml.safe_dump(content, sort_keys=False) + again, encoding="utf-8")
    with pytest.raises(FoveateError, match=r"recipe\.yaml: the key 'seed' is written twice, in line 2 and in line"):
        read_recipe(path)


def test_merged_keys_are_replaced_and_not_written_twice(tmp_path):
    path = _write(tmp_path / "recipe.yaml", recipe(Path("out"), small_stage(RENDERED, name="first")))
    merged = "\n- &two {<<: *one, name: second}\n- {<<: *two, name: third}\n"
    text = path.read_text(encoding="utf-8").replace("stages:\n- ", "stages:\n- &one\n  ")
    path.write_text(text.rstrip("\n") + merged, encoding="utf-8")
    assert [stage.name for stage in read_recipe(path).stages] == ["first", "second", "third"]


LAUGHS = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'ha'] * 9)}]" for n in range(9))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 20,000 values"),
        ("&a [*a]", "levels deep"),
        ("&a {model: *a}", "levels deep"),
        ("[" * 100_000, "levels deep"),
        ("{a: " * 50_000, "levels deep"),
        ("- " * 5_000, "levels deep"),
        ("a" * 300_000, "longer than the 256 KiB"),
        ("a: 2001-99-99", "not valid YAML: month"),
        ("a: " + "9" * 5000, "not valid YAML: .*5000 digits"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: \0", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("model: [" + "x, " * 10_000 + "]\nstages: []\noutput: x", "model: expected keys with values"),
    ],
)
def test_traps_are_refused_soon_and_briefly(tmp_path, text, words):
    path = tmp_path / "trap.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FoveateError, match=words) as caught:
        read_recipe(path)
    assert len(str(caught.value)) < 1500
    with pytest.raises(FoveateError, match="longer than"):
        read_recipe("/dev/zero")


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "nan", "1e999", "9" * 400])
def test_numbers_are_finite(tmp_path, number):
    path = tmp_path / "recipe.yaml"
    content = recipe(Path("out"), small_stage(RENDERED))
    path.write_text(yaml.safe_dump(content) + f"\nsave_minutes: {number}\n", encoding="utf-8")
    with pytest.raises(FoveateError, match="save_minutes: expected a number"):
        read_recipe(path)


def test_folders_of_models_are_relative_to_the_recipe(tmp_path, monkeypatch):
    folder, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
    for path in (folder / "tower", elsewhere / "other"):
        path.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)

    def read(**names: str) -> NewModel:
        content = recipe(Path("out"), small_stage([{"easy_vqa": True}]))
        content["model"]["new"] |= names
        (folder / "a.yaml").write_text(yaml.safe_dump(content))
        new = read_recipe(folder / "a.yaml").model.new
        assert new is not None
        return new

    new = read(vision_tower="tower", language_model="../elsewhere/other")
    assert Path(new.vision_tower or "") == folder / "tower"
    assert Path(new.language_model or "").resolve() == elsewhere / "other"
    assert read(language_model="embedded", tokenizer="bytes").language_model == "embedded"
    assert read(vision_tower="openai/clip-vit-base-patch32").vision_tower == "openai/clip-vit-base-patch32"
    with pytest.raises(FoveateError, match=r"a.yaml: model.new.vision_tower: 'other' is in the current folder, and "):
        read(vision_tower="other")


def test_data_paths_are_relative_to_the_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    data = [{"files": {"path": "rows.jsonl", "images": "pictures"}}]
    path.write_text(yaml.safe_dump(recipe(Path("out"), small_stage(data))), encoding="utf-8")
    files = read_recipe(path).stages[0].data[0].files
    assert Path(files.path) == tmp_path / "rows.jsonl"
    assert Path(files.images) == tmp_path / "pictures"
    assert read_recipe(path).output == "out"


def test_schedules():
    cosine = Schedule("cosine", warmup=4, final=0.1)
    assert [cosine.factor(step, 104) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert cosine.factor(4, 104) == 1.0
    assert math.isclose(cosine.factor(54, 104), 0.55)
    assert math.isclose(cosine.factor(104, 104), 0.1)
    assert math.isclose(cosine.factor(500, 104), 0.1)
    linear = Schedule("linear", final=0.5)
    assert [linear.factor(step, 10) for step in (0, 5, 10)] == [1.0, 0.75, 0.5]
    assert Schedule("constant", warmup=2).factor(1000, 10) == 1.0


@pytest.mark.parametrize("cells", [[1, 6], [2, 5], [0, 2]])
def test_cells_are_even_numbers(cells):
    with pytest.raises(FoveateError, match=r"recipe\.cells: .* must be even numbers of rows and columns"):
        parse_recipe(recipe(Path("out"), small_stage(RENDERED), cells=cells))
    assert parse_recipe(recipe(Path("out"), small_stage(RENDERED), cells=[2, 6])).cells == (2, 6)


def test_former_names_of_losses_are_refused_with_their_new_ones() -> None:
    loss = {"answer": 1, "pointing": 0.5, "pointing_layers": [0, 1]}
    with pytest.raises(
        FoveateError,
        match="loss: pointing is now answer_attention, pointing_layers is now answer_attention_layers; rename them",
    ):
        parse_recipe(recipe(Path("out"), small_stage(RENDERED, loss=loss)))


def _write(path: Path, content: dict) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_recipe_extends_another_one(tmp_path):
    stages = [small_stage(RENDERED, name="first"), small_stage(RENDERED, name="second", loss={"answer": 2})]
    _write(tmp_path / "base.yaml", recipe(Path("base"), *stages))
    changes = {
        "extends": "base.yaml",
        "output": "changed",
        "model": {"new": {"connector": {"type": "m3"}}},
        "stages": {"second": {"steps": 3, "loss": {"blank": 1}}},
    }
    extended, base = read_recipe(_write(tmp_path / "changed.yaml", changes)), read_recipe(tmp_path / "base.yaml")
    assert extended.output == "changed" and extended.seed == base.seed
    assert extended.model.new.connector == {"type": "m3"} and extended.model.new.vision == base.model.new.vision
    assert extended.stages[0] == base.stages[0]
    assert extended.stages[1].steps == 3 and extended.stages[1].name == "second"
    assert (extended.stages[1].loss.answer, extended.stages[1].loss.blank) == (2, 1)
    whole = _write(tmp_path / "whole.yaml", {"extends": "base.yaml", "stages": [stages[1]]})
    assert [stage.name for stage in read_recipe(whole).stages] == ["second"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extends": "../base.yaml"}, "another recipe in the same folder"),
        ({"extends": "changed.yaml"}, "another recipe in the same folder"),
        ({"extends": 3}, "another recipe in the same folder"),
        ({"extends": "none.yaml"}, "cannot be read"),
        ({"extends": "base.yaml", "stages": {"third": {}}}, "has no 'third' to change; possible are one"),
        ({"extends": "extending.yaml"}, "extending.yaml extends another recipe itself"),
        ({"extends": "unnamed.yaml", "stages": {}}, r"stages\[0\].name: expected a text"),
    ],
)
def test_recipes_that_cannot_be_extended(changes, message, tmp_path):
    _write(tmp_path / "base.yaml", recipe(Path("base"), small_stage(RENDERED)))
    _write(tmp_path / "extending.yaml", {"extends": "base.yaml"})
    _write(tmp_path / "unnamed.yaml", recipe(Path("base"), small_stage(RENDERED, name=["one"])))
    with pytest.raises(FoveateError, match=message):
        read_recipe(_write(tmp_path / "changed.yaml", changes))

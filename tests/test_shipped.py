"""Examples and recipes by name, and that the questions belong to the images."""

from pathlib import Path

import pytest

from foveate import FoveateError, shipped
from foveate.images import open_image
from foveate.training.avsr.recipe import read_recipe as read_avsr
from foveate.training.next_scale import read_recipe as read_next_scale
from foveate.training.recipe_file import read_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
READERS = {"avsr": read_avsr}


def test_every_example_is_an_image_with_questions():
    assert {path.name for path in shipped.folder("examples").glob("*.png")} == {one.image for one in shipped.examples()}
    for one in shipped.examples():
        assert open_image(shipped.example(one.name)).width > 100
        assert one.questions and all(question.endswith("?") for question, _ in one.questions)


def test_every_recipe_can_be_read_by_name():
    for path in filter(Path.is_file, RECIPES.rglob("*")):
        reader = READERS.get(path.stem, read_recipe if path.suffix == ".yaml" else read_next_scale)
        name = path.relative_to(RECIPES).with_suffix("").as_posix()
        assert reader(shipped.recipe(f"recipe:{name}", path.suffix)) == reader(path)
    assert shipped.recipe("recipe:connectors/tokenpacker").parent.name == "connectors"
    assert shipped.recipe("my/own.yaml") == Path("my/own.yaml")


def test_unknown_names(monkeypatch, tmp_path):
    with pytest.raises(
        FoveateError, match=r"no recipe 'recipe:tinny'; did you mean recipe:tiny\? possible are recipe:"
    ):
        shipped.recipe("recipe:tinny")
    with pytest.raises(FoveateError, match="possible are recipe:avsr, recipe:next-scale"):
        shipped.recipe("recipe:tiny", ".json")
    with pytest.raises(FoveateError, match="did you mean recipe:connectors/tokenpacker"):
        shipped.recipe("recipe:connectors/tokenpaker")
    for name in ("../receipt", "", "zebra"):
        with pytest.raises(FoveateError, match="possible are chart, form, receipt"):
            shipped.example(name)
    monkeypatch.setattr(shipped, "folder", lambda name: tmp_path)
    with pytest.raises(FoveateError, match="has no examples"):
        shipped.example("receipt")

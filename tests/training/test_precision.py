"""What `bf16` of a recipe means on this processor."""

from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.training.precision import bfloat16_pays, uses_bfloat16
from foveate.training.recipe_file import parse_recipe
from foveate.training.trainer import training_arguments
from tests.training.small_training import EVERYTHING, recipe, small_stage

DATA = [{"rendered": {"tasks": {"read_word": 1}, "sizes": {"width": [64, 96], "height": [32, 64]}}}]


def test_a_wish_is_followed_and_auto_asks_the_processor():
    for device in ("cpu", "mps"):
        assert uses_bfloat16(True, device) is True
        assert uses_bfloat16(False, device) is False
        assert uses_bfloat16("auto", device) is bfloat16_pays(device)
    flags = {name for name, has in torch.cpu.get_capabilities().items() if has is True}
    assert bfloat16_pays("cpu") == bool(flags & {"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"})


@pytest.mark.parametrize("written", ["auto", True, False])
def test_recipes_name_it(written, tmp_path):
    read = parse_recipe(recipe(Path("out"), small_stage(DATA, train=EVERYTHING), bf16=written))
    arguments = training_arguments(read, read.stages[0], tmp_path, cpu=True)
    assert arguments.bf16 is uses_bfloat16(written, "cpu")


def test_another_word_is_refused():
    with pytest.raises(FoveateError, match=r"recipe\.bf16: 'sometimes' is not possible; possible are auto, True"):
        parse_recipe(recipe(Path("out"), small_stage(DATA), bf16="sometimes"))

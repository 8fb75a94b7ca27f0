"""Methods with weights of their own find them beside the model's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import foveate
from decoder.test_covipal import folder
from foveate.decoder.covipal import CoViPAL
from foveate.errors import FoveateError
from foveate.plan import Plan
from foveate.selection.focusui import Scorer
from foveate.selection.relevance import Mapper
from tiny_model import save_llava

PICTURE = Image.linear_gradient("L").convert("RGB").resize((32, 32))
WORDS = "What do you see?"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_llava(tmp_path / "model")


def choices(model: Path, plan: str) -> torch.Tensor:
    net, processor = foveate.load(model)
    with foveate.compress(net, plan) as handle:
        foveate.ask(PICTURE, WORDS, model=(net, processor), max_new_tokens=2)
        (image,) = handle.report().images
    return image.layers[-1].indices if image.layers else image.selection.indices


def test_a_folder_beside_the_weights(model: Path, tmp_path: Path) -> None:
    size = foveate.load(model)[0].config.get_text_config().hidden_size
    other = folder(tmp_path / "other", size, seed=7)
    folder(model / "covipal", size, seed=1)
    own = choices(model, "covipal:50%")
    assert torch.equal(own, choices(model, f"covipal(weights={str(model / 'covipal')!r}):50%"))
    assert not torch.equal(own, choices(model, f"covipal(weights={str(other)!r}):50%"))  # a name goes before the place
    (model / "covipal" / "config.json").unlink()  # half a folder is none
    with pytest.raises(FoveateError, match="covipal needs trained weights"):
        choices(model, "covipal:50%")


@pytest.mark.parametrize("name", ["focusui", "relevance"])
def test_a_file_beside_the_weights(model: Path, name: str) -> None:
    torch.manual_seed(0)
    file = model / f"{name}.safetensors"
    scorer = Mapper() if name == "relevance" else Scorer(foveate.load(model)[0].config.get_text_config().hidden_size)
    scorer.save(file)
    assert torch.equal(choices(model, f"{name}:50%"), choices(model, f"{name}(weights={str(file)!r}):50%"))


def test_the_plan_reads_the_same_on_every_model(model: Path) -> None:
    folder(model / "covipal", foveate.load(model)[0].config.get_text_config().hidden_size)
    net, _ = foveate.load(model)
    with foveate.compress(net, "divprune:8 + covipal:50%") as handle:
        assert str(handle.plan) == "divprune:8 + covipal:50%"
        assert handle.plan == Plan.of(str(handle.plan))
        handle.plan.save(model)
    assert foveate.load(model)[0] is not None  # the saved plan finds them again


def test_where_there_are_none_the_sentence_says_where_they_belong(model: Path) -> None:
    with pytest.raises(FoveateError, match="`foveate train-pruner` wrote, or one that stands beside .* as covipal"):
        choices(model, "covipal:50%")
    with pytest.raises(FoveateError, match="a file that `foveate train-scorer` wrote, .* as focusui.safetensors"):
        choices(model, "focusui:50%")
    net, _ = foveate.load(model)
    net.name_or_path = "made of nothing"
    with pytest.raises(FoveateError, match="needs trained weights"):
        foveate.compress(net, "covipal:50%")
    assert CoViPAL().beside("") == CoViPAL()


def test_a_plan_that_goes_to_another_model_forgets_the_first(model: Path, tmp_path: Path) -> None:
    folder(model / "covipal", foveate.load(model)[0].config.get_text_config().hidden_size)
    net, _ = foveate.load(model)
    with foveate.compress(net, "covipal:50%") as handle:
        plan = handle.plan
    bare, _ = foveate.load(save_llava(tmp_path / "bare"))
    with pytest.raises(FoveateError, match="needs trained weights"):
        foveate.compress(bare, plan)

"""Methods with weights of their own find them next to the model's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import foveate
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.methods.decoder.covipal import CoViPAL
from foveate.methods.encoder.dymu import Thresholds
from foveate.methods.pre_llm.focusui import Scorer
from foveate.methods.pre_llm.relevance import Mapper
from tests.methods.decoder.test_covipal import folder
from tests.methods.decoder.test_dpn import folder as routers
from tests.tiny_model import save_llava

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


@pytest.mark.parametrize(
    "plan",
    [
        "covipal(weights={covipal!r}):50%",
        "dpn(weights={dpn!r})",
        "focusui(weights={focusui!r}):50%",
        "relevance(weights={relevance!r}):50%",
        "pospad(selector=focusui(weights={focusui!r})):50%",
        "dymu(thresholds={dymu!r})",
        "focusui(weights={focusui!r}):50% + covipal(weights={covipal!r}):50%@1",
    ],
)
def test_a_model_that_was_moved_finds_its_weights(model: Path, tmp_path: Path, plan: str) -> None:
    """A saved plan names no place: what it needs is copied next to the model."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    net, _ = foveate.load(model)
    size, blocks = net.config.get_text_config().hidden_size, net.config.vision_config.num_hidden_layers
    paths = {name: str(elsewhere / name) for name in ("covipal", "dpn", "focusui", "relevance", "dymu")}
    folder(elsewhere / "covipal", size)
    routers(elsewhere / "dpn", size, scaled=None)
    Scorer(size).save(Path(paths["focusui"]))
    Mapper().save(Path(paths["relevance"]))
    Thresholds((0.5,) * (blocks - 1), "CLIPVisionModel", 16, 8, 1).save(paths["dymu"])
    plan = plan.format(**paths)
    with foveate.compress(net, plan) as handle:
        handle.plan.save(model)
        again = handle.plan  # saving changes nothing of the plan itself
        assert str(again) == str(Plan.of(plan))
    moved = model.rename(tmp_path / "moved")
    elsewhere.rename(tmp_path / "gone")
    assert str(tmp_path) not in (moved / "foveate_plan.json").read_text()
    before = Plan.of(plan.replace(str(elsewhere), str(tmp_path / "gone")))
    net, processor = foveate.load(moved)
    found = foveate.ask(PICTURE, WORDS, model=(net, processor), max_new_tokens=2).selection
    net, processor = foveate.load(moved, plan=None)
    assert [image["tokens_left"] for image in found] == [
        image["tokens_left"]
        for image in foveate.ask(PICTURE, WORDS, (net, processor), before, max_new_tokens=2).selection
    ]


def test_two_weights_of_one_method_have_no_place(model: Path, tmp_path: Path) -> None:
    one, two = (str(folder(tmp_path / name, 8)) for name in ("one", "two"))
    with pytest.raises(FoveateError, match="one place for weights of covipal"):
        Plan.of(f"covipal(weights={one!r}):50%@1 + covipal(weights={two!r}):50%@2").save(model)
    with pytest.raises(FoveateError, match="cannot be copied to .*: No such file"):
        Plan.of(f"covipal(weights={str(tmp_path / 'none')!r}):50%@1").save(model)


def test_where_there_are_none_the_sentence_says_where_they_belong(model: Path) -> None:
    with pytest.raises(FoveateError, match="`foveate train-method covipal` wrote, or one next to .* as covipal"):
        choices(model, "covipal:50%")
    with pytest.raises(
        FoveateError, match="a file that `foveate train-method focusui` wrote, .* as focusui.safetensors"
    ):
        choices(model, "focusui:50%")
    net, _ = foveate.load(model)
    net.name_or_path = "made of nothing"
    with pytest.raises(FoveateError, match="needs trained weights"):
        foveate.compress(net, "covipal:50%")
    assert CoViPAL().resolve_weights("") == CoViPAL()


def test_a_plan_that_goes_to_another_model_forgets_the_first(model: Path, tmp_path: Path) -> None:
    folder(model / "covipal", foveate.load(model)[0].config.get_text_config().hidden_size)
    net, _ = foveate.load(model)
    with foveate.compress(net, "covipal:50%") as handle:
        plan = handle.plan
    bare, _ = foveate.load(save_llava(tmp_path / "bare"))
    with pytest.raises(FoveateError, match="needs trained weights"):
        foveate.compress(bare, plan)

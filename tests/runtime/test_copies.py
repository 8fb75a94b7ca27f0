"""Copies of a model to which something is attached have nothing attached, and work as the model alone."""

from __future__ import annotations

import copy
import copyreg
import gc
import io
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate import FoveateError
from foveate.runtime import handle_of
from tests.families.zoo import zoo
from tests.heap import new_objects_alone
from tests.runtime.every_method import EVERY, FIRST, attach, call_of, insides, is_first, prompts, refused


def _saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _from_folder(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder / "saved")
    return type(model).from_pretrained(folder / "saved")


def _parts(model: Any) -> dict[str, Any]:
    """Names of what every module has, its hooks by number, and the attention function that it names."""
    return {
        name: (
            type(module),
            {key: len(value) for key, value in vars(module).items() if isinstance(value, dict)},
            sorted(vars(module)),
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for name, module in model.named_modules()
    }


def cases() -> list[Any]:
    return [
        pytest.param(name, method, marks=() if is_first(name, method) else pytest.mark.slow, id=f"{name}-{method}")
        for name in sorted(zoo())
        for method in EVERY
    ]


@pytest.mark.parametrize(("name", "method"), cases())
def test_a_copy_is_the_model_alone(name: str, method: str, tmp_path: Path) -> None:
    model = zoo()[name].model()
    inputs, call = prompts(name, model)[3], call_of(model, method)
    plain = call(inputs)
    parts, before = _parts(model), insides(model)
    try:
        handle = attach(name, method, model, tmp_path)
    except FoveateError as error:
        refused(name, method, error)  # not for this family
    with handle:
        try:
            attached = call(inputs)
        except FoveateError as error:
            refused(name, method, error)
        twin = copy.deepcopy(model)
        assert torch.equal(call_of(twin, method)(inputs), plain)
        assert _parts(twin) == parts
        assert handle_of(twin) is None
        pairs = zip(twin.parameters(), model.parameters(), strict=True)
        assert all(one.data_ptr() != other.data_ptr() for one, other in pairs)
        with attach(name, method, twin, tmp_path):
            assert torch.equal(call_of(twin, method)(inputs), attached)
        with pytest.raises(FoveateError, match=r"restore that first, or use copy\.deepcopy"):
            copy.copy(model)
        for forbidden in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(FoveateError, match="belongs to one live model"):
                forbidden(handle)
        assert torch.equal(call(inputs), attached)
    assert insides(model) == before
    assert type(copy.copy(model)) is type(model)


@pytest.mark.parametrize("method", ["tome", "ppe", "relevance", "fastv", "corematching", "draft of a tree", "vasparse"])
def test_a_model_is_pickled_alone(method: str, tmp_path: Path) -> None:
    model = zoo()["llava"].make().eval()  # one that has run has hooks of transformers, which cannot be pickled
    with attach("llava", method, model, tmp_path):
        twins = [pickle.loads(pickle.dumps(model, protocol)) for protocol in (2, 5)] + [_saved(model)]
    inputs, call = prompts("llava", model)[3], call_of(model, "divprune")
    for twin in twins:
        assert not any("_foveate" in key or key == "forward" for module in twin.modules() for key in vars(module))
        assert torch.equal(call_of(twin, "divprune")(inputs), call(inputs))


def test_a_model_is_saved_while_something_is_attached(tmp_path: Path) -> None:
    model = zoo()["llava"].model()
    inputs, call = prompts("llava", model)[3], call_of(model, "divprune")
    plain = call(inputs)
    for number, method in enumerate(("tome", "fastv", "vasparse")):
        (tmp_path / str(number)).mkdir()
        with attach("llava", method, model, tmp_path):
            twin = _from_folder(model, tmp_path / str(number)).eval()
        assert torch.equal(call_of(twin, "divprune")(inputs), plain)


def test_a_part_of_a_model_is_copied_alone() -> None:
    model = zoo()["llava"].model()
    with foveate.compress(model, "divprune:5 + fastv:2@1"):
        twin = copy.deepcopy(model.model.language_model)
    assert _parts(twin) == _parts(model.model.language_model)


def test_a_replica_is_refused() -> None:
    """DataParallel makes replicas whose attributes are those of the module, so that its `forward` is too."""
    model = zoo()["llava"].model()
    inputs = prompts("llava", model)[0]
    with foveate.compress(model, "divprune:3"):
        replica = model._replicate_for_data_parallel()
        with pytest.raises(FoveateError, match="replica"):
            replica(**inputs)


def test_hooks_that_come_after_the_plan_stay() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = copy.deepcopy(zoo()["llava"].model())
    inputs, call = prompts("llava", model)[0], call_of(model, "divprune")
    plain = call(inputs)
    with foveate.compress(model, "divprune:3"):
        short = call(inputs)
        accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
        assert torch.equal(call(inputs), short)
        twin = copy.deepcopy(model)
        assert torch.equal(call_of(twin, "divprune")(inputs), plain)
    assert torch.equal(call(inputs), plain)
    assert hasattr(model, "_hf_hook") and "forward" in vars(model)


@pytest.mark.parametrize("method", [*EVERY])
def test_a_model_is_freed_with_what_is_attached(method: str, tmp_path: Path) -> None:
    """A notebook or a server that loads the next model does not keep the last one for its plan."""
    name = FIRST.get(method, "llava")
    before = sorted(map(str, copyreg.dispatch_table))
    with new_objects_alone():
        model = zoo()[name].make().eval()
        inputs, freed = prompts(name, model)[0], weakref.ref(model)
        handle = attach(name, method, model, tmp_path)
        call_of(model, method)(inputs)
        del model, handle
        gc.collect()
        assert freed() is None
    assert sorted(map(str, copyreg.dispatch_table)) == before


def test_handles_are_restored_in_any_order() -> None:
    model = zoo()["llava-onevision"].model()
    before = insides(model)
    for first in (True, False):
        one, other = foveate.compress(model, "divprune:3"), foveate.reuse_features(model)
        handles = (one, other) if first else (other, one)
        handles[0].restore()
        attached = insides(model)
        assert attached != before
        twin = copy.deepcopy(model)
        assert "get_video_features" not in vars(twin.model)
        handles[1].restore()
        assert insides(model) == before

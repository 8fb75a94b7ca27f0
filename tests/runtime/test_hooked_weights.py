"""Weights that something else brings, changes or quantises are read through their modules by every method."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate import FoveateError
from tests.families.zoo import zoo
from tests.runtime.every_method import EVERY, attach, call_of, prompts, refused

accelerate = pytest.importorskip("accelerate")
peft = pytest.importorskip("peft")
torchao = pytest.importorskip("torchao")


def _adapted(model: Any) -> Any:
    names = r".*(self_attn\.(q|k|v|o|out)_proj|mlp\.(gate_proj|down_proj|fc1)|linear_1)"
    settings = peft.LoraConfig(target_modules=names, r=2, init_lora_weights=False)
    torch.manual_seed(0)
    return peft.get_peft_model(model, settings).eval()


def _quantised(model: Any) -> Any:
    torchao.quantize_(model.model.language_model, torchao.quantization.Int8WeightOnlyConfig())
    return model


def _merged(model: Any) -> Any:
    return _adapted(model).merge_and_unload()


def _dequantised(model: Any) -> Any:
    """The same weights as plain ones."""
    for module in _quantised(model).modules():
        if isinstance(module, torch.nn.Linear) and type(module.weight) is not torch.nn.Parameter:
            weight: Any = module.weight
            module.weight = torch.nn.Parameter(weight.dequantize(), requires_grad=False)
    return model


#: How weights are brought, and what the same model with plain weights is.
WAYS: dict[str, tuple[Callable[[Any, Path], Any], Callable[[Any], Any]]] = {
    "hooks": (lambda m, _: accelerate.dispatch_model(m, {"": "cpu"}, force_hooks=True), lambda m: m),
    "cpu": (lambda m, _: accelerate.cpu_offload(m, execution_device="cpu"), lambda m: m),
    "disk": (lambda m, folder: accelerate.disk_offload(m, str(folder), execution_device="cpu"), lambda m: m),
    "adapters": (lambda m, _: _adapted(m), _merged),
    "torchao": (lambda m, _: _quantised(m), _dequantised),
}
#: Those that look into a language model or an encoder by other ways than calling it; they meet every way by default.
LOOKING = ("relevance", "tome", "dymu-virtual", "ppe", "corematching", "pyramiddrop", "visiondrop", "draft of a tree",
           "vasparse", "zipvl")  # fmt: skip


def cases() -> list[Any]:
    return [
        pytest.param(
            name,
            method,
            way,
            marks=() if name == "llava" and method in LOOKING else pytest.mark.slow,
            id=f"{name}-{method}-{way}",
        )
        for name in ("llava", "qwen2.5-vl")
        for method in EVERY
        for way in WAYS
    ]


@pytest.mark.parametrize(("name", "method", "way"), cases())
def test_it_does_what_it_does_with_plain_weights(name: str, method: str, way: str, tmp_path: Path) -> None:
    bring, plain = WAYS[way]
    inputs = prompts(name, zoo()[name].model())[2:]
    results: list[list[Tensor]] = []
    for make in (plain, lambda model: bring(model, tmp_path / "offloaded")):
        model = make(copy.deepcopy(zoo()[name].model()))
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        try:
            handle = attach(name, method, base, tmp_path)
        except FoveateError as error:
            refused(name, method, error)  # not for this family
        with handle:
            results.append([call_of(model, method)(one) for one in inputs])
    for one, other in zip(*results, strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-3)
        else:
            assert torch.equal(other, one)


@pytest.mark.parametrize("method", ["pyramiddrop", "relevance"])
def test_layers_that_are_loaded_as_one_are_not_asked_before(method: str, tmp_path: Path) -> None:
    model = copy.deepcopy(zoo()["llava"].model())
    inputs, call = prompts("llava", model)[0], call_of(model, method)
    accelerate.cpu_offload(model, execution_device="cpu", preload_module_classes=["LlamaDecoderLayer"])
    with attach("llava", method, model, tmp_path), pytest.raises(FoveateError, match="without preload_module_classes"):
        call(inputs)

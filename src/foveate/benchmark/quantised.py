"""Quantised weights and KV caches, each by the package that implements it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, QuantizedCache
from transformers.cache_utils import QuantizedLayer

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.families import family_of
from foveate.kv_cache.nbytes import bytes_of

#: As it is: the precision that the model was loaded in.
FULL = "full"

#: Weights of the language model's linear layers, by name, with the package that each needs.
WEIGHTS = {FULL: "", "int8": "torchao", "int4": "torchao", "nf4": "bitsandbytes"}

#: Keys and values, by name, with the package that each needs; int8 is in this file, fp8 in transformers.
CACHES = {
    FULL: "",
    "int8": "",
    "fp8": "" if compat.HAS_FP8_CACHE else "transformers>=5.21",
    "int4": "optimum.quanto",
    "int2": "optimum.quanto",
}

#: Weights that share a scale at 4 bits.
GROUP = 32

_INSTALL = {"torchao": "torchao", "bitsandbytes": "bitsandbytes", "optimum.quanto": "optimum-quanto"}


def possible(kinds: dict[str, str]) -> tuple[str, ...]:
    """Select those of `WEIGHTS` or `CACHES` whose package is installed."""
    return tuple(name for name, package in kinds.items() if not package or _installed(package))


def check(what: str, name: str, kinds: dict[str, str]) -> None:
    """Raise FoveateError for a name that is not in `kinds` or whose package is not installed."""
    choice = ", ".join(possible(kinds))
    if name not in kinds:
        raise FoveateError(f"{what} {name!r} are not known; possible here are {choice}.")
    if name not in possible(kinds):
        package = _INSTALL.get(kinds[name], kinds[name])
        raise FoveateError(f"{what} {name} need a package (pip install '{package}'); possible here are {choice}.")


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the parent
        return False


# Weights


def quantise_weights(model: Any, name: str) -> None:
    """Quantise the linear layers of the language model in place; encoder, embeddings and output layer are not.

    Args:
        model: Of a family that foveate knows.
        name: int8 has one scale for every output (torchao); int4 one for every 32 weights (torchao: packed on a GPU in
            bfloat16, on a CPU with a byte for every weight); nf4 is 4-bit NormalFloat (bitsandbytes).

    Raises:
        FoveateError: it cannot be done here.
    """
    check("weights", name, WEIGHTS)
    if name == FULL:
        return
    text = family_of(model).text(family_of(model).core(model))
    try:
        _nf4(text) if name == "nf4" else _torchao(text, name, model.device)
    except (ImportError, AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        others = ", ".join(other for other in possible(WEIGHTS) if other != name)
        raise FoveateError(
            f"{name} weights do not run in {next(model.parameters()).dtype} on {model.device.type} here ({reason}); "
            f"possible are {others}."
        ) from error


def _torchao(text: nn.Module, name: str, device: torch.device) -> None:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quant_api import quantize_

    config: Any
    if name == "int8":
        config = Int8WeightOnlyConfig()
    elif device.type == "cuda":
        packing: Any = "tile_packed_to_4d"
        config = Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format=packing)
    else:
        four: Any = getattr(torch, "int4")  # noqa: B009 - stubs of torch do not have it
        config = IntxWeightOnlyConfig(weight_dtype=four, granularity=PerGroup(GROUP))
    linears = [module for module in text.modules() if isinstance(module, nn.Linear)]
    if name == "int4" and any(module.in_features % GROUP for module in linears):
        raise ValueError(f"a width is not a multiple of {GROUP}")
    quantize_(text, config)


def _nf4(text: nn.Module) -> None:
    bnb: Any = import_module("bitsandbytes")
    for path, layer in list(text.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        small = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None,
            compute_dtype=layer.weight.dtype, quant_type="nf4",
        )  # fmt: skip
        small.load_state_dict(layer.state_dict())
        parent, _, last = path.rpartition(".")
        setattr(text.get_submodule(parent), last, small.to(layer.weight.device))  # where it is quantised


# Caches


class Int8Layer(QuantizedLayer):
    """Cache layer in 8 bits: x is round(x / s) * s, with s = max |x| / 127 for every token and head.

    The newest tokens stay as they are until there are as many as `transformers` keeps for every quantised cache.
    """

    def __init__(self) -> None:
        super().__init__(nbits=8)

    def _quantize(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        scale = tensor.abs().amax(dim=-1, keepdim=True).float().clamp_min(torch.finfo(torch.float32).tiny) / 127
        return (tensor / scale).round().to(torch.int8), scale.to(tensor.dtype)

    def _dequantize(self, q_tensor: tuple[Tensor, Tensor]) -> Tensor:
        values, scale = q_tensor
        return values.to(scale.dtype) * scale


def cache_maker(model: Any, name: str) -> Callable[[], Cache | None]:
    """Return a function that makes an empty cache of that name for a model.

    Raises:
        FoveateError: it does not run here, or the model has layers that remember otherwise.
    """
    check("caches", name, CACHES)
    if name == FULL:
        return lambda: None
    text = model.config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise FoveateError(
            f"a quantised cache remembers every token, and {model.config.model_type} has layers of {', '.join(kinds)}; "
            f"possible here is {FULL}."
        )
    if name == "int8":
        return lambda: Cache(layers=[Int8Layer() for _ in range(text.num_hidden_layers)])
    if name == "fp8":
        return lambda: QuantizedCache("fp8", model.config)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    # Groups within a token's head: what a token is kept as depends on no other.
    group = math.gcd(head, 64)
    return lambda: QuantizedCache("quanto", model.config, nbits=int(name[3:]), q_group_size=group)


@contextmanager
def cached(model: Any, name: str) -> Generator[list[tuple[int, int]]]:
    """Make `generate` of a model use caches of that name unless a call passes one.

    Yields:
        A list that gets, after every call, the bytes of the cache and the prompts in it.

    Raises:
        FoveateError: as `cache_maker`.
    """
    make, original = cache_maker(model, name), model.generate
    shapes: list[tuple[int, int]] = []

    def generate(*args: Any, **kwargs: Any) -> Any:
        if name != FULL and compat.cache_in(kwargs) is None:
            kwargs = compat.with_cache(kwargs, make())
        output = original(*args, **kwargs)
        size = bytes_of(compat.cache_of(output))
        if size is not None:
            shapes.append((size, len(output.sequences)))
        return output

    model.generate = generate
    try:
        yield shapes
    finally:
        del model.generate

"""Encoders and connectors of foveate, counted as by `torch.utils.flop_counter` while they run without data.

There are many of them, with options of their own, and other packages add theirs, so that no formula is written down for
each. Their own code runs on tensors of the device "meta", which have a shape and nothing else: the count is exact, and
takes a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers.initialization import no_init_weights

from foveate.core.tokens import Grid
from foveate.cost import flops
from foveate.models.connectors.connector import Connector
from foveate.models.connectors.registry import connector_of_config, connector_of_sizes, options_of_config
from foveate.models.encoders import EncoderConfig, encoder_named


@dataclass(frozen=True)
class CountedEncoder:
    """An encoder of `foveate.models.encoders`.

    Args:
        config: Its configuration.
    """

    config: EncoderConfig

    @property
    def blocks(self) -> int:
        """How many run."""
        return self.config.num_hidden_layers

    def output_grid(self, patches: Grid) -> Grid:
        """Rows and columns of the tokens that leave the encoder."""
        return self.config.reduced(patches)

    def flops(self, patches: Grid, *, crops: Grid | None = None, attention: bool = True) -> int:
        """FLOPs on one image.

        Args:
            patches: Rows and columns of what the first layer makes tokens of.
            crops: Rows and columns of crops that are read together with the image, each of as many patches.
            attention: Whether `scaled_dot_product_attention` is counted.
        """
        config = self.config
        rows, columns = (config.patch_size * length for length in patches)
        options, number = config.tower_options(), 1
        if crops is not None:
            options, number = options | config.crop_options([crops]), 1 + crops.size
        pixels = empty(number, config.num_channels, rows, columns)
        return count(lambda: self._module(pixels, **options), attention)

    @cached_property
    def _module(self) -> nn.Module:
        return without_data(lambda: encoder_named(self.config.model_type)(self.config))


@dataclass(frozen=True)
class CountedConnector:
    """A connector of `foveate.models.connectors`.

    Args:
        config: Configuration of the model that has it.
        width: Of the features that it reads.
    """

    config: Any
    width: int

    @cached_property
    def sizes(self) -> Connector:
        """The connector without its layers, for what follows from sizes alone."""
        return connector_of_sizes(self.config.connector_type, options_of_config(self.config))

    def flops(
        self, grid: Grid, budget: int | None = None, *, images: int = 1, whole: int = 0, attention: bool = True
    ) -> int:
        """FLOPs on the features of images of one size; with pre-fusion they are also mapped to the width of the text.

        Args:
            grid: Rows and columns of the features.
            budget: Number of tokens, for nested connectors; None: their default.
            images: How many there are.
            whole: Patches of the whole image that pre-fusion maps, where the features are those of sub-images.
            attention: Whether `scaled_dot_product_attention` is counted.
        """
        levels = len(self.sizes.feature_layers(self.config.vision_config.num_hidden_layers))
        features = empty(images, grid.size, *([levels] if levels else []), self.width)
        text = empty(images, 1, self.config.text_config.hidden_size) if self.sizes.reads_text else None

        def run() -> None:
            self._module(features, grid, budget, text)
            if self.sizes.prefusion_layers:
                self._module.project(features)
                self._module.project(empty(images, whole, self.width))

        return count(run, attention)

    @cached_property
    def _module(self) -> Any:
        return without_data(lambda: connector_of_config(self.config, self.width))


#: Functions of which every output value costs nothing in the counter of torch, and has the shape of their first input.
_SAME_SHAPE = {
    F.layer_norm,
    F.gelu,
    F.silu,
    F.relu,
    F.softmax,
    torch.softmax,
    Tensor.softmax,
    F.batch_norm,
    Tensor.float,
}
#: The same, with the shape to which their inputs broadcast.
_BROADCAST = {
    Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul,
    Tensor.sub, Tensor.__sub__, Tensor.__rsub__, Tensor.__truediv__, Tensor.div,
}  # fmt: skip


class _Products(TorchDispatchMode):
    """Counts matrix products and convolutions by the formulas of `torch.utils.flop_counter`.

    Its own mode also names the modules, and takes every other function apart to look for products in it. Functions that
    are made of others reach this mode as their parts, so that none is overlooked.

    Attributes:
        flops: Counted so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=output)
        return output


class _ShapesAlone(TorchFunctionMode):
    """Functions return tensors of their shape at once: torch would look for kernels in Python.

    Those of `_SAME_SHAPE` and `_BROADCAST`, and resizing, cost nothing. Linear layers and attention, which have most
    products, are counted here. Tensors with data, such as positions that a module computes for itself, are computed
    with.

    Args:
        attention: Whether `scaled_dot_product_attention` is counted.

    Attributes:
        flops: Counted so far.
    """

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self._attention = attention
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [value for value in args if isinstance(value, Tensor)]
        if not any(tensor.is_meta for tensor in tensors):
            return func(*args, **(kwargs or {}))
        if func in _SAME_SHAPE:
            return args[0].new_empty(args[0].shape)
        if func in _BROADCAST:
            shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
            return torch.empty(shape, dtype=tensors[0].dtype, device="meta")
        if func is F.interpolate and isinstance(size := _size(args, kwargs or {}), (tuple, list)):
            return args[0].new_empty(*args[0].shape[:2], *size)
        if func is F.linear:  # a bias costs nothing
            x, weight = args[:2]
            self.flops += flops.linear(x.shape[:-1].numel(), *reversed(weight.shape))
            return x.new_empty(*x.shape[:-1], len(weight))
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            width = query.shape[-1] + value.shape[-1]
            if self._attention:
                self.flops += flops.linear(query.shape[:-1].numel(), width, key.shape[-2])
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def _size(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The argument `size` of `F.interpolate`."""
    return args[1] if len(args) > 1 else kwargs.get("size")


def count(run: Callable[[], object], attention: bool = True) -> int:
    """FLOPs of a run without data, as `flops.count` counts them; of `scaled_dot_product_attention` none on request."""
    with torch.no_grad(), _ShapesAlone(attention) as at_once, _Products() as products:
        run()
    return at_once.flops + products.flops


def without_data(build: Callable[[], nn.Module]) -> nn.Module:
    """A module whose weights have a shape and nothing else."""
    with torch.device("meta"), no_init_weights():
        return build().eval().requires_grad_(False)


def empty(*shape: int) -> Tensor:
    """A tensor that has a shape and nothing else."""
    return torch.empty(shape, device="meta")

"""What a call of a model returns: which columns of the sequence its output has, and the loss over them.

A model works its loss out after its language model has run, from labels that it was given before. They are handed over
as tensors that are filled in between: when the language model has run, they hold the labels of what it read. So the
model's own forward makes its loss, with whatever it adds to it, and foveate repeats none of it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from foveate.core import sequence

if TYPE_CHECKING:
    from foveate.runtime.llm_input import Read


def named(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    if not args:
        return kwargs
    call = inspect.signature(function).bind(*args, **kwargs).arguments
    parameters = inspect.signature(function).parameters
    rest = next((name for name, own in parameters.items() if own.kind is own.VAR_KEYWORD), None)
    return {**call, **call.pop(rest, {})} if rest is not None else dict(call)


class Call:
    """One call of a model, from its arguments to what it returns.

    Args:
        align: Whether logits of all columns are wanted.
        arguments: What the model is called with, by name.
        config: Of the model.
        hook: What `accelerate` has put around the model, which moves arguments to a device.
    """

    def __init__(self, align: bool, arguments: dict[str, Any], config: Any, hook: Any) -> None:
        self.align = align
        self.given = arguments
        self.arguments = dict(arguments)
        self.config = config
        self.read: Read | None = None
        self._places: Tensor | None = None
        self._device = getattr(hook, "execution_device", None)
        self._late: dict[str, Tensor] = {}
        self._tuple = arguments.get("return_dict")
        if self._tuple is None:
            self._tuple = getattr(config, "return_dict", True)
        self._tuple = not self._tuple
        if "return_dict" in arguments or self._tuple:
            self.arguments["return_dict"] = True
        for name in ("labels", "shift_labels"):
            if isinstance(arguments.get(name), Tensor) and arguments[name].ndim == 2:
                self._wait(name, arguments[name])
        if self._routed():  # the balancing loss of experts counts what the mask shows
            self._wait_for_mask()

    def _wait(self, name: str, value: Tensor) -> None:
        # Where a hook moved it to another device, the model would hold a copy that nothing fills in.
        value = value if self._device is None else value.to(self._device)
        self._late[name] = self.arguments[name] = value.clone()

    def _routed(self) -> bool:
        asked = self.given.get("output_router_logits")
        if asked is None:
            asked = getattr(self.config.get_text_config(), "output_router_logits", False)
        return bool(asked)

    def _wait_for_mask(self) -> None:
        mask = self.given.get("attention_mask")
        if mask is None:
            ids = self.given.get("input_ids")
            ids = self.given.get("inputs_embeds") if ids is None else ids
            mask = None if ids is None else torch.ones(ids.shape[:2], dtype=torch.int64, device=ids.device)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self._wait("attention_mask", mask)

    def learned(self) -> Tensor | None:
        """(B, L) the labels, each at its token; None where none were given."""
        labels, shifted = self.given.get("labels"), self.given.get("shift_labels")
        if labels is None and isinstance(shifted, Tensor) and shifted.ndim == 2:
            labels = torch.nn.functional.pad(shifted[:, :-1], (1, 0), value=-100)
        return labels if isinstance(labels, Tensor) and labels.ndim == 2 else None

    def of_core(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What the model calls its core with, the mask as it was given."""
        late = self._late.get("attention_mask")
        if late is not None and arguments.get("attention_mask") is late:
            return {**arguments, "attention_mask": self.given.get("attention_mask")}
        return arguments

    # After the language model

    def of_text(self, output: Any, read: Read | None) -> Any:
        """The output of the language model, of all columns where these are wanted."""
        self.read = read
        if read is None or not isinstance(output, ModelOutput) or not self._spreads(read):
            return output
        own = sequence.last_kept(read.columns, read.length, read.blocks)
        self._places = own
        output["last_hidden_state"] = sequence.spread(output["last_hidden_state"], own)
        hidden = output.get("hidden_states")
        if hidden is not None:
            # The first of them enters the layers, and the last of them, past the norm, is what leaves.
            output["hidden_states"] = tuple(
                value if value is None else self._spread_layer(value, number - 1, read)
                for number, value in enumerate(hidden)
            )
        return output

    def _spread_layer(self, value: Tensor, number: int, read: Read) -> Tensor:
        if value.shape[1] == read.length:
            return value
        return sequence.spread(value, sequence.last_kept(read.of_layer(number), read.length, read.blocks))

    def _spreads(self, read: Read) -> bool:
        """Whether the output is to have all columns of the sequence.

        So it has where some are asked for by number, and these are not simply the last ones of what was read.
        """
        if not read.shorter:
            return False
        keep = self.given.get("logits_to_keep")
        if self.align or isinstance(keep, Tensor):
            return True
        if not keep:
            return False
        last = torch.arange(read.length - min(keep, read.length), read.length, device=read.columns.device)
        return read.columns.shape[1] < len(last) or not bool((read.columns[:, -len(last) :] == last).all())

    def fill(self) -> None:
        """Fill in what waited until it was known what the language model read."""
        read = self.read
        if read is None or not read.shorter:
            return
        columns, blocks = read.columns, read.blocks
        for name, late in self._late.items():
            value = late.to(columns.device)
            if name == "attention_mask":
                if value.shape[1] != read.length:
                    continue
                short = sequence.gather_mask(value, columns)
            elif self._places is not None and not self.align:
                continue  # some columns were asked for by number, and labels are for all
            elif name == "labels":
                shorten = sequence.labels_that_count if self.align else sequence.shorten_labels
                short = shorten(value, columns, blocks)
            else:
                shorten = sequence.shifted_that_count if self.align else sequence.shorten_shifted
                short = shorten(value, columns, blocks)
            late.set_(short.to(late))  # ty: ignore[invalid-argument-type]

    def returned(self, output: Any) -> Any:
        """What the caller gets."""
        if isinstance(output, ModelOutput):
            extra: dict[str, Any] = {"kept_positions": None, "labels": None}
            asked = output.get("attentions") is not None or output.get("router_logits") is not None
            if not self.align or (asked and self.read is not None and self.read.shorter):
                extra["kept_positions"] = self._kept()
            if not self.align and isinstance(self.given.get("labels"), Tensor):
                extra["labels"] = self._late.get("labels", self.given["labels"])
            output = with_fields(output, **extra)
        return output.to_tuple() if self._tuple and not isinstance(output, tuple) else output

    def _kept(self) -> Tensor | None:
        """(B, P) the columns that the output has."""
        ids = self.given.get("input_ids")
        ids = self.given.get("inputs_embeds") if ids is None else ids
        if ids is None:
            return None
        every = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        keep = self.given.get("logits_to_keep")
        own = every if self.read is None or (self._places is not None and not self.align) else self.read.columns
        if isinstance(keep, Tensor):
            if keep.ndim == 2:
                return None if keep.dtype == torch.bool else keep
            return own[:, keep]
        return own[:, -keep:] if keep else own


@functools.cache
def _telling(cls: type[ModelOutput]) -> type[ModelOutput]:
    """A kind of output that also says which columns it has."""
    fields = [(name, Tensor | None, None) for name in ("kept_positions", "labels") if name not in _names(cls)]
    made: Any = dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), namespace={"__reduce__": _reduce})
    made.__doc__ = cls.__doc__
    made.__module__ = __name__
    return made


def _names(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _reduce(self: Any) -> Any:
    return _again, (type(self).__mro__[1], {name: self[name] for name in self})


def _again(cls: type[ModelOutput], values: dict[str, Any]) -> ModelOutput:
    return _telling(cls)(**values)


def with_fields(output: ModelOutput, **extra: Any) -> ModelOutput:
    """An output with these fields beside its own."""
    cls = type(output)
    if not dataclasses.is_dataclass(cls):
        return output
    kind = _telling(cls)
    return kind(**{name: output[name] for name in output}, **{k: v for k, v in extra.items() if v is not None})

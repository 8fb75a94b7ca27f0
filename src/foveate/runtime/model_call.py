"""Loss and outputs of a model call under a plan.

A model computes its loss after its language model has run, from labels that it got before. Labels are passed
as tensors that are filled in between: once the language model has run, they hold the labels of the kept tokens. So the
model's own forward computes its loss, with its extra terms, and foveate repeats none of it.
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

from foveate import compat
from foveate.core import sequence
from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from foveate.runtime.llm_input import ReadColumns


def bind_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Bind the arguments of a call to their names."""
    if not args:
        return kwargs
    call = inspect.signature(function).bind(*args, **kwargs).arguments
    parameters = inspect.signature(function).parameters
    variadic = next((name for name, parameter in parameters.items() if parameter.kind is parameter.VAR_KEYWORD), None)
    return {**call, **call.pop(variadic, {})} if variadic is not None else dict(call)


class ModelCall:
    """One call of a model, from its arguments to its output.

    Args:
        align: Whether logits of all columns are wanted.
        arguments: Arguments of the call, by name.
        config: Configuration of the model.
        hook: The hook of `accelerate` that moves the model's arguments to a device, if any.

    Raises:
        FoveateError: `logits_to_keep` selects other columns in every row, which this version of transformers cannot.
    """

    def __init__(self, align: bool, arguments: dict[str, Any], config: Any, hook: Any) -> None:
        keep = arguments.get("logits_to_keep")
        if isinstance(keep, Tensor) and keep.ndim > 1 and not compat.HAS_LOGITS_PER_ROW:
            raise FoveateError(
                "this version of transformers cannot read logits_to_keep of two dimensions; give a number, the columns "
                "of all rows, or install transformers 5.21 or newer."
            )
        self.align = align
        self.original_arguments = arguments
        self.arguments = dict(arguments)
        self.config = config
        self.read: ReadColumns | None = None
        self._source_positions: Tensor | None = None
        self._device = getattr(hook, "execution_device", None)
        self._deferred: dict[str, Tensor] = {}
        self._tuple = arguments.get("return_dict")
        if self._tuple is None:
            self._tuple = getattr(config, "return_dict", True)
        self._tuple = not self._tuple
        if "return_dict" in arguments or self._tuple:
            self.arguments["return_dict"] = True
        for name in ("labels", "shift_labels"):
            if isinstance(arguments.get(name), Tensor) and arguments[name].ndim == 2:
                self._defer(name, arguments[name])
        if self._has_router_loss():  # the load-balancing loss of experts counts the tokens in the mask
            self._defer_mask()

    def _defer(self, name: str, value: Tensor) -> None:
        # If a hook moved it to another device, the model would hold a copy that is never filled in.
        value = value if self._device is None else value.to(self._device)
        self._deferred[name] = self.arguments[name] = value.clone()

    def _has_router_loss(self) -> bool:
        output_router_logits = self.original_arguments.get("output_router_logits")
        if output_router_logits is None:
            output_router_logits = getattr(self.config.get_text_config(), "output_router_logits", False)
        return bool(output_router_logits)

    def _defer_mask(self) -> None:
        mask = self.original_arguments.get("attention_mask")
        if mask is None:
            ids = self.original_arguments.get("input_ids")
            ids = self.original_arguments.get("inputs_embeds") if ids is None else ids
            mask = None if ids is None else torch.ones(ids.shape[:2], dtype=torch.int64, device=ids.device)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self._defer("attention_mask", mask)

    def labels_by_token(self) -> Tensor | None:
        """(B, L) unshifted labels; None where none were given."""
        labels, shift_labels = self.original_arguments.get("labels"), self.original_arguments.get("shift_labels")
        if labels is None and isinstance(shift_labels, Tensor) and shift_labels.ndim == 2:
            labels = torch.nn.functional.pad(shift_labels[:, :-1], (1, 0), value=-100)
        return labels if isinstance(labels, Tensor) and labels.ndim == 2 else None

    def core_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the core, with the original mask in place of the deferred one."""
        mask = self._deferred.get("attention_mask")
        if mask is not None and arguments.get("attention_mask") is mask:
            return {**arguments, "attention_mask": self.original_arguments.get("attention_mask")}
        return arguments

    # After the language model

    def expand_text_output(self, output: Any, read: ReadColumns | None) -> Any:
        """The output of the language model, expanded to all columns where they are wanted."""
        self.read = read
        if read is None or not isinstance(output, ModelOutput) or not self._needs_all_columns(read):
            return output
        sources = sequence.last_kept(read.columns, read.length, read.sample_ids)
        self._source_positions = sources
        output["last_hidden_state"] = sequence.spread(output["last_hidden_state"], sources)
        hidden = output.get("hidden_states")
        if hidden is not None:
            # The first one is the input of the layers, the last one the output after the norm.
            output["hidden_states"] = tuple(
                value if value is None else self._expand_layer(value, number - 1, read)
                for number, value in enumerate(hidden)
            )
        return output

    def _expand_layer(self, value: Tensor, number: int, read: ReadColumns) -> Tensor:
        if value.shape[1] == read.length:
            return value
        return sequence.spread(value, sequence.last_kept(read.of_layer(number), read.length, read.sample_ids))

    def _needs_all_columns(self, read: ReadColumns) -> bool:
        """Whether the output must have all columns of the sequence.

        So it must where some are asked for by index, unless these are the last kept ones.
        """
        if not read.shorter:
            return False
        keep = self.original_arguments.get("logits_to_keep")
        if self.align or isinstance(keep, Tensor):
            return True
        if not keep:
            return False
        last = torch.arange(read.length - min(keep, read.length), read.length, device=read.columns.device)
        return read.columns.shape[1] < len(last) or not bool((read.columns[:, -len(last) :] == last).all())

    def fill_deferred(self) -> None:
        """Fill in the deferred arguments, once the kept columns are known."""
        read = self.read
        if read is None or not read.shorter:
            return
        columns, sample_ids = read.columns, read.sample_ids
        for name, deferred in self._deferred.items():
            value = deferred.to(columns.device)
            if name == "attention_mask":
                if value.shape[1] != read.length:
                    continue
                pruned = sequence.gather_mask(value, columns)
            elif self._source_positions is not None and not self.align:
                continue  # some columns were asked for by index, and labels are for all
            elif name == "labels":
                shorten = sequence.labels_that_count if self.align else sequence.shorten_labels
                pruned = shorten(value, columns, sample_ids)
            else:
                shorten = sequence.shifted_that_count if self.align else sequence.shorten_shifted
                pruned = shorten(value, columns, sample_ids)
            deferred.set_(pruned.to(deferred))  # ty: ignore[invalid-argument-type]

    def finalize(self, output: Any) -> Any:
        """The output that the caller gets."""
        if isinstance(output, ModelOutput):
            extra: dict[str, Any] = {"kept_positions": None, "labels": None}
            has_layer_outputs = output.get("attentions") is not None or output.get("router_logits") is not None
            if not self.align or (has_layer_outputs and self.read is not None and self.read.shorter):
                extra["kept_positions"] = self._kept_positions()
            if not self.align and isinstance(self.original_arguments.get("labels"), Tensor):
                extra["labels"] = self._deferred.get("labels", self.original_arguments["labels"])
            output = with_fields(output, **extra)
        return output.to_tuple() if self._tuple and not isinstance(output, tuple) else output

    def _kept_positions(self) -> Tensor | None:
        """(B, P) the columns of the output."""
        ids = self.original_arguments.get("input_ids")
        ids = self.original_arguments.get("inputs_embeds") if ids is None else ids
        if ids is None:
            return None
        all_columns = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        keep = self.original_arguments.get("logits_to_keep")
        columns = (
            all_columns
            if self.read is None or (self._source_positions is not None and not self.align)
            else self.read.columns
        )
        if isinstance(keep, Tensor):
            if keep.ndim == 2:
                return None if keep.dtype == torch.bool else keep
            return columns[:, keep]
        return columns[:, -keep:] if keep else columns


@functools.cache
def _output_class(cls: type[ModelOutput]) -> type[ModelOutput]:
    """A subclass of an output class with the fields `kept_positions` and `labels`."""
    fields = [(name, Tensor | None, None) for name in ("kept_positions", "labels") if name not in _names(cls)]
    output_class: Any = dataclasses.make_dataclass(
        cls.__name__, fields, bases=(cls,), namespace={"__reduce__": _reduce}
    )
    output_class.__doc__ = cls.__doc__
    output_class.__module__ = __name__
    return output_class


def _names(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _reduce(self: Any) -> Any:
    return _rebuild, (type(self).__mro__[1], {name: self[name] for name in self})


def _rebuild(cls: type[ModelOutput], values: dict[str, Any]) -> ModelOutput:
    return _output_class(cls)(**values)


def with_fields(output: ModelOutput, **extra: Any) -> ModelOutput:
    """An output with additional fields."""
    cls = type(output)
    if not dataclasses.is_dataclass(cls):
        return output
    kind = _output_class(cls)
    return kind(**{name: output[name] for name in output}, **{k: v for k, v in extra.items() if v is not None})

"""Cross-attention of decoder layers to visual tokens that are no part of the sequence.

A language model of `transformers` takes the memory as a keyword argument, which it hands on to its layers. Hooks on
these take it away again, and give it to the reader of the layer. The memory of a prompt stays with its cache, so that
text that is written reads it too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import FoveateError

#: The argument of the language model and of its layers.
ARGUMENT = "visual_memory"


@dataclass(frozen=True)
class VisualMemory:
    """What the decoder layers of a call read.

    Args:
        states: `(B, S, d)`, visual tokens of every prompt, padded at the end.
        mask: `(B, S)` bool, False for padding.
        text: `(B, L)` bool, columns of the call that are text; no placeholder and no padding.
        visual: `(B, L)` bool, columns of the call that are visual tokens.
        projected: Keys and values of the states, by reader; they stay for the text that is written. A copy of the cache
            copies no reader.
    """

    states: Tensor
    mask: Tensor
    text: Tensor
    visual: Tensor
    projected: MutableMapping[MemoryReader, tuple[Tensor, Tensor]] = field(default_factory=WeakKeyDictionary)

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[Tensor]], text: Tensor, visual: Tensor, empty: Tensor) -> VisualMemory:
        """Pad the memories `(S_i, d)` of the clips of every prompt; `empty` `(0, d)` is that of a prompt without."""
        joined = [torch.cat([empty, *row]) for row in rows]
        states = nn.utils.rnn.pad_sequence(joined, batch_first=True)
        lengths = torch.tensor([len(row) for row in joined], device=states.device)
        return cls(states, torch.arange(states.shape[1], device=states.device) < lengths[:, None], text, visual)

    def for_text(self, batch: int, length: int) -> VisualMemory:
        """The memory for further columns, all of which are text.

        Raises:
            FoveateError: There are more prompts than the memory has, and no multiple of them.
        """
        rows = len(self.states)
        if batch % rows:
            raise FoveateError(f"the cache holds the visual memory of {rows} prompts, and this call has {batch}.")
        text = torch.ones(batch, length, dtype=torch.bool, device=self.mask.device)
        times = batch // rows
        if times == 1:
            return replace(self, text=text, visual=~text)
        states, mask = (x.repeat_interleave(times, dim=0) for x in (self.states, self.mask))
        return VisualMemory(states, mask, text, ~text)

    def keys_values(self, reader: MemoryReader, states: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values `(B, kv heads, S, D)` of a reader; without gradients they are computed once.

        Args:
            reader: The reader.
            states: Returns what it makes them of.
        """
        if torch.is_grad_enabled():  # also where a layer runs again for its gradients, and ran without them before
            return reader.keys_values(states())
        if reader not in self.projected:
            self.projected[reader] = reader.keys_values(states())
        return self.projected[reader]


class MemoryReader(nn.Module, ABC):
    """What reads the memory in one decoder layer."""

    @abstractmethod
    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(B, kv heads, S, D)` of a memory `(B, S, d)`."""

    @abstractmethod
    def flops(self, memory: int, text: int, visual: int, attention: bool = True) -> int:
        """FLOPs of matrix products and attention for one prompt.

        Args:
            memory: Tokens of the memory.
            text: Tokens of text.
            visual: Visual tokens of the sequence.
            attention: Whether products of queries, keys and values are counted.
        """

    @abstractmethod
    def attach(self, layer: nn.Module) -> None:
        """Hook the reader into its layer, whose calls have the memory as their argument.

        Hooks are methods of the reader, so that a copy of the model has those of its own readers.
        """

    def reset_parameters(self) -> None:
        """Initialize the parameters that no layer of torch initializes, by `transformers.initialization`."""


def take_memory(kwargs: dict[str, Any]) -> VisualMemory | None:
    """Remove the memory from the arguments of a layer; None where the prompts of the call have none."""
    return kwargs.pop(ARGUMENT, None)


def insert(language_model: Any, readers: nn.ModuleDict) -> None:
    """Hook readers into the layers of a language model that their names say, and let the others drop the memory.

    Raises:
        FoveateError: There is no such layer.
    """
    layers = language_model.layers
    if wrong := [name for name in readers if not int(name) < len(layers)]:
        raise FoveateError(
            f"layers of this language model are 0 to {len(layers) - 1}, and one reader is for {wrong[0]}."
        )
    for number, layer in enumerate(layers):
        if str(number) in readers:
            reader: Any = readers[str(number)]
            reader.attach(layer)
        else:
            layer.register_forward_pre_hook(_drop, with_kwargs=True)


def _drop(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args, {name: value for name, value in kwargs.items() if name != ARGUMENT}


def packed_columns(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Columns `(B, m)` of a mask `(B, L)` together at the start of every row, and `(B, m)` bool, False for padding."""
    counts = mask.sum(-1)
    order = mask.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, : int(counts.max())]
    return order, torch.arange(order.shape[1], device=mask.device) < counts[:, None]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention to the memory of every prompt; zero where it has none.

    Args:
        query: `(B, heads, m, D)`.
        key: `(B, kv heads, S, D)`.
        value: `(B, kv heads, S, D)`.
        mask: `(B, S)` bool, False for padding.

    Returns:
        `(B, m, heads * D)`.
    """
    has = mask.any(-1)
    allowed = (mask | ~has[:, None])[:, None, None]
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    return mixed.transpose(1, 2).flatten(2) * has[:, None, None].to(mixed.dtype)


def add_rows(hidden: Tensor, columns: Tensor, present: Tensor, update: Tensor) -> Tensor:
    """Add updates `(B, m, d)` to the columns `(B, m)` of `(B, L, d)`; those that are not present add nothing."""
    update = update * present.unsqueeze(-1).to(update.dtype)
    return hidden.scatter_add(1, columns.unsqueeze(-1).expand_as(update), update.to(hidden.dtype))

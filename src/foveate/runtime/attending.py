"""The seam inside attention: methods that change what is attended to stand around the function that attends.

Every attention module of `transformers` calls a function that its `config` names, with rotated queries, keys and values
and a mask. A module that a method changes gets a copy of its config that names ours, as in `foveate.runtime.probe`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import local
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foveate.decoder.attending import AttentionMethod, Looking, MaskMethod
from foveate.errors import FoveateError
from foveate.plan import Step
from foveate.runtime.probe import attention_function, name_before

if TYPE_CHECKING:
    from foveate.runtime.layers import LayerSeam, Pass

#: What an attention function of ours is called in a config; the rest of the name is the one that it stands around.
PREFIX = "foveate_around_"

_around: WeakKeyDictionary[nn.Module, Callable[..., Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Call:
    """One call of an attention function.

    Args:
        module: The attention module.
        query: (B, H, L, d).
        key: (B, H', K, d), as all that the layer remembers.
        value: (B, H', K, d).
        mask: None, (B, K), or (B, 1, L, K) bool or added.
        options: Everything else that it is called with.
        name: What the config named before.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: dict[str, Any]
    name: str

    def attend(self, **changed: Any) -> Any:
        """What the call returns, with some of `query`, `key`, `value` and `mask` changed."""
        arguments = {"query": self.query, "key": self.key, "value": self.value, "mask": self.mask, **changed}
        function = attention_function(self.module, self.name)
        return function(
            self.module, arguments["query"], arguments["key"], arguments["value"], arguments["mask"], **self.options
        )

    def attend_pairs(self, allowed: Tensor) -> Any:
        """What the call returns where `allowed` (B, L, K) says who sees whom."""
        mask = allowed[:, None]
        name = self.name
        if "eager" in name:
            mask = torch.zeros_like(mask, dtype=self.query.dtype).masked_fill(~mask, torch.finfo(self.query.dtype).min)
        elif "flash" in name:  # knows no mask of pairs
            function = ALL_ATTENTION_FUNCTIONS["sdpa"]
            return function(self.module, self.query, self.key, self.value, mask, **self.options)
        return self.attend(mask=mask)

    def allowed(self) -> Tensor:
        """(B, L, K) bool, what the call's mask lets each new token see."""
        batch, length, total = len(self.query), self.query.shape[2], self.key.shape[2]
        mask = self.mask
        if mask is not None and mask.ndim == 4:
            seen = mask[:, 0, :, :total]
            seen = seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2
            return seen.expand(batch, length, total)
        place = torch.arange(total, device=self.query.device)
        own = place[total - length :, None]
        seen = place <= own
        window = self.options.get("sliding_window")
        if window is not None:
            seen = seen & (place > own - window)
        if mask is None:
            return seen.expand(batch, -1, -1)
        return seen & (mask[:, None, -total:] > 0)

    @property
    def scaling(self) -> float:
        """Factor of the logits."""
        given = self.options.get("scaling")
        return self.query.shape[-1] ** -0.5 if given is None else float(given)


def _standing_around(name: str) -> Callable[..., Any]:
    """The attention function that lets what stands around a module do what it does."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        call = Call(module, query, key, value, attention_mask, kwargs, name)
        around = _around.get(module)
        return call.attend() if around is None else around(call)

    return attend


@contextmanager
def attending(attention: nn.Module, around: Callable[[Call], Any]) -> Generator[None]:
    """Let `around` answer every call of a module's attention function inside the context."""
    before: Any = attention.config
    name = PREFIX + name_before(attention)
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _standing_around(name.removeprefix(PREFIX)))
    config: Any = copy.copy(before)
    config._attn_implementation_internal = name
    _around[attention] = around
    attention.config = config
    try:
        yield
    finally:
        attention.config = before
        del _around[attention]


@dataclass(frozen=True)
class Keys:
    """What the keys of a layer are.

    Args:
        visual: (B, n) bool, of an image; the new ones last.
        text: (B, n) bool, of text. Padding is neither.
    """

    visual: Tensor
    text: Tensor

    def of(self, count: int) -> Keys:
        """The keys of a layer that holds `count`: less where it has a window, more where it has room to grow."""
        short = count - self.visual.shape[1]
        return Keys(*(F.pad(kind, (0, short)) if short > 0 else kind[:, -count:] for kind in (self.visual, self.text)))


class AttentionSeam:
    """Stands around the attention of layers, while attached.

    Args:
        layers: The seam between the layers, which knows the sequence of each.
        steps: Steps with an `AttentionMethod`, by layer.
    """

    def __init__(self, layers: LayerSeam, steps: dict[int, Step]) -> None:
        self.layers = layers
        self.steps = steps
        self._local = local()

    def attach(self) -> list[Callable[[], None]]:
        """Install everything; returns what takes it off again."""
        undo: list[Callable[[], None]] = []
        for number, step in self.steps.items():
            # Not on the layer: where it runs again for its gradient, only the hooks of what is in it do.
            attention = self.layers.text.layers[number].self_attn
            undo.append(attention.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            undo.append(attention.register_forward_hook(self._end).remove)
            stack = ExitStack()
            stack.enter_context(attending(attention, partial(self._attend, number, step.method)))
            undo.append(stack.close)
        return undo

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._local.found = self.layers.pass_of(kwargs)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._local.found = None

    def _attend(self, number: int, method: AttentionMethod, call: Call) -> Any:
        found: Pass | None = getattr(self._local, "found", None)
        if found is None:
            return call.attend()
        if "flex" in call.name:
            raise FoveateError(f"{method.name} changes attention, which works with eager, sdpa and flash, not flex.")
        if isinstance(method, MaskMethod):
            return self._mask(number, method, found, call)
        raise TypeError(f"{type(method).__name__} does nothing that is known here")

    def _keys(self, number: int, found: Pass) -> Keys:
        """What all keys of a layer are, had it no window and no room."""
        held, short = found.remembered(self.layers.segment(number)), self.layers.short(number, found)
        before = torch.zeros_like(held, dtype=torch.bool)
        if found.kept is not None and held.shape[1]:
            before = found.kept.visual.gather(1, held.clamp(min=0)) & (held >= 0)
        new = torch.zeros_like(short.columns, dtype=torch.bool)
        for image in short.images:
            new[image.row, image.places] = True
        places = torch.cat([held, found.with_past(short.columns)], dim=1)
        visual = torch.cat([before, new], dim=1)
        seen = (found.seen.gather(1, places.clamp(min=0)) > 0) & (places >= 0)
        return Keys(visual & seen, ~visual & seen)

    # Hiding pairs

    def _mask(self, number: int, method: MaskMethod, found: Pass, call: Call) -> Any:
        kept, allowed = found.kept, call.allowed()
        keys = self._keys(number, found)
        total, length = keys.visual.shape[1], call.query.shape[2]
        memory = None if kept is None else kept.memory.get(number)
        # Counted as in a layer without a window and without room behind what it holds.
        missing = total - call.key.shape[2]
        key = F.pad(call.key, (0, 0, missing, 0)) if missing > 0 else call.key[:, :, :total]
        wide = F.pad(allowed, (missing, 0)) if missing > 0 else allowed[:, :, :total]
        hidden, remembered = [], []
        with torch.no_grad():
            for row in range(len(allowed)):
                looking = Looking(
                    call.query[row],
                    key[row],
                    call.scaling,
                    wide[row],
                    keys.visual[row],
                    keys.text[row],
                    number,
                    len(self.layers.text.layers),
                )
                pairs, after = method.hides(looking, None if memory is None else memory[row])
                hidden.append(pairs)
                remembered.append(after)
        if kept is not None and found.cache is not None:
            kept.memory[number] = remembered
        pairs = torch.stack(hidden)
        if not bool(pairs.any()):
            return call.attend()
        pairs = pairs[:, :, missing:] if missing > 0 else F.pad(pairs, (0, -missing))
        assert pairs.shape[1] == length
        return call.attend_pairs(allowed & ~pairs)

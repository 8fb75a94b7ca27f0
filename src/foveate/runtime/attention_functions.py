"""Functions that stand around the attention function of a module.

Every attention module of `transformers` calls a function that its `config` names, with rotated queries and keys, values
and a mask. A module around which something stands has a copy of its config that names a function of ours, which calls
what stands there, the latest first, and then the function that was named before. All other modules stay untouched.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foveate import compat
from foveate.core.attention import eager_attention, may_attend
from foveate.runtime.patches import Patches

#: What our attention function is called in a config; the rest of the name is the one that stands behind it.
PREFIX = "foveate_"

#: A function that stands around another: it gets the call, and `call.attend()` goes on with it.
Around = Callable[["Call"], Any]

_lock = threading.RLock()
_around: WeakKeyDictionary[nn.Module, tuple[Around, ...]] = WeakKeyDictionary()
_configs: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


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
        inner: What stands further inside.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: dict[str, Any]
    name: str
    inner: tuple[Around, ...] = ()

    def attend(self, **changed: Any) -> Any:
        """What the call returns, with some of `query`, `key`, `value` and `mask` changed."""
        if self.inner:
            return self.inner[0](replace(self, **changed, inner=self.inner[1:]))
        call = replace(self, **changed) if changed else self
        function = attention_function(self.module, self.name)
        return function(self.module, call.query, call.key, call.value, call.mask, **self.options)

    def attend_pairs(self, allowed: Tensor) -> Any:
        """What the call returns where `allowed` (B, L, K) says who sees whom."""
        mask = allowed[:, None]
        if "eager" in self.name:
            mask = torch.zeros_like(mask, dtype=self.query.dtype).masked_fill(~mask, torch.finfo(self.query.dtype).min)
        elif "flash" in self.name:  # knows no mask of pairs
            return replace(self, name="sdpa").attend(mask=mask)
        return self.attend(mask=mask)

    def allowed(self) -> Tensor:
        """(B, L, K) bool, what the call's mask lets each new token see."""
        batch, length, total = len(self.query), self.query.shape[2], self.key.shape[2]
        mask = self.mask
        if mask is not None and mask.ndim == 4:
            return may_attend(mask[:, 0, :, :total]).expand(batch, length, total)
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


def attention_function(module: nn.Module, name: str) -> Callable[..., Any]:
    """What an attention module calls where its config names `name`."""
    if name == "eager":
        home = vars(sys.modules[type(module).__module__])
        return home.get("eager_attention_forward", eager_attention)  # encoders of our own share one
    return ALL_ATTENTION_FUNCTIONS[name]


def _standing_around(name: str) -> Callable[..., Any]:
    """The attention function that lets what stands around a module do what it does."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        return Call(module, query, key, value, attention_mask, kwargs, name, _around.get(module, ())).attend()

    attend.reads_in_order = True  # ty: ignore[missing-attribute] - `encoders.attention` would group windows
    return attend


def stand_around(patches: Patches, attention: nn.Module, around: Around) -> None:
    """Let `around` answer every call of a module's attention function, until `patches` are undone."""
    with _lock:
        if attention not in _configs:
            before: Any = attention.config
            name = PREFIX + compat.attention_name(before)
            if name not in ALL_ATTENTION_FUNCTIONS:
                AttentionInterface.register(name, _standing_around(name.removeprefix(PREFIX)))
            _configs[attention] = before
            attention.config = compat.config_with_attention(before, name)
        original = _configs[attention]
        _around[attention] = (around, *_around.get(attention, ()))
    patches.callback(functools.partial(_step_aside, attention, around))
    patches.left_out(attention, lambda state: state.update(config=original))


def _step_aside(attention: nn.Module, around: Around) -> None:
    with _lock:
        rest = list(_around[attention])
        rest.remove(around)
        if rest:
            _around[attention] = tuple(rest)
        else:
            # Calls that are under way in other threads find nothing standing there any more, and go on.
            del _around[attention]
            attention.config = _configs.pop(attention)


@contextmanager
def watched(attention: nn.Module, observer: Callable[..., None]) -> Generator[None]:
    """Let `observer(module, query, key, mask, kwargs)` see a module's calls of this thread inside the context."""
    own = threading.get_ident()

    def around(call: Call) -> Any:
        if threading.get_ident() == own:
            observer(call.module, call.query, call.key, call.mask, call.options)
        return call.attend()

    with Patches() as patches:
        stand_around(patches, attention, around)
        yield


def watch(patches: Patches, attention: nn.Module, observer: Callable[..., None]) -> None:
    """Let `observer(module, query, key, mask, kwargs)` see every call of a module, until `patches` are undone."""

    def around(call: Call) -> Any:
        observer(call.module, call.query, call.key, call.mask, call.options)
        return call.attend()

    stand_around(patches, attention, around)


def expect(patches: Patches, attention: nn.Module) -> None:
    """Make a module ready for `watched`, which then changes nothing of it while calls are under way."""
    stand_around(patches, attention, Call.attend)

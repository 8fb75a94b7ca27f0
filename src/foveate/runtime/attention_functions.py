"""Wrappers around the attention function of a module.

Every attention module of `transformers` calls a function that its `config` names, with rotated queries and keys, values
and a mask. A wrapped module has a copy of its config that names a function of ours, which calls
the wrappers, the latest first, and then the function that was named before. All other modules are unchanged.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foveate import compat
from foveate.core.attention import eager_attention, may_attend
from foveate.runtime.patches import Patches

#: Prefix of our attention function's name in a config; the rest is the name of the original function.
PREFIX = "foveate_"

#: A wrapper of an attention function: it gets the call, and `call.attend()` continues it.
AttentionWrapper = Callable[["AttentionCall"], Any]

#: Attribute of a wrapped module that holds its `_Wrapped`.
_WRAPPED = "_foveate_attention"

_lock = threading.RLock()


@dataclass(eq=False)
class _Wrapped:
    """What a module is wrapped with. It is an attribute of the module, because a global table would keep it alive.

    Args:
        config: The module's own config.
        wrappers: The latest first.
    """

    config: Any
    wrappers: tuple[AttentionWrapper, ...] = ()


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention function.

    Args:
        module: The attention module.
        query: (B, H, L, d).
        key: (B, H', K, d), cached ones included.
        value: (B, H', K, d).
        mask: None, (B, K), or (B, 1, L, K) boolean or additive.
        options: The other keyword arguments.
        name: Name of the original attention function.
        inner: The remaining wrappers.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: dict[str, Any]
    name: str
    inner: tuple[AttentionWrapper, ...] = ()

    def attend(self, **changed: Any) -> Any:
        """Continue the call, with some of `query`, `key`, `value` and `mask` changed."""
        if self.inner:
            return self.inner[0](replace(self, **changed, inner=self.inner[1:]))
        call = replace(self, **changed) if changed else self
        function = attention_function(self.module, self.name)
        return function(self.module, call.query, call.key, call.value, call.mask, **self.options)

    def attend_pairs(self, allowed: Tensor) -> Any:
        """Continue the call with a boolean mask `allowed` (B, L, K)."""
        mask = allowed[:, None]
        if "eager" in self.name:
            mask = torch.zeros_like(mask, dtype=self.query.dtype).masked_fill(~mask, torch.finfo(self.query.dtype).min)
        elif "flash" in self.name:  # takes no 4D mask
            return replace(self, name="sdpa").attend(mask=mask)
        return self.attend(mask=mask)

    def allowed(self) -> Tensor:
        """(B, L, K) bool, the keys that each new token may attend to."""
        batch, length, total = len(self.query), self.query.shape[2], self.key.shape[2]
        mask = self.mask
        if mask is not None and mask.ndim == 4:
            return may_attend(mask[:, 0, :, :total]).expand(batch, length, total)
        keys = torch.arange(total, device=self.query.device)
        queries = keys[total - length :, None]
        allowed = keys <= queries
        window = self.options.get("sliding_window")
        if window is not None:
            allowed = allowed & (keys > queries - window)
        if mask is None:
            return allowed.expand(batch, -1, -1)
        return allowed & (mask[:, None, -total:] > 0)

    @property
    def scaling(self) -> float:
        """Scale of the logits."""
        scaling = self.options.get("scaling")
        return self.query.shape[-1] ** -0.5 if scaling is None else float(scaling)


def attention_function(module: nn.Module, name: str) -> Callable[..., Any]:
    """The attention function that a module calls where its config names `name`."""
    if name == "eager":
        module_globals = vars(sys.modules[type(module).__module__])
        return module_globals.get("eager_attention_forward", eager_attention)  # foveate's own encoders share one
    return ALL_ATTENTION_FUNCTIONS[name]


def _dispatcher(name: str) -> Callable[..., Any]:
    """Attention function that dispatches to the registered wrappers."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        wrapped: _Wrapped | None = vars(module).get(_WRAPPED)
        wrappers = () if wrapped is None else wrapped.wrappers
        return AttentionCall(module, query, key, value, attention_mask, kwargs, name, wrappers).attend()

    attend.reads_in_order = True  # ty: ignore[missing-attribute] - otherwise `encoders.attention` groups windows
    return attend


def wrap_attention(patches: Patches, attention: nn.Module, wrapper: AttentionWrapper) -> None:
    """Pass every call of a module's attention function to `wrapper`, until `patches` are undone."""
    with _lock:
        wrapped: _Wrapped | None = vars(attention).get(_WRAPPED)
        if wrapped is None:
            config: Any = attention.config
            name = PREFIX + compat.attention_name(config)
            if name not in ALL_ATTENTION_FUNCTIONS:
                AttentionInterface.register(name, _dispatcher(name.removeprefix(PREFIX)))
            wrapped = vars(attention)[_WRAPPED] = _Wrapped(config)
            attention.config = compat.config_with_attention(config, name)
        wrapped.wrappers = (wrapper, *wrapped.wrappers)
    patches.callback(functools.partial(_unwrap, attention, wrapper))
    patches.exclude_from_copies(attention, functools.partial(_without_wrappers, wrapped.config))


def _without_wrappers(config: Any, state: dict[str, Any]) -> None:
    """Remove the wrappers from a copy of a module's attributes."""
    state["config"] = config
    state.pop(_WRAPPED, None)


def _unwrap(attention: nn.Module, wrapper: AttentionWrapper) -> None:
    with _lock:
        wrapped: _Wrapped = vars(attention)[_WRAPPED]
        remaining = list(wrapped.wrappers)
        remaining.remove(wrapper)
        wrapped.wrappers = tuple(remaining)
        if not remaining:
            # Calls in progress in other threads find no wrapper any more, and continue.
            del vars(attention)[_WRAPPED]
            attention.config = wrapped.config


@contextmanager
def observed_calls(attention: nn.Module, observer: Callable[..., None]) -> Generator[None]:
    """Call `observer(module, query, key, mask, kwargs)` on this thread's calls of a module inside the context."""
    thread = threading.get_ident()

    def wrapper(call: AttentionCall) -> Any:
        if threading.get_ident() == thread:
            observer(call.module, call.query, call.key, call.mask, call.options)
        return call.attend()

    with Patches() as patches:
        wrap_attention(patches, attention, wrapper)
        yield


def observe_attention(patches: Patches, attention: nn.Module, observer: Callable[..., None]) -> None:
    """Call `observer(module, query, key, mask, kwargs)` on every call of a module, until `patches` are undone."""

    def wrapper(call: AttentionCall) -> Any:
        observer(call.module, call.query, call.key, call.mask, call.options)
        return call.attend()

    wrap_attention(patches, attention, wrapper)


def prepare_attention(patches: Patches, attention: nn.Module) -> None:
    """Wrap a module in advance, so that `observed_calls` does not change its config while calls are in progress."""
    wrap_attention(patches, attention, AttentionCall.attend)

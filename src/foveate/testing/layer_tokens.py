"""Random visual tokens before a decoder layer, with queries and keys, for tests without a model."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch

from foveate.core.attention import Attention
from foveate.core.in_decoder import (
    AttentionSource,
    EarlierLayers,
    EncoderResults,
    LayerTokens,
    ModelAccess,
    PromptStates,
)
from foveate.core.tokens import EncoderSpec

#: Of hidden states; heads of queries and of keys, and their width.
WIDTH, HEADS, SHARED, DEPTH = 6, 4, 2, 3


def attention(length: int, seed: int = 0, past: int = 0) -> Attention:
    """Random queries and keys of `length` new tokens after `past` others."""
    generator = torch.Generator().manual_seed(100 + seed)
    query = torch.randn(HEADS, length, DEPTH, generator=generator)
    return Attention(query, torch.randn(SHARED, past + length, DEPTH, generator=generator), DEPTH**-0.5)


def layer_tokens(size: int, before: int = 2, after: int = 4, *, seed: int = 0, layer: int = 1) -> LayerTokens:
    """`size` visual tokens after `before` tokens of text and before `after` ones; norms are left to the hidden states.

    "previous" and "own" are different layers' queries and keys.
    """
    length = before + size + after
    generator = torch.Generator().manual_seed(seed)
    hidden, entered = torch.randn(2, length, WIDTH, generator=generator)
    states: dict[AttentionSource, Attention] = {"previous": attention(length, seed), "own": attention(length, seed + 1)}
    indices = torch.arange(before, before + size)
    text = torch.cat([torch.arange(before), torch.arange(before + size, length)])
    return LayerTokens(
        features=hidden[indices],
        indices=indices,
        layer=layer,
        num_layers=8,
        number=0,
        prompt=PromptStates(
            hidden=hidden,
            text=text,
            asking=torch.tensor([length - 1]),
            entered=entered,
            columns=torch.arange(length),
            image=indices,
        ),
        encoder=EncoderResults(tower=EncoderSpec(12, False), origin=torch.arange(size), measured={}),
        model=ModelAccess(
            ask=lambda source: states[source],
            norm=lambda x: x / x.norm(dim=-1, keepdim=True) * torch.arange(1, WIDTH + 1),
        ),
        earlier=EarlierLayers(made=size, read=(size,) * layer, acted=()),
    )


def changed(tokens: LayerTokens, **changes: Any) -> LayerTokens:
    """Tokens with other values of some fields, those of `prompt`, `encoder` and `model` by their own names."""
    for group in ("prompt", "encoder", "model"):
        part = getattr(tokens, group)
        names = {field.name for field in fields(part)} & changes.keys()
        changes[group] = replace(part, **{name: changes.pop(name) for name in names})
    return replace(tokens, **changes)

"""Attention of the language model's first layer, computed before the language model runs.

Prompt-aware methods may need the attention from text to visual tokens in the first decoder layer
(arXiv 2506.01097). Its queries and keys follow from the embeddings alone: the layer's attention module is called and
interrupted once it has them, and only the rows of the text are computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.runtime.attention_functions import observed_calls


class _CapturedError(Exception):
    """Interrupts an attention module once its queries and keys are captured."""


def queries_and_keys(text: nn.Module, embeds: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, float]:
    """Rotated queries (B, H, L, d) and keys (B, H', L, d) of the first layer, and the scale of the logits.

    Args:
        text: A language model with `layers`, each with `input_layernorm` and `self_attn`, and `rotary_emb`.
        embeds: (B, L, D).
        positions: Position ids of the language model; None: 0 to L - 1.

    Raises:
        FoveateError: the language model has another structure.
    """
    layer: Any = next(iter(getattr(text, "layers", [])), None)
    attention = getattr(layer, "self_attn", None)
    if attention is None or not hasattr(layer, "input_layernorm") or not hasattr(text, "rotary_emb"):
        raise FoveateError(
            f"first-layer attention cannot be computed for a {type(text).__name__}; choose another method."
        )
    if positions is None:
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
    if positions.ndim == 3 and len(positions) == 4:  # `generate` puts those of plain text before the three of M-RoPE
        positions = positions[1:]
    check_not_offloaded(layer)
    rotation = text.rotary_emb(embeds, positions)  # ty: ignore[not-callable]
    with torch.no_grad():
        return rotated_queries_keys(attention, layer.input_layernorm(embeds), rotation)


def check_not_offloaded(layer: nn.Module) -> None:
    """Raise FoveateError unless the submodules of a layer can be called before the layer itself.

    accelerate's hooks load offloaded weights when their module is called: by default the one that
    holds the weights, with `preload_module_classes` one that contains it.
    """
    for module in layer.modules():
        away = any(weight.is_meta for weight in module.parameters(recurse=False))
        if away and not hasattr(module, "_hf_hook"):
            raise FoveateError(
                f"the weights of a {type(layer).__name__} are offloaded and loaded with the whole layer; its attention "
                "cannot be computed before it runs; offload without preload_module_classes."
            )


def rotated_queries_keys(attention: Any, hidden: Tensor, rotation: Any) -> tuple[Tensor, Tensor, float]:
    """Rotated queries (B, H, L, d) and keys (B, H', L, d) of an attention module, and the scale of the logits.

    The module is called without a cache and interrupted once it has them.

    Args:
        attention: The attention module of a decoder layer.
        hidden: (B, L, D), after the layer's input norm.
        rotation: Rotary cosines and sines as the layer gets them.

    Raises:
        FoveateError: the module has another signature.
    """
    captured: list[tuple[Tensor, Tensor, float]] = []

    def observe(module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]) -> None:
        scaling = options.get("scaling")
        captured.append((query, key, query.shape[-1] ** -0.5 if scaling is None else float(scaling)))
        raise _CapturedError

    with observed_calls(attention, observe), torch.no_grad():
        try:
            attention(
                hidden_states=hidden,
                position_embeddings=rotation,
                attention_mask=None,
                **compat.cache_argument(None),
            )
        except _CapturedError:
            return captured[0]
        except TypeError as error:
            raise FoveateError(
                f"the attention of {type(attention).__name__} cannot be computed alone: {error}"
            ) from error
    raise FoveateError(
        f"{type(attention).__name__} calls no attention function; choose a method that needs no attention."
    )

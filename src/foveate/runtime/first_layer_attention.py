"""What the first layer of a language model looks at, before anything of the language model has run.

Methods that choose by the prompt may ask for the attention that text pays to visual tokens in the first decoder layer
(arXiv 2506.01097). Its queries and keys follow from the embeddings alone: the layer's attention module is called and
stopped as soon as it has them, and only the rows of the text are worked out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.runtime.attention_functions import observed_calls


class _CapturedError(Exception):
    """Raised by the observer when it has what it wants."""


def queries_and_keys(text: nn.Module, embeds: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, float]:
    """Rotated queries (B, H, L, d) and keys (B, H', L, d) of the first layer, and the factor of the logits.

    Args:
        text: A language model with `layers`, each with `input_layernorm` and `self_attn`, and `rotary_emb`.
        embeds: (B, L, D).
        positions: As the language model would be given them; None: 0 to L - 1.

    Raises:
        FoveateError: the language model is built otherwise.
    """
    layer: Any = next(iter(getattr(text, "layers", [])), None)
    attention = getattr(layer, "self_attn", None)
    if attention is None or not hasattr(layer, "input_layernorm") or not hasattr(text, "rotary_emb"):
        raise FoveateError(f"the first layer of {type(text).__name__} cannot be asked what it looks at.")
    if positions is None:
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
    if positions.ndim == 3 and len(positions) == 4:  # `generate` puts those of plain text before the three of M-RoPE
        positions = positions[1:]
    check_not_offloaded(layer)
    rotation = text.rotary_emb(embeds, positions)  # ty: ignore[not-callable]
    with torch.no_grad():
        return rotated_queries_keys(attention, layer.input_layernorm(embeds), rotation)


def check_not_offloaded(layer: nn.Module) -> None:
    """Raise FoveateError unless the parts of a layer can be called before the layer itself is.

    Hooks of accelerate bring offloaded weights when the module that they are on is called: by default the one that
    holds the weights, with `preload_module_classes` one around it.
    """
    for module in layer.modules():
        away = any(weight.is_meta for weight in module.parameters(recurse=False))
        if away and not hasattr(module, "_hf_hook"):
            raise FoveateError(
                f"the weights of a {type(layer).__name__} are offloaded and come with the whole layer, which cannot be "
                "asked what it looks at before; offload without preload_module_classes."
            )


def rotated_queries_keys(attention: Any, hidden: Tensor, rotation: Any) -> tuple[Tensor, Tensor, float]:
    """Rotated queries (B, H, L, d) and keys (B, H', L, d) that an attention module makes, and the factor of the logits.

    The module is called and stopped as soon as it has them; no cache sees the call.

    Args:
        attention: The attention module of a decoder layer.
        hidden: (B, L, D), normalised as the layer does it.
        rotation: Rotary positions as the layer is given them.

    Raises:
        FoveateError: the module is built otherwise.
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
            raise FoveateError(f"{type(attention).__name__} cannot be asked what it looks at: {error}") from error
    raise FoveateError(f"{type(attention).__name__} does not look at anything.")

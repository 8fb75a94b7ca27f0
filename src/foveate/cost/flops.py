"""Floating-point operations, counted while a model runs and by a closed formula.

One multiplication with its addition is two operations. Both ways count matrix products and attention only, as
`torch.utils.flop_counter` does: norms, activations, rotations and interpolations are a per cent or less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def linear(rows: int, inputs: int, outputs: int) -> int:
    """A linear layer on `rows` tokens."""
    return 2 * rows * inputs * outputs


def attention(lengths: Iterable[int], width: int) -> int:
    """Scores and weighted sum of full attention within segments of these lengths; `width` over all heads."""
    return sum(4 * length * length * width for length in lengths)


def block(tokens: int, lengths: Iterable[int], width: int, hidden: int, *, gated: bool = False) -> int:
    """A transformer block with as many key heads as query heads: four projections, attention, MLP."""
    return (
        linear(tokens, width, 4 * width)
        + attention(lengths, width)
        + linear(tokens, width, (3 if gated else 2) * hidden)
    )


def content_adaptive_stage(tokens: int, width: int) -> int:
    """A content-adaptive stage on `tokens` tokens: W1a and W2 for each of them, W1b once a window."""
    return linear(tokens, width, 2 * width) + linear(tokens // 4, width, width)


def connector(tokens: int, inputs: int, hidden: int, outputs: int) -> int:
    """A two-layer connector on `tokens` tokens."""
    return linear(tokens, inputs, hidden) + linear(tokens, hidden, outputs)


def prefill(tokens: int, config: Any) -> int:
    """The prompt through a decoder such as Qwen2 and the logits of its last token.

    Attention is counted in full, as the counter does, although half of it is masked.
    """
    width, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    layer = (
        linear(tokens, width, 2 * width + 2 * config.num_key_value_heads * head)
        + attention([tokens], width)
        + linear(tokens, width, 3 * config.intermediate_size)
    )
    return config.num_hidden_layers * layer + linear(1, width, config.vocab_size)


def _fused_attention(query, key, value, *args, **kwargs) -> int:
    batch, heads, length, head_dim = query
    return 2 * batch * heads * length * key[2] * (head_dim + value[3])


# The counter does not know the fused attention of the CPU, and refuses fewer key heads than query heads elsewhere.
_ATTENTION = {
    getattr(torch.ops.aten, name): _fused_attention
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
}


def count(run: Callable[[], object]) -> int:
    """Operations of one run on PyTorch's own kernels, by `torch.utils.flop_counter`."""
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        run()
    return counter.get_total_flops()

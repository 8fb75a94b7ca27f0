"""FLOPs of modules, by a counter while a model runs and in closed form.

One multiplication with its addition is two operations. Both ways count matrix products and attention only, as
`torch.utils.flop_counter` does: norms, activations, rotations and interpolations are a per cent or less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def linear(rows: int, inputs: int, outputs: int) -> int:
    """FLOPs of a linear layer on `rows` tokens."""
    return 2 * rows * inputs * outputs


def attention(lengths: Iterable[int], width: int) -> int:
    """FLOPs of scores and weighted sum in full attention within segments of these lengths; `width` over all heads."""
    return sum(4 * length * length * width for length in lengths)


def block(tokens: int, lengths: Iterable[int], width: int, hidden: int, *, gated: bool = False) -> int:
    """FLOPs of a transformer block without grouped keys: four projections, attention, MLP."""
    return (
        linear(tokens, width, 4 * width)
        + attention(lengths, width)
        + linear(tokens, width, (3 if gated else 2) * hidden)
    )


def content_adaptive_stage(tokens: int, width: int) -> int:
    """FLOPs of a content-adaptive stage on `tokens` tokens: W1a and W2 per token, W1b per window."""
    return linear(tokens, width, 2 * width) + linear(tokens // 4, width, width)


def connector(tokens: int, inputs: int, hidden: int, outputs: int) -> int:
    """FLOPs of a two-layer connector on `tokens` tokens."""
    return linear(tokens, inputs, hidden) + linear(tokens, hidden, outputs)


def prefill(tokens: int, config: Any) -> int:
    """FLOPs of a prompt through a decoder such as Qwen2, with the logits of its last token.

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
    """Count the FLOPs of one run on PyTorch's own kernels with `torch.utils.flop_counter`."""
    return count_modules(run)[0]


def count_modules(run: Callable[[], object]) -> tuple[int, dict[str, int]]:
    """Count the FLOPs of one run as `count` does, in total and of every module by its name."""
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        run()
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return counter.get_total_flops(), by_module

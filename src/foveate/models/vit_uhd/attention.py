"""Self-attention that never crosses the border of an image (or of a window), without a mask.

The packed sequence is cut into runs of equal-length segments; each run is a plain batch for any attention
implementation of `transformers` (eager, SDPA, flex), and flash attention takes all segments at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from foveate.core.attention import eager_attention
from foveate.models.vit_uhd.layout import Layout


@dataclass(frozen=True)
class Segments:
    """Runs of (count, length): `count` consecutive segments of `length` tokens attend to themselves only."""

    runs: tuple[tuple[int, int], ...]

    @classmethod
    def of_images(cls, layout: Layout) -> Segments:
        """One segment an image."""
        return cls(tuple((group.count, group.length) for group in layout.groups))

    @property
    def longest(self) -> int:
        """Length of the longest segment."""
        return max(length for _, length in self.runs)

    @cached_property
    def boundaries(self) -> list[int]:
        """0 and the end of every segment."""
        lengths = [length for count, length in self.runs for _ in range(count)]
        return [0, *accumulate(lengths)]

    @cached_property
    def by_length(self) -> tuple[torch.Tensor, torch.Tensor, Segments] | None:
        """How to bring segments of one length together, None where they are.

        Many images whose windows do not divide them have a few lengths and many runs, and every run is a call of its
        own. Returns (order, back, segments): `x[order]` has `segments`, and `x[order][back]` is x.
        """
        if len(self.runs) == len({length for _, length in self.runs}):
            return None
        starts: dict[int, list[torch.Tensor]] = {}
        first = 0
        for count, length in self.runs:
            starts.setdefault(length, []).append(torch.arange(first, first + count * length))
            first += count * length
        order = torch.cat([tokens for length in starts for tokens in starts[length]])
        runs = tuple((sum(map(len, starts[length])) // length, length) for length in starts)
        return order, torch.argsort(order), Segments(runs)


def window_order(layout: Layout, side: int) -> tuple[torch.Tensor, Segments]:
    """Order tokens so that every `side` x `side` window of every image is consecutive.

    Windows tile each image from its top left corner; the last ones of a row or column may be smaller.

    Returns:
        `(order, segments)`: `x[order]` is the sequence by windows, (L,) long; images stay in their places, so
        that full attention can run on the same sequence.
    """
    order: list[torch.Tensor] = []
    runs: list[tuple[int, int]] = []
    for group in layout.groups:
        image = torch.arange(group.length).view(group.height, group.width)
        windows = [
            window.flatten() for rows in image.split(side, dim=0) for window in rows.split(side, dim=1)
        ]  # a loop over windows of one image, not over tokens; equal images share the result
        windows.sort(key=len, reverse=True)
        one_image = torch.cat(windows)
        for index in range(group.count):
            order.append(one_image + (group.start + index * group.length))
            for window in windows:
                if runs and runs[-1][1] == len(window):
                    runs[-1] = (runs[-1][0] + 1, len(window))
                else:
                    runs.append((1, len(window)))
    return torch.cat(order), Segments(tuple(runs))


def packed_attention(
    block: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments
) -> torch.Tensor:
    """Attention of packed heads, strictly within segments.

    Args:
        block: The module whose `config._attn_implementation`, `scaling`, `attention_dropout` and `training` apply.
        query, key, value: (L, heads, head_dim).
        segments: The segments in order; their lengths sum to L.

    Returns:
        (L, heads * head_dim).
    """
    config: Any = block.config
    implementation = config._attn_implementation
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
    options = {
        "attention_mask": None,
        "scaling": block.scaling,
        "dropout": block.attention_dropout if block.training else 0.0,
        "is_causal": False,
    }
    if is_flash_attention_requested(block.config):
        boundaries = torch.tensor(segments.boundaries, dtype=torch.int32, device=query.device)
        heads = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        lengths = {"max_length_q": segments.longest, "max_length_k": segments.longest}
        edges = {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries}
        return attend(block, *heads, **options, **edges, **lengths)[0].reshape(len(query), -1)

    # What looks on takes its values in the order of the sequence.
    grouped = None if getattr(attend, "reads_in_order", False) else segments.by_length
    if grouped is not None:
        order, back, segments = grouped
        # `index_select`, because the gradient of `tensor[order]` takes ten times as long on a CPU.
        query, key, value = (tensor.index_select(0, order.to(query.device)) for tensor in (query, key, value))
    parts = []
    start = 0
    for count, length in segments.runs:
        stop = start + count * length
        heads = [tensor[start:stop].unflatten(0, (count, length)).transpose(1, 2) for tensor in (query, key, value)]
        if query.device.type == "cpu":
            # The fused kernel reads keys and values once per block of queries: rows that are neighbours in memory
            # make it a tenth faster, the copy costs a hundredth.
            heads = [tensor.contiguous() for tensor in heads]
        parts.append(attend(block, *heads, **options)[0].reshape(stop - start, -1))
        start = stop
    attended = parts[0] if len(parts) == 1 else torch.cat(parts)
    return attended if grouped is None else attended.index_select(0, back.to(attended.device))


__all__ = ["Segments", "packed_attention", "window_order"]

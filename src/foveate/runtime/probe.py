"""Probes that measure what methods need of an encoder, from queries and keys of the layers they name.

No attention matrix is requested: `output_attentions=True` would switch the whole tower to the slow path. A wrapper
around the attention of a probed layer (`foveate.runtime.attention_functions`) reads queries and keys and
computes the requested rows or column sums in blocks. All other layers are unchanged.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.attention import attention_logits, attention_weights, may_attend, weight_blocks
from foveate.core.errors import FoveateError
from foveate.core.tokens import Need
from foveate.runtime.attention_functions import observe_attention
from foveate.runtime.patches import Patches

#: Kinds that are computed from queries and keys; the others are outputs of blocks.
OF_ATTENTION = ("cls_attention", "cls_logits", "received", "hub_attention", "keys")
OF_OUTPUT = ("features", "cls_feature")


class Probe:
    """Records measurements in some layers of an encoder, separately for each thread.

    Args:
        attentions: Attention modules of all blocks of the encoder.
        blocks: The blocks themselves.
        needs: What to measure. Kinds that are not of the encoder are ignored.
        has_cls: Whether the first token of every sequence is [CLS].
    """

    def __init__(
        self, attentions: Sequence[nn.Module], blocks: Sequence[nn.Module], needs: Sequence[Need], has_cls: bool
    ) -> None:
        self.has_cls = has_cls
        self._local = threading.local()
        self._by_layer: dict[int, list[Need]] = {}
        for need in needs:
            if need.kind in OF_ATTENTION + OF_OUTPUT:
                if need.layer is None:
                    raise FoveateError(f"{need} names no layer of the encoder.")
                self._by_layer.setdefault(need.layer, []).append(need)
        self._attentions = attentions
        self._blocks = blocks

    def attach(self, patches: Patches) -> None:
        """Install the hooks, until `patches` are undone."""
        for layer, needs in self._by_layer.items():
            of_attention = [need for need in needs if need.kind in OF_ATTENTION]
            of_output = [need for need in needs if need.kind in OF_OUTPUT]
            if of_attention:
                observe_attention(patches, self._attentions[layer], self._observer(of_attention))
            if of_output:
                patches.after(self._blocks[layer], self._output(of_output))

    @contextmanager
    def encoding(self) -> Generator[dict[Need, list[Tensor]]]:
        """Measurements of this thread while the context is open: for every need one tensor per call, in order.

        Values are (sequences * tokens) for scores and (sequences * tokens, d) for vectors, without [CLS]; one row per
        sequence for `cls_feature`.
        """
        measurements: dict[Need, list[Tensor]] = {}
        self._local.measurements = measurements
        try:
            yield measurements
        finally:
            self._local.measurements = None

    def _observer(self, needs: list[Need]) -> Callable[..., None]:
        def observe(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
            measurements = getattr(self._local, "measurements", None)
            if measurements is None:  # outside of `encoding`, or a checkpointed layer is recomputed
                return
            scaling = kwargs.get("scaling")
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            with torch.no_grad():
                for q, k, m in _sequences(query.detach(), key.detach(), mask, kwargs):
                    for need in needs:
                        value = measure(need, q, k, m, scaling, self.has_cls)
                        measurements.setdefault(need, []).append(value[:, 1 if self.has_cls else 0 :].flatten(0, 1))

        return observe

    def _output(self, needs: list[Need]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            measurements = getattr(self._local, "measurements", None)
            if measurements is None:
                return
            hidden = (output[0] if isinstance(output, tuple) else output).detach()
            hidden = hidden if hidden.ndim == 3 else hidden[None]
            for need in needs:
                if need.kind == "cls_feature":
                    measurements.setdefault(need, []).append(hidden[:, 0])
                else:
                    measurements.setdefault(need, []).append(hidden[:, 1 if self.has_cls else 0 :].flatten(0, 1))

        return hook


def _sequences(
    query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Split queries and keys (B, H, N, d) into sequences, which flash attention packs end to end."""
    edges = kwargs.get("cu_seq_lens_q")
    if edges is None:
        yield query, key, mask
        return
    for start, stop in itertools.pairwise(edges.tolist()):
        yield query[:, :, start:stop], key[:, :, start:stop], None


def measure(need: Need, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, has_cls: bool) -> Tensor:
    """Compute one need from queries and keys (B, H, N, d), float32: (B, N) for scores, (B, N, d) for vectors.

    Args:
        need: Of a kind in `OF_ATTENTION`.
        query: (B, H, N, d), rotated where the encoder rotates.
        key: (B, H or fewer, N, d).
        mask: As for `received_attention`.
        scaling: Scale of the logits.
        has_cls: Whether the first token is [CLS]; without it, attention received is used instead.
    """
    if need.kind == "keys":
        return key.float().mean(dim=1)
    if need.kind == "hub_attention":
        return hub_attention(query, key, mask, scaling, need.threshold)
    if need.kind == "received" or not has_cls:
        return received_attention(query, key, mask, scaling)
    if need.kind == "cls_logits":
        return attention_logits(query[:, :, :1], key, scaling)[:, :, 0].mean(dim=1)
    row = _rows_of(mask, torch.zeros(1, dtype=torch.int64, device=query.device))
    return attention_weights(query[:, :, :1], key, scaling, row)[:, :, 0].mean(dim=1)


def _rows_of(mask: Tensor | None, rows: Tensor) -> Tensor | None:
    """The rows of a mask that are those of some queries; a mask with one row is that of all."""
    return mask if mask is None or mask.shape[-2] == 1 else mask[:, :, rows]


def _present(mask: Tensor) -> Tensor:
    """Tokens (B, N) that may see themselves: all but padding."""
    visible = mask[..., 0, :] if mask.shape[-2] == 1 else mask.diagonal(dim1=-2, dim2=-1)
    return may_attend(visible).any(dim=1)


def received_attention(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attention that every token receives, averaged over heads and over the queries that may see it.

    Computed in blocks of queries, so that memory stays bounded.

    Args:
        query: (B, H, N, d).
        key: (B, H or fewer, N, d).
        mask: Broadcasts to (B, H, N, N), bool (True: may see) or added; None: all see all.
        scaling: Scale of the logits.

    Returns:
        (B, N) float32.
    """
    batch, heads, count, _ = query.shape
    total = torch.zeros(batch, count, dtype=torch.float32, device=query.device)
    present = None if mask is None else _present(mask)
    num_queries = torch.zeros_like(total)
    rows = torch.arange(count, device=query.device)
    for some, weights in weight_blocks(query, key, scaling, rows, partial(_rows_of, mask)):
        if present is not None:
            # Rows of padding, which nobody may see, ask nothing; some towers let them.
            weights = weights.nan_to_num() * present[:, None, some, None]
            num_queries += (weights > 0).any(dim=1).sum(dim=1)
        total += weights.sum(dim=(1, 2)) / heads
    return total / count if mask is None else total / num_queries.clamp(min=1)


def hub_attention(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, threshold: float) -> Tensor:
    """Attention that hubs pay to every token, averaged over heads and over the hubs that may see it.

    Hubs are the tokens that receive more than `threshold` times the mean of what their sequence receives; where none
    does, the one that receives most. Only the rows of hubs are worked out once more.

    Args:
        query: (B, H, N, d).
        key: (B, H or fewer, N, d).
        mask: Broadcasts to (B, H, N, N), bool (True: may see) or added; None: all see all.
        scaling: Scale of the logits.
        threshold: From 0 on.

    Returns:
        (B, N) float32.
    """
    received = received_attention(query, key, mask, scaling)
    heads, scores = query.shape[1], []
    for number, sequence_received in enumerate(received):
        sequence_mask = None if mask is None else mask[number % len(mask)][None]
        present = (
            torch.ones_like(sequence_received, dtype=torch.bool)
            if sequence_mask is None
            else _present(sequence_mask)[0]
        )
        if (
            sequence_mask is not None and sequence_mask.shape[-2] > 1
        ):  # several images in one sequence, each sees itself
            allowed = _visible(sequence_mask) & present & present[:, None]
        else:
            allowed = present[None]
        mean = (allowed.float() @ sequence_received) / allowed.sum(dim=1).clamp(min=1)
        hubs = present & (sequence_received > threshold * mean)
        no_hub = allowed.any(dim=1) & ~(allowed & hubs).any(dim=1)
        best = sequence_received.masked_fill(~allowed, -1).argmax(dim=1)[no_hub]
        hubs = hubs.index_fill(0, best, True)
        total = torch.zeros_like(sequence_received)
        rows = hubs.nonzero().flatten()
        sequence = slice(number, number + 1)
        for _, weights in weight_blocks(
            query[sequence], key[sequence], scaling, rows, partial(_rows_of, sequence_mask)
        ):
            total += weights.sum(dim=(0, 1, 2)) / heads
        num_hubs = (
            allowed[rows].sum(dim=0) if len(allowed) > 1 else torch.tensor(len(rows), device=sequence_received.device)
        )
        scores.append(total / num_hubs.clamp(min=1))
    return torch.stack(scores)


def _visible(mask: Tensor) -> Tensor:
    """(N, N) which tokens may see which, from the mask (1, H, N, N) of one sequence."""
    return may_attend(mask)[0].any(dim=0)

"""Virtual unmerging: a language model computes on merged tokens and attends as if they were not merged.

The second half of DyMU, arXiv 2504.17040. Let g map each of the N positions of the sequence to one of its U rows:
patches that were merged share a row, everything else has its own. Projections and MLP run on U rows; attention runs on
N positions, with their own rotary phases:

    q_full = q[g], k_full = k[g], v_full = v[g]         rotary positions 0 .. N - 1
    o_full = softmax(q_full k_full^T + causal) v_full
    o_u    = mean of o_full[n] over all n with g(n) = u  ( = (M^T M)^-1 M^T o_full, M the N x U matrix of g)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.tokens import wide


def expand(x: Tensor, group: Tensor) -> Tensor:
    """Rows (B, U, d) at full length (B, N, d), each position having the row it is in.

    Args:
        x: (B, U, d).
        group: (B, N) int64.
    """
    return x.gather(1, group[..., None].expand(-1, -1, x.shape[-1]))


def group_mean(x: Tensor, group: Tensor, rows: int) -> Tensor:
    """Positions (B, N, d) as rows (B, U, d), each the mean of its members; 0 where a row has none."""
    batch, _, width = x.shape
    place = (group + rows * torch.arange(batch, device=group.device)[:, None]).flatten()
    mass = wide(x.flatten(0, 1))
    number = mass.new_zeros(batch * rows, 1).index_add_(0, place, mass.new_ones(len(place), 1))
    total = mass.new_zeros(batch * rows, width).index_add_(0, place, mass)
    return (total / number.clamp(min=1)).view(batch, rows, width).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (halves rotated, as in Llama) of x (B, H, N, d) with cos and sin (B, N, d)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def virtual_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    group: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of merged rows at the original positions.

    Args:
        q: (B, H, U, d), before rotary positions.
        k: (B, H', U, d), H a multiple of H' (grouped queries).
        v: (B, H', U, d).
        group: (B, N) int64, the row of every position.
        cos: (B, N, d) of the original positions.
        sin: Likewise.
        mask: Added to the logits, (B or 1, 1, N, N). None: causal.
        scale: Of the logits; None: 1 / sqrt(d).

    Returns:
        (B, H, U, d). Equal to full-length attention followed by the mean of each group where the rows were equal
        before merging. The authors' other form of the logits, from dot and cross products on U x U rows, is the same
        number and needs d / 2 times its memory.
    """
    rows = q.shape[2]

    def full(x: Tensor) -> Tensor:
        return x.gather(2, group[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

    out = F.scaled_dot_product_attention(
        rotate(full(q), cos, sin),
        rotate(full(k), cos, sin),
        full(v),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    batch, heads, _, width = out.shape
    mean = group_mean(out.flatten(0, 1), group.repeat_interleave(heads, dim=0), rows)
    return mean.view(batch, heads, rows, width)


def sequence_groups(image: Tensor, assignments: Sequence[Tensor]) -> Tensor:
    """The row of every position of sequences whose images were merged; everything else keeps a row of its own.

    Rows are numbered by their first position, so that they ascend as the sequence does.

    Args:
        image: (B, N) bool, positions that hold patches, image after image in the order of the sequences.
        assignments: For each image (n,) int64, of every patch the merged token it is in (`Selection.assignment`).

    Returns:
        (B, N) int64.

    Raises:
        FoveateError: the images do not fill the places for them.
    """
    patches = int(image.sum())
    if sum(len(assignment) for assignment in assignments) != patches:
        have = sum(len(assignment) for assignment in assignments)
        raise FoveateError(f"{patches} places for patches, and images of {have}.")
    batch, count = image.shape
    # A label for every position that no other group has: its own place, or, counted on from there, its merged token.
    label = torch.arange(batch * count, device=image.device).view(batch, count)
    start, merged = batch * count, []
    for assignment in assignments:
        merged.append(assignment.to(image.device) + start)
        start += len(assignment)
    if merged:
        label = label.masked_scatter(image, torch.cat(merged))
    first = torch.full((batch, start), count, dtype=torch.int64, device=image.device)
    position = torch.arange(count, device=image.device).expand(batch, count)
    first = first.scatter_reduce_(1, label, position, "amin").gather(1, label)  # (B, N) first position of the group
    new = (first == position).long().cumsum(dim=1) - 1
    return new.gather(1, first)

"""PPE: merged tokens that keep several positions, and the rotary maths for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.pre_llm import PreLLMMethod, divide
from foveate.core.tokens import Crop, Selection, VisualTokens, merge_tokens, wide
from foveate.methods.shared.clustering import density_peaks

#: Most members of a merged token: a rotary embedding has fewer channels to share out.
MOST_MEMBERS = 1024


@dataclass(frozen=True)
class PPE(PreLLMMethod):
    """Merges tokens by density-peak clustering; a merged token keeps the positions of up to K members.

    Clusters are those of DPC-kNN: with d_ij the Euclidean distance over sqrt(D), the density of a token is rho_i =
    exp(-mean of d_ij^2 over its k nearest, itself included), its distance delta_i the least d_ij to a denser token (the
    greatest distance of all where there is none), and the `count` greatest rho_i delta_i are centres. Every token joins
    its nearest centre, and a cluster becomes its plain mean. Rotary half-dimensions of every axis are divided among
    `members` of the cluster (Positional Preservation Embedding, arXiv 2510.22936), listed in `Selection.positions`
    (count, members), wrapping around where a cluster is smaller. See `rotary_ids` for how a model must use them; a
    model that ignores them reads the position of the first member.

    Clips are clustered frame by frame, tiled images crop by crop. With `events` a clip is merged over time too, as in
    the paper where it is switched on (a sixteenth): the means of the frames are clustered into ceil(events * frames)
    events, every frame is merged to the share r of its tokens, and the rows of the frames of one event are merged once
    more, to the share r; r is the square root of the budget, which is met exactly. A row that is merged again carries
    the positions of its first part. The paper also merges inside the language model: `ppe:45% + ppe-decoder:45%` is its
    cascade.

    All tokens weigh one, so of "the K of greatest weight" the first in raster order count. Of equal densities the
    earlier token counts as the denser; the authors add random noise of 1e-6. Of equally near centres the one of greater
    rho_i delta_i wins, as in their code. Distances need a matrix of tokens x tokens, by definition.

    Args:
        members: K, positions that a merged token carries.
        neighbours: k of the density.
        reference: Members in the order of the authors' code, the last of a cluster first (if sorts are stable), and its
            k = min(3, max(count // 2, 1)) where k exceeds the number of clusters.
        events: Share of a clip's frames that are events, above 0 up to 1; the paper's is 0.0625. 0: nothing is merged
            over time.
    """

    members: int = 8
    neighbours: int = 5
    reference: bool = False
    events: float = 0.0

    name: ClassVar[str] = "ppe"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = "Positional Preservation Embedding for Multimodal Large Language Models"
    paper: ClassVar[str] = "arXiv 2510.22936"
    positions: ClassVar = "original"

    def __post_init__(self) -> None:
        if not 1 <= self.members <= MOST_MEMBERS:  # positions are written out for every merged token
            raise FoveateError(f"ppe: members is between 1 and {MOST_MEMBERS}, not {self.members}.")
        if self.neighbours < 1:
            raise FoveateError(f"ppe: neighbours must be at least 1, not {self.neighbours}.")
        if not 0 <= self.events <= 1:
            raise FoveateError(f"ppe: events is a share of the frames, 0 to 1, not {self.events}.")
        if self.events:
            object.__setattr__(self, "handles_tiles", True)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        if len(tokens.crops) > 1:
            frames = [crop for crop in tokens.crops if crop.kind == "frame" and len(crop.present)]
            return self._over_time(tokens, frames, count) if len(frames) > 1 else self._by_crop(tokens, count)
        labels, members = clustered(tokens.features, count, self.members, self.neighbours, reference=self.reference)
        order = members[:, 0].argsort()
        rank = torch.empty_like(order)
        rank[order] = torch.arange(count, device=order.device)
        merged = merge_tokens(tokens.features, members[order, 0], rank[labels])
        return Selection(merged.indices, merged.features, merged.assignment, merged.weights, members[order])

    def _over_time(self, tokens: VisualTokens, frames: list[Crop], count: int) -> Selection:
        """Rows of every frame, and rows of those within every event."""
        share = (count / sum(len(frame.present) for frame in frames)) ** 0.5
        rows = [min(len(frame.present), math.ceil(share * len(frame.present))) for frame in frames]
        first = self._by_crop(tokens, max(sum(rows), count))
        placed = tokens.take(first)
        parts = [crop.present for crop in placed.crops if len(crop.present)]
        means = torch.stack([wide(placed.features[part]).mean(dim=0) for part in parts])
        number = max(1, share_of(self.events, len(parts), "up"))
        event, _ = clustered(means, number, 1, self.neighbours, reference=self.reference)
        groups = [
            torch.cat([parts[n] for n in (event == index).nonzero().flatten().tolist()]) for index in range(number)
        ]
        firsts, label = [], torch.full((len(first),), -1, dtype=torch.int64, device=tokens.device)
        for group, row_count in zip(groups, divide(count, [len(group) for group in groups]), strict=True):
            if row_count:
                labels, members = clustered(
                    placed.features[group], row_count, 1, self.neighbours, reference=self.reference
                )
                label[group] = labels + sum(map(len, firsts))
                firsts.append(group[members[:, 0]])
        order = torch.cat(firsts).argsort()
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        assignment = torch.where(label >= 0, rank[label.clamp(min=0)], -1)
        second = merge_tokens(placed.features, torch.cat(firsts)[order], assignment)
        positions = first.positions
        if positions is None:
            positions = first.indices[:, None].expand(-1, self.members)
        return replace(first.then(second, len(tokens)), positions=positions[second.indices])


def clustered(
    x: Tensor, count: int, members: int, neighbours: int, *, reference: bool = False
) -> tuple[Tensor, Tensor]:
    """(N,) cluster labels of the tokens, and (count, members) the members whose positions each cluster carries.

    Args:
        x: (N, D).
        count: Clusters, at most N.
        members: K.
        neighbours: k of the density.
        reference: As in the authors' code; see `PPE`.
    """
    if reference and neighbours > count:
        neighbours = min(3, max(count // 2, 1))
    _, labels = density_peaks(x, count, neighbours)
    return labels, cluster_members(labels, count, members, last_first=reference)


def cluster_members(labels: Tensor, count: int, members: int, *, last_first: bool = False) -> Tensor:
    """Up to `members` members of every cluster, repeated from the first where there are fewer: (count, carried).

    Args:
        labels: (N,) clusters 0 to count - 1, each used.
        count: Clusters.
        members: K.
        last_first: Members in descending instead of ascending order.
    """
    order = labels.argsort(stable=True)
    sizes = labels.bincount(minlength=count)
    step = torch.arange(members, device=labels.device) % sizes[:, None]
    ends = sizes.cumsum(0)[:, None]
    return order[ends - 1 - step if last_first else ends - sizes[:, None] + step]


def rotary_axes(sections: Sequence[int], *, interleaved: bool = False) -> Tensor:
    """The position axis of every rotary half-dimension: (sum of sections,).

    Args:
        sections: Half-dimensions of each axis: (16, 24, 24) in Qwen2-VL; (head_dim / 2,) for rotation with one axis.
        interleaved: Axes take turns, t h w t h w ... t t, as in Qwen3-VL; otherwise one axis follows the other.
    """
    if not sections or any(size < 1 for size in sections):
        raise FoveateError(f"rotary sections are numbers of half-dimensions, at least 1 each, not {tuple(sections)}.")
    if not interleaved:
        return torch.arange(len(sections)).repeat_interleave(torch.tensor(sections))
    axes = torch.zeros(sum(sections), dtype=torch.int64)
    for axis, size in list(enumerate(sections))[1:]:
        slots = axis + len(sections) * torch.arange(size)
        if int(slots[-1]) >= len(axes):
            raise FoveateError(f"sections {tuple(sections)} cannot take turns: the first one is too short.")
        axes[slots] = axis
    return axes


def rotary_members(sections: Sequence[int], members: int, *, interleaved: bool = False) -> Tensor:
    """Which of K members rotates each half-dimension: (sum of sections,), 0 to K - 1.

    Each section is cut into K equal stretches, one a member. Where K does not divide every section, the finest split
    is used: stretches of one half-dimension, members taking turns within a section. (The authors' code takes turns
    over all sections at once there, which also changes the axis of a half-dimension, so that even unmerged tokens are
    rotated otherwise than before.)
    """
    axes = rotary_axes(sections, interleaved=interleaved)
    of_axis = (axes[:, None] == torch.arange(len(sections))).long()
    number = (of_axis.cumsum(0) - 1).gather(1, axes[:, None]).flatten()  # within the section
    if any(size % members for size in sections):
        return number % members
    return number // (torch.tensor(sections) // members)[axes]


def rotary_ids(
    position_ids: Tensor, positions: Tensor, sections: Sequence[int], *, interleaved: bool = False
) -> Tensor:
    """The position id that rotates every rotary half-dimension of every kept token: (k, half).

    With a_j the axis of half-dimension j (`rotary_axes`) and m_j its member (`rotary_members`), the id is
    position_ids[a_j, positions[i, m_j]]. K = 1, and a cluster of one token for any K, give exactly the ordinary ids.

    To apply it, compute position embeddings of the sequence as usual; then, in the columns of merged tokens, replace
    cos and sin by those of the angles `rotary_angles(ids, inv_freq)`, (k, half), before the model spreads
    half-dimensions over the head: cat(angles, angles) in Llama- and Qwen-type models, repeat_interleave(2) in GLM-type
    ones, times the rotation's `attention_scaling`. `inv_freq` is the model's own, in float32. Text and unmerged tokens
    need no change. Keys are cached after rotation, so decoding needs none either; the next position is that of the
    ordinary ids.

    Args:
        position_ids: (axes, N) or, for one axis, (N,): ids of the tokens of the image before merging.
        positions: (k, K) of `Selection.positions`.
        sections: Half-dimensions of each axis; (head_dim / 2,) where there is one.
        interleaved: Whether axes alternate.

    Raises:
        FoveateError: there are not as many sections as axes.
    """
    ids = position_ids[None] if position_ids.ndim == 1 else position_ids
    if len(ids) != len(sections):
        raise FoveateError(f"position ids of {len(ids)} axes do not fit {len(sections)} rotary sections.")
    axes = rotary_axes(sections, interleaved=interleaved).to(ids.device)
    members = rotary_members(sections, positions.shape[1], interleaved=interleaved).to(ids.device)
    return ids[axes, positions[:, members]]


def rotary_angles(ids: Tensor, inv_freq: Tensor) -> Tensor:
    """Angles (k, half) in float32 of ids (k, half) and the model's inverse frequencies (half,)."""
    return ids.float() * inv_freq.float()

"""PruneVid: static places of a segment of frames become one token, and similar tokens are merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.method import BudgetRule
from foveate.core.pre_llm import divide
from foveate.core.tokens import Selection, VisualTokens, merge_tokens
from foveate.core.video import VideoMethod
from foveate.methods.shared.clustering import density_peaks

#: Neighbours of the density, and tokens up to which a group is not clustered, as in the authors' code.
NEIGHBOURS, SMALLEST = 7, 14


@dataclass(frozen=True)
class PruneVid(VideoMethod):
    """Merges what does not move over the frames of a segment, and then similar tokens within a frame.

    The mean tokens of the frames are clustered (DPC-kNN) into T * `segments` clusters. Of a cluster the longest run of
    frames is a segment; shorter runs go to the longer of the segments next to them. A place is static in a segment if
    the mean cosine of its tokens over all pairs of frames is above `threshold`: its tokens become their mean. The
    static tokens of a segment, and the others of each frame, are then clustered into `clusters` times as many, and a
    cluster becomes its mean; groups of up to 14 tokens stay (PruneVid, arXiv 2412.16117, first stage; the whole of it
    is `prunevid + prunevid-decoder:40%`).

    A budget is met exactly: groups are clustered to their shares of it. If it is more than static places leave, those
    of the highest cosines alone are merged.

    The authors' code hands on the static tokens of a segment before the others; here all are in the order of frames and
    rows, a static one in the first frame of its segment, at the centre of its cluster. Of equal densities the first
    token counts as denser; the authors add noise of 1e-6.

    Args:
        segments: Clusters of frames, as a share of the frames.
        threshold: Mean cosine above which a place is static.
        clusters: Without a budget: share of the tokens of a group that stays.
    """

    segments: float = 0.25
    threshold: float = 0.8
    clusters: float = 0.5

    name: ClassVar[str] = "prunevid"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = "PruneVid: Visual Token Pruning for Efficient Video Large Language Models"
    paper: ClassVar[str] = "arXiv 2412.16117"
    static_count: ClassVar[bool] = False
    budget: ClassVar[BudgetRule] = "optional"
    without_budget: ClassVar = ("clusters",)

    def __post_init__(self) -> None:
        if not (0 < self.segments <= 1 and 0 < self.clusters <= 1):
            raise FoveateError("prunevid: segments and clusters are shares, above 0 up to 1.")

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `VideoMethod.select`."""
        place, frames = tokens.frame_indices, tokens.frames.float()
        number = max(1, share_of(self.segments, len(frames), "down"))
        _, labels = density_peaks(frames.mean(dim=1), number, NEIGHBOURS)
        lengths = segment_lengths(labels.tolist())
        static = self._static(F.normalize(frames, dim=-1), lengths, count)
        groups = list(_groups(static, lengths))
        sizes = [len(places) for _, _, places in groups]
        if count:
            shares = divide(count, sizes)
        else:
            shares = [size if size <= SMALLEST else share_of(self.clusters, size, "down") for size in sizes]
        indices, row = [], torch.full_like(place, -1)
        for (start, stop, places), share in zip(groups, shares, strict=True):
            if not share:
                continue
            centres = members = torch.arange(len(places), device=tokens.device)
            if share < len(places):
                x = frames[start:stop, places].mean(dim=0)
                centres, members = density_peaks(x, share, NEIGHBOURS)
            row[start:stop, places] = sum(map(len, indices)) + members
            indices.append(place[start, places[centres]])
        order = torch.cat(indices).argsort()
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        assignment = torch.full((len(tokens),), -1, dtype=torch.int64, device=tokens.device)
        assignment[place] = torch.where(row >= 0, rank[row.clamp(min=0)], -1)
        return merge_tokens(tokens.features, torch.cat(indices)[order], assignment)

    def _static(self, unit: Tensor, lengths: Sequence[int], count: int) -> Tensor:
        """(segments, N) bool, the places whose tokens become one; with a budget no more than leave `count` tokens."""
        size = torch.tensor(lengths, device=unit.device)[:, None]
        sums = torch.stack([frames.sum(dim=0) for frames in unit.split(list(lengths))])
        cosine = (sums.square().sum(dim=-1) - size) / (size * (size - 1)).clamp(min=1)
        static = (cosine > self.threshold) & (size > 1)
        if not count:
            return static
        order = torch.where(static, cosine, -torch.inf).flatten().argsort(descending=True, stable=True)
        saved = (static * (size - 1)).flatten()[order].cumsum(dim=0)
        allowed = torch.zeros_like(order, dtype=torch.bool)
        allowed[order] = saved <= unit.shape[0] * unit.shape[1] - count
        return static & allowed.view_as(static)


def segment_lengths(labels: Sequence[int]) -> list[int]:
    """Numbers of frames of the segments, from the cluster of every frame.

    The longest runs of a cluster are segments, if they have two frames at least. The frames between are appended to
    the longer of the segments before and behind them, of equal ones to that before.
    """
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    longest = {label: max(size for other, size in runs if other == label) for label, _ in runs}
    kept = [(label if size == longest[label] > 1 else None, size) for label, size in runs]
    merged = [(label, sum(size for _, size in run)) for label, run in groupby(kept, key=lambda run: run[0])]
    segments: list[list[int]] = []  # cluster and size
    for position, (label, size) in enumerate(merged):
        if label is None:
            before = segments[-1] if segments else None
            behind = merged[position + 1] if position + 1 < len(merged) else None
            if before is not None and (behind is None or before[1] >= behind[1]):
                label = before[0]
            else:
                label = 0 if behind is None else behind[0]
        if segments and segments[-1][0] == label:
            segments[-1][1] += size
        else:
            segments.append([label, size])  # ty: ignore[invalid-argument-type]
    return [size for _, size in segments]


def _groups(static: Tensor, lengths: Sequence[int]) -> Iterator[tuple[int, int, Tensor]]:
    """First frame, the one behind the last, and the places of tokens that are merged with each other, if any."""
    for places, start, length in zip(static, accumulate([0, *lengths]), lengths, strict=False):
        if len(still := places.nonzero().flatten()):
            yield start, start + length, still
        if len(moving := (~places).nonzero().flatten()):
            yield from ((frame, frame + 1, moving) for frame in range(start, start + length))

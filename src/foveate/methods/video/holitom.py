"""HoliTom: static tokens of windows of frames are merged, and attended tokens of every frame stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.pre_llm import divide
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens, merge_tokens, ranked
from foveate.core.video import VideoMethod
from foveate.methods.shared.clustering import density_peaks

#: Neighbours of the density.
NEIGHBOURS = 7


@dataclass(frozen=True)
class HoliTom(VideoMethod):
    """Merges what is static over windows of frames, chosen to save the most tokens, and keeps attended other tokens.

    A place is static in a window of frames if the cosine of its tokens is above `threshold` from every frame to the
    next; its tokens become their mean. Of all divisions of the clip into windows that with the most tokens saved is
    taken, by dynamic programming. The static tokens of a window, and the others of each of its frames, then get their
    share of the budget: static ones are clustered (DPC-kNN), and a cluster of centre c and other tokens with mean m
    becomes beta * c + (1 - beta) * m; of the others the most attended stay, and the part `context` of the share goes to
    clusters of the rest (HoliTom, arXiv 2505.21334, before the language model; the whole of it, which also merges in a
    layer of the language model, is `holitom:25% + holitom-decoder:50%`).

    The authors' code rounds the shares of static tokens, and those of the others up; here the budget is met exactly.
    If it is more than merging over time leaves, the static tokens of the lowest cosines stay by themselves. It hands on
    the static tokens of a window before the others; here all are in the order of frames and rows, a static one in the
    first frame of its window. Its context is 0, and above that it ends in an error by the shape of a mask. Attention is
    that of [CLS], or without one the attention received, as in the code for SigLIP. Of equal tokens the first wins; the
    authors add noise of 1e-6 to densities.

    Args:
        threshold: Cosine above which a token is static.
        context: Part of the tokens that are not static that clusters get.
        beta: Weight of the centre of a cluster.
        window: Most frames of a window.
        layer: Encoder block whose attention counts, 0-based or from the end; None: the one whose output is used.
    """

    threshold: float = 0.8
    context: float = 0.0
    beta: float = 0.6
    window: int = 1024
    layer: int | None = None

    name: ClassVar[str] = "holitom"
    mechanism: ClassVar = ("similarity", "attention")
    title: ClassVar[str] = "HoliTom: Holistic Token Merging for Fast Video Large Language Models"
    paper: ClassVar[str] = "arXiv 2505.21334"

    def __post_init__(self) -> None:
        if not (0 <= self.context <= 1 and 0 <= self.beta <= 1):
            raise FoveateError("holitom: context and beta are shares, 0 to 1.")
        if self.window < 1:
            raise FoveateError(f"holitom: window is a number of frames, 1 or more, not {self.window}.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The [CLS] row, or attention received."""
        return (Need("cls_attention", tower.layer(self.layer), substitute=True),)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `VideoMethod.select`."""
        place, frames = tokens.frame_indices, tokens.frames.float()
        attention = tokens.get(*self.needs(tokens.tower))[place]
        cosine = F.cosine_similarity(frames[:-1], frames[1:], dim=-1)
        same = cosine > self.threshold
        groups = list(_groups(same, static_windows(same, self.window)))
        sizes = [len(places) for _, _, places in groups]
        row = torch.full_like(place, -1)
        weight = frames.new_zeros(place.shape)
        indices: list[Tensor] = []
        first = 0
        for (start, stop, places), share in zip(groups, divide(count, sizes), strict=True):
            if not share:
                continue
            if stop - start > 1:
                kept, members, shares = self._merged(frames[start:stop, places].mean(dim=0), share)
            else:
                kept, members, shares = self._attended(frames[start, places], attention[start, places], share)
            row[start:stop, places] = torch.where(members >= 0, members + first, -1)
            weight[start:stop, places] = shares / (stop - start)
            indices.append(place[start, places[kept]])
            first += share
        if first < count:  # static tokens of which there is another in the frame before
            again = torch.zeros_like(same)
            for start, stop, places in groups:
                again[start : stop - 1, places] = True
            alone = ranked((-cosine).masked_fill(~again, -torch.inf).flatten(), count - first)
            alone = alone + place.shape[1]  # the later frame of the two
            row.view(-1)[alone] = torch.arange(first, count, device=row.device)
            weight.view(-1)[alone] = 1.0
            indices.append(place.flatten()[alone])
        centres, order = torch.cat(indices).sort()
        rank = order.argsort()
        assignment = torch.full((len(tokens),), -1, dtype=torch.int64, device=tokens.device)
        assignment[place] = torch.where(row >= 0, rank[row.clamp(min=0)], -1)
        weights = weight.new_zeros(len(tokens)).index_put_((place,), weight)
        return merge_tokens(tokens.features, centres, assignment, weights)

    def _merged(self, x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clusters of tokens (n, D): their centres (count,), the cluster of every token, and its share in it."""
        centres, labels = density_peaks(x, count, min(NEIGHBOURS, count))
        others = labels.bincount(minlength=count) - 1
        shares = ((1 - self.beta) / others.clamp(min=1))[labels]
        shares[centres] = torch.where(others > 0, self.beta, 1.0)
        return centres, labels, shares

    def _attended(self, x: Tensor, attention: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The most attended of tokens (n, D), and clusters of the others, as `_merged`; -1: a token that goes."""
        number = share_of(1 - self.context, count)
        order = attention.argsort(descending=True, stable=True)
        taken, rest = order[:number], order[number:].sort().values
        labels = torch.full_like(order, -1)
        labels[taken] = torch.arange(number, device=order.device)
        shares = torch.zeros_like(attention, dtype=x.dtype)
        shares[taken] = 1.0
        if number == count:
            return taken, labels, shares
        centres, members, own = self._merged(x[rest], count - number)
        labels[rest], shares[rest] = members + number, own
        return torch.cat([taken, rest[centres]]), labels, shares


def static_windows(same: Tensor, longest: int) -> list[tuple[int, int]]:
    """First frame of every window, and the one behind its last, where the most tokens are static.

    Args:
        same: (T - 1, N) whether a token is like that at its place in the next frame.
        longest: Most frames of a window.
    """
    number = len(same) + 1
    saved = []  # by first frame: tokens that windows of 2, 3, ... frames save
    for start in range(number - 1):
        static = same[start : start + longest - 1].cummin(dim=0).values.sum(dim=1)
        saved.append((static * torch.arange(1, len(static) + 1, device=same.device)).tolist())
    best, begins = [0], []
    for frame in range(number):
        most, begin = best[frame], frame
        for start in range(frame - 1, max(frame - longest, -1), -1):
            if (total := best[start] + saved[start][frame - start - 1]) > most:
                most, begin = total, start
        best.append(most)
        begins.append(begin)
    windows, stop = [], number
    while stop:
        windows.append((begins[stop - 1], stop))
        stop = begins[stop - 1]
    return windows[::-1]


def _groups(same: Tensor, windows: list[tuple[int, int]]) -> Iterator[tuple[int, int, Tensor]]:
    """First frame, the one behind the last, and the places of tokens that get a share together, if any."""
    size = same.shape[1]
    for start, stop in windows:
        static = same[start : stop - 1].all(dim=0) if stop - start > 1 else same.new_zeros(size)
        if len(still := static.nonzero().flatten()):
            yield start, stop, still
        if len(moving := (~static).nonzero().flatten()):
            yield from ((frame, frame + 1, moving) for frame in range(start, stop))

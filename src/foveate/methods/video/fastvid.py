"""FastVID: attended tokens of every frame, and dense tokens of some into which those of their segment are merged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.pre_llm import divide
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens, ranked, wide
from foveate.core.video import VideoMethod
from foveate.methods.shared.clustering import distances, peak_scores


class Merge(NamedTuple):
    """Tokens of the anchor frames of a segment, into which the others of the segment are merged.

    Args:
        sources: (n,) indices of the others.
        targets: (c,) indices of the tokens of every anchor frame.
        labels: (n,) which of the c of an anchor frame each goes into; c: into none.
    """

    sources: Tensor
    targets: list[Tensor]
    labels: list[Tensor]

    def rows(self, x: Tensor, least: float) -> Tensor:
        """Targets of x (N, D), averaged with the mean of what goes into them.

        Of n tokens, the target itself weighs max(1 / (n + 1), least).
        """
        sources, rows = x[self.sources], []
        for targets, labels in zip(self.targets, self.labels, strict=True):
            member = (labels == torch.arange(len(targets), device=x.device)[:, None]).to(x.dtype)
            size = member.sum(dim=1, keepdim=True)
            own = (1 / (size + 1)).clamp(min=least)
            rows.append(own * x[targets] + (1 - own) * (member @ sources) / size.clamp(min=1))
        return torch.cat(rows)


@dataclass(frozen=True)
class FastVID(VideoMethod):
    """Keeps attended tokens of every frame, and merges the others of a segment of frames into dense ones.

    Frames are cut into segments where the cosine of the mean tokens of neighbours is below `threshold`, and at the
    `segments` - 1 least. Of the budget of a segment, its share of `count`, the part 1 - `context` goes to its frames
    equally: their most attended tokens. The rest goes to anchor frames, the last of the segment and every
    `interval`-th before it: the tokens with the greatest density times distance to what is denser (DPC with 4
    neighbours) among those that are not taken yet. Into them the other tokens of the segment are merged, each into the
    most similar one of every anchor frame: a = own * a + (1 - own) * mean, own = max(1 / (n + 1), beta) (FastVID, arXiv
    2503.11187). Original positions.

    As in the authors' code for LLaVA-Video; that for LLaVA-OneVision counts a token among those that are merged into
    it. There, attention and features of frames are those of SigLIP's pooling head, which these models do not load:
    here, as in the code for Qwen2.5-VL, features are the mean token; attention is that of [CLS], or without one the
    attention received (the code for Qwen2.5-VL has that of the mean query). The budget is met exactly: frames share it
    equally, and what an anchor frame has no tokens for goes to the most attended others of the segment. A token that is
    merged into several is shown, and merged in DeepStack features, with the most similar. Of equal tokens the first
    wins; the authors add noise of 1e-6 to densities.

    Args:
        segments: Least number of segments, where there are as many frames.
        threshold: Cosine of neighbouring frames below which a segment ends.
        context: Share of the budget for tokens that others are merged into.
        interval: Frames from one anchor frame to the next.
        beta: Least weight of a token among those that are merged into it.
        layer: Encoder block whose attention counts, 0-based or from the end; None: the one whose output is used.
    """

    segments: int = 8
    threshold: float = 0.9
    context: float = 0.4
    interval: int = 4
    beta: float = 0.6
    layer: int | None = None

    name: ClassVar[str] = "fastvid"
    mechanism: ClassVar = ("similarity", "attention")
    title: ClassVar[str] = "FastVID: Dynamic Density Pruning for Fast Video Large Language Models"
    paper: ClassVar[str] = "arXiv 2503.11187"
    positions: ClassVar = "original"

    def __post_init__(self) -> None:
        if self.segments < 1 or self.interval < 1:
            raise FoveateError("fastvid: segments and interval are at least 1.")
        if not (0 <= self.context <= 1 and 0 <= self.beta <= 1):
            raise FoveateError("fastvid: context and beta are shares, 0 to 1.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The [CLS] row, or attention received."""
        return (Need("cls_attention", tower.layer(self.layer), substitute=True),)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `VideoMethod.select`."""
        place = tokens.frame_indices
        attention = tokens.get(*self.needs(tokens.tower))
        unit = F.normalize(tokens.features.float(), dim=-1)
        number, size = place.shape
        rows = divide(count, [size] * number)
        order = attention[place].argsort(dim=1, descending=True, stable=True)
        kept, merges = [], []
        best = unit.new_full((len(tokens),), -torch.inf)
        target = torch.full((len(tokens),), -1, dtype=torch.int64, device=tokens.device)
        for start, stop in self._segments(wide(tokens.frames).mean(dim=1)):
            frames = range(start, stop)
            salient, anchors = self._shares(sum(rows[start:stop]), len(frames), size)
            taken = [place[frame, order[frame, :share]] for frame, share in zip(frames, salient, strict=True)]
            rest = [place[frame, order[frame, share:]] for frame, share in zip(frames, salient, strict=True)]
            sources = torch.cat(rest).sort().values
            merge, directions = Merge(sources, [], []), unit[sources]
            for frame, share in anchors.items():
                others = rest[frame].sort().values
                scores = peak_scores(distances(tokens.features[others]), 4)
                chosen = others[ranked(scores, share)].sort().values
                similarity, labels = (directions @ unit[chosen].T).max(dim=1)
                target[sources] = torch.where(similarity > best[sources], chosen[labels], target[sources])
                best[sources] = torch.maximum(similarity, best[sources])
                merge.targets.append(chosen)
                merge.labels.append(labels.masked_fill(torch.isin(sources, chosen), share))
            taken += merge.targets
            merges += [merge] if merge.targets else []
            kept.append(self._filled(torch.cat(taken), sources, sum(rows[start:stop]), attention))
        return self._selection(tokens, torch.cat(kept).sort().values, target, merges)

    def _segments(self, means: Tensor) -> Iterator[tuple[int, int]]:
        """First frame of every segment, and the one behind its last."""
        similarity = F.cosine_similarity(means[:-1].float(), means[1:].float(), dim=1)
        ends = similarity < self.threshold
        ends[similarity.argsort(stable=True)[: self.segments - 1]] = True
        stops = [*(ends.nonzero().flatten() + 1).tolist(), len(means)]
        yield from zip([0, *stops], stops, strict=False)

    def _shares(self, count: int, frames: int, size: int) -> tuple[list[int], dict[int, int]]:
        """Attended tokens of every frame of a segment, and tokens of the anchor frames, by frame, the last first."""
        context = share_of(self.context, count, "down")
        salient = divide(count - context, [size] * frames)
        places = range(frames - 1, -1, -self.interval)
        shares = divide(context, [size * frames] * len(places))
        wanted = {frame: min(share, size - salient[frame]) for frame, share in zip(places, shares, strict=True)}
        return salient, {frame: share for frame, share in wanted.items() if share}

    def _filled(self, taken: Tensor, sources: Tensor, count: int, attention: Tensor) -> Tensor:
        """The tokens taken of a segment and, where they are fewer than `count`, its most attended others."""
        if len(taken) == count:
            return taken
        left = sources[~torch.isin(sources, taken)]
        return torch.cat([taken, left[ranked(attention[left], count - len(taken))]])

    def _selection(self, tokens: VisualTokens, indices: Tensor, target: Tensor, merges: list[Merge]) -> Selection:
        """The kept tokens with others merged into them; `target` (N,) is the most similar one of every token, or -1."""
        if not merges:
            return Selection(indices)
        target[indices] = indices
        used = target >= 0
        assignment = torch.full_like(target, -1)
        assignment[used] = torch.searchsorted(indices, target[used])
        sizes = assignment[used].bincount(minlength=len(indices)) - 1
        own = (1 / (sizes + 1).float()).clamp(min=self.beta)
        weights = own.new_zeros(len(tokens))
        weights[used] = ((1 - own) / sizes.clamp(min=1))[assignment[used]]
        weights[indices] = own
        remade = partial(_merged, indices=indices, merges=merges, least=self.beta)
        return Selection(indices, remade(tokens.features), assignment, weights, remade=remade)


def _merged(features: Tensor, indices: Tensor, merges: list[Merge], least: float) -> Tensor:
    """(k, D) the kept rows of features (N, D) with what is merged into them."""
    x = wide(features)
    targets = torch.cat([targets for merge in merges for targets in merge.targets])
    rows = torch.cat([merge.rows(x, least) for merge in merges])
    return x[indices].index_copy(0, torch.searchsorted(indices, targets), rows).to(features.dtype)

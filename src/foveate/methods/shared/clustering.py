"""Deterministic clustering and neighbourhoods. Only `density_peaks` needs all pairwise distances."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.tokens import ranked, wide


def spread(size: int, count: int, device: torch.device | None = None) -> Tensor:
    """`count` indices below `size`, evenly spread, each in the middle of its part: (count,), ascending, distinct."""
    return ((2 * torch.arange(count, device=device) + 1) * size) // (2 * count)


def nearest(keys: Tensor, centres: Tensor, count: int, bonus: Tensor | None = None) -> Tensor:
    """The `count` other tokens most similar to each centre: (m, count), most similar first.

    Args:
        keys: (N, d), compared by cosine.
        centres: (m,) indices.
        count: Neighbours of each, at most N - 1.
        bonus: (N,) added to the similarity of every token.
    """
    x = F.normalize(keys.float(), dim=-1)
    similarity = x[centres] @ x.T
    if bonus is not None:
        similarity = similarity + bonus
    similarity.scatter_(1, centres[:, None], -torch.inf)
    return similarity.argsort(dim=1, descending=True, stable=True)[:, : min(count, len(x) - 1)]


def weighted(features: Tensor, weights: Tensor, groups: Tensor) -> Tensor:
    """Sum of weights * features over each group of indices (m, n): (m, D) in float32, in float64 of float64."""
    x = wide(features)
    return x.new_zeros(len(groups), len(x)).scatter_(1, groups, weights.to(x.dtype)[groups]) @ x


def representatives(labels: Tensor, scores: Tensor, count: int) -> Tensor:
    """The member of the highest score of each of `count` clusters, the first of equals: (count,) indices.

    Every cluster needs a member.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]
    sizes = labels.bincount(minlength=count)
    return order[sizes.cumsum(0) - sizes]


def cosine_kmeans(x: Tensor, count: int, iterations: int) -> Tensor:
    """Deterministic spherical k-means: (N,) labels, every one of 0 to count - 1 used.

    Starts from evenly spread tokens. A centre is the normalised sum of its unit vectors. A cluster that runs empty
    takes the token that is least like its own centre, and is not the best of its cluster.

    Args:
        x: (N, d), any length; compared by cosine.
        count: Clusters, at most N.
        iterations: Updates of the centres; the labels of the last centres are returned.
    """
    x = F.normalize(x.float(), dim=-1)
    centres = x[spread(len(x), count, x.device)]
    labels = _labels(x, centres)
    for _ in range(iterations):
        sums = torch.zeros_like(centres).index_add_(0, labels, x)
        centres = F.normalize(sums, dim=-1)
        labels = _labels(x, centres)
    return labels


def _labels(x: Tensor, centres: Tensor) -> Tensor:
    count = len(centres)
    closeness, labels = (x @ centres.T).max(dim=1)
    # Empty clusters, first ones first, take the worst-placed tokens. All `count` slots are computed and only those of
    # empty clusters are used, so that no size has to travel to the host.
    sizes = labels.bincount(minlength=count)
    empty_first = (sizes > 0).to(torch.int8).argsort(stable=True)
    best = torch.full((count,), -torch.inf, dtype=closeness.dtype, device=x.device).scatter_reduce_(
        0, labels, closeness, "amax"
    )
    indices = torch.arange(len(x), device=x.device)
    first_best = torch.full((count,), len(x), dtype=torch.int64, device=x.device)
    first_best.scatter_reduce_(0, labels, torch.where(closeness == best[labels], indices, len(x)), "amin")
    spare = closeness.masked_fill(first_best[labels] == indices, torch.inf)
    worst = spare.argsort(stable=True)[:count]
    labels[worst] = torch.where(sizes[empty_first] == 0, empty_first, labels[worst])
    return labels


def outlier_factor(values: Tensor, neighbours: int) -> Tensor:
    """Local outlier factor (Breunig et al., 2000) of each of N numbers: about 1 in a crowd, greater outside: (N,).

    With d_k(j) the distance of j to its k-th neighbour, i has the density 1 / mean_j max(d_k(j), |v_i - v_j|) over its
    k neighbours j, and the factor is the mean density of the neighbours over its own. On a line the neighbours of a
    number lie within k ranks of it in sorted order, so N x 2k distances suffice. Of equally near numbers the smaller
    is the neighbour.

    Args:
        values: (N,).
        neighbours: k; at most N - 1 are used.
    """
    count = len(values)
    k = min(neighbours, count - 1)
    if k < 1:
        return torch.ones_like(values, dtype=torch.float32)
    ordered, order = values.float().sort(stable=True)
    offsets = torch.cat([torch.arange(-k, 0), torch.arange(1, k + 1)]).to(values.device)
    candidates = torch.arange(count, device=values.device)[:, None] + offsets
    outside = (candidates < 0) | (candidates >= count)
    candidates = candidates.clamp(0, count - 1)
    distance = (ordered[candidates] - ordered[:, None]).abs().masked_fill(outside, torch.inf)
    distance, chosen = distance.sort(dim=1, stable=True)
    distance, near = distance[:, :k], candidates.gather(1, chosen[:, :k])
    density = 1 / (torch.maximum(distance, distance[:, -1][near]).mean(dim=1) + 1e-10)  # duplicates: not infinite
    factor = density[near].mean(dim=1) / density
    out = torch.empty_like(factor)
    out[order] = factor
    return out


def density_peaks(x: Tensor, count: int, neighbours: int | None = None) -> tuple[Tensor, Tensor]:
    """DPC-kNN: centres are dense, and far from what is denser (Rodriguez and Laio, 2014; Du et al., 2016).

    Tokens with the greatest `peak_scores` are centres, all others join the nearest centre. Of equal centres the first
    wins.

    Args:
        x: (N, D).
        count: Clusters, from 1 to N.
        neighbours: Of the density; None: as many as clusters.

    Returns:
        (count,) indices of the centres, the best first; (N,) which of them each token belongs to.
    """
    distance = distances(x)
    centres = ranked(peak_scores(distance, count if neighbours is None else neighbours), count)
    labels = distance[:, centres].argmin(dim=1)
    labels[centres] = torch.arange(count, device=x.device)  # a centre that equals another one stays its own
    return centres, labels


def distances(x: Tensor) -> Tensor:
    """Euclidean distances (..., N, N) of all rows of x (..., N, D) over sqrt(D), in float32; a row's to itself is 0."""
    x = x.float()
    x = x - x.mean(dim=-2, keepdim=True)  # long common parts would cancel
    distance = torch.cdist(x, x) / x.shape[-1] ** 0.5
    distance.diagonal(dim1=-2, dim2=-1).zero_()
    return distance


def peak_scores(distance: Tensor, neighbours: int) -> Tensor:
    """Density times distance to what is denser, of every token: (..., N).

    The density of i is exp(-mean of d(i, j)^2) over its `neighbours` nearest, itself among them; its distance is that
    to the nearest denser token, for the densest the greatest there is. Of equally dense tokens the first counts as
    denser.

    Args:
        distance: (..., N, N) symmetric.
        neighbours: At most N are used.
    """
    near = distance.topk(min(neighbours, distance.shape[-1]), dim=-1, largest=False).values
    density = (-near.square().mean(dim=-1)).exp()
    place = density.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    denser = place[..., None, :] < place[..., :, None]
    return torch.where(denser, distance, distance.amax(dim=(-2, -1), keepdim=True)).amin(dim=-1) * density

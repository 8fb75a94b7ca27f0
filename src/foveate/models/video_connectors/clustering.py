"""Cosine k-means of the tokens of a clip, and the number of clusters that fits it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

#: Changes of all centroids together below which k-means ends.
TOLERANCE = 1e-4
#: Added to squared distances, so that some token can always be drawn.
FLOOR = 1e-6


def kmeans(x: Tensor, count: int, iterations: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Assign tokens to clusters by cosine similarity.

    The first centroids are tokens: one at random, then each with a probability in proportion to the squared Euclidean
    distance to the nearest one so far (k-means++). Centroids are means of normalized tokens; a cluster that loses all
    tokens keeps its centroid.

    Args:
        x: `(M, D)` normalized tokens, in float32.
        count: Clusters K.
        iterations: At most.
        generator: Of the first centroids.

    Returns:
        `(M,)` the cluster of every token, and the centroids `(K, D)` that they were assigned to.
    """
    first = int(torch.randint(0, len(x), (1,), generator=generator, device=generator.device))
    chosen, nearest = [first], torch.cdist(x, x[first : first + 1])[:, 0]
    for _ in range(1, count):
        weights = nearest.square().clamp(min=0) + FLOOR
        drawn = int(torch.multinomial(weights / weights.sum(), 1, generator=generator))
        chosen.append(drawn)
        nearest = torch.minimum(nearest, torch.cdist(x, x[drawn : drawn + 1])[:, 0])
    centroids = x[chosen]
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for _ in range(iterations):
        labels = (x @ F.normalize(centroids, dim=-1).T).argmax(dim=-1)
        sizes = labels.bincount(minlength=count)
        means = torch.zeros_like(centroids).index_add_(0, labels, x) / sizes.clamp(min=1)[:, None]
        updated = torch.where(sizes[:, None] > 0, means, centroids)
        if float((centroids - updated).norm()) < TOLERANCE:
            break
        centroids = updated
    return labels, centroids


def means(x: Tensor, labels: Tensor, count: int) -> Tensor:
    """Means `(K, D)` of the tokens `(M, D)` of every cluster; differentiable. Those of empty clusters are zero."""
    sizes = labels.bincount(minlength=count).clamp(min=1)
    return x.new_zeros(count, x.shape[1]).index_add(0, labels, x) / sizes[:, None].to(x.dtype)


def by_first_token(labels: Tensor) -> Tensor:
    """Number clusters in the order of their first tokens, from 0 on; clusters without tokens have no number."""
    _, inverse = labels.unique(return_inverse=True)
    count = int(inverse.max()) + 1
    places = torch.arange(len(labels), device=labels.device)
    first = places.new_full((count,), len(labels)).scatter_reduce(0, inverse, places, "amin")
    return first.argsort().argsort()[inverse]


def silhouette(x: Tensor, labels: Tensor, centroids: Tensor) -> float:
    """Mean silhouette of normalized tokens, with distances to centroids: `(b - a) / max(a, b)`.

    a is the cosine distance of a token to its own centroid, b that to the nearest other one.
    """
    distances = 1 - x @ F.normalize(centroids, dim=-1).T
    own = distances.gather(1, labels[:, None])
    other = distances.scatter(1, labels[:, None], torch.inf).amin(dim=1, keepdim=True)
    return float(((other - own) / torch.maximum(own, other).clamp(min=FLOOR)).mean())


def distortion(x: Tensor, labels: Tensor, centroids: Tensor) -> float:
    """Sum of squared distances of tokens to the centroids of their clusters."""
    return float((x - centroids[labels]).square().sum())


def elbow(distortions: Iterable[float], least: int) -> int:
    """The number of clusters at the sharpest bend of the distortions of `least`, `least + 1`, ... clusters."""
    values = torch.tensor(list(distortions), dtype=torch.float64)
    return least + 1 + int(values.diff(n=2).argmax()) if len(values) > 2 else least

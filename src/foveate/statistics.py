"""Confidence intervals of accuracies, single and paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Entries of the largest table of drawn numbers that exists at a time.
_BLOCK = 2**21


def wilson_interval(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson, 1927); `z` is the normal quantile, 95 % by default."""
    share = right / count
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Compared:
    """Two accuracies on the same questions, with bootstrap intervals of the first, the difference and the ratio.

    Args:
        accuracy: Of the first, with its ends `low` and `high`.
        low: Lower end.
        high: Upper end.
        difference: First minus second.
        difference_low: Lower end.
        difference_high: Upper end.
        ratio: First over second; None where the second is 0.
        ratio_low: Lower end; None without a ratio.
        ratio_high: Upper end; None without a ratio, or if the second accuracy was 0 too often.
    """

    accuracy: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None


def paired_bootstrap(
    rights_a: Sequence[Any] | NDArray[Any],
    rights_b: Sequence[Any] | NDArray[Any],
    *,
    strata: Sequence[Any] | NDArray[Any] | None = None,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Compared:
    """Compare two lists of right (1) and wrong (0) answers to the same questions.

    Questions are drawn again with replacement, both answers of a question together, so what is easy or hard for both
    falls out (percentile bootstrap; B. Efron, 1979). The same arguments give the same intervals.

    Args:
        rights_a: (N,) answers of the first.
        rights_b: (N,) answers of the second.
        strata: (N,) task of every question: accuracies are means over the tasks, each with the same weight, and every
            task is drawn from on its own. None: one task.
        clusters: (N,) which questions are drawn together, such as those about one image; within a stratum. None: each
            alone.
        resamples: Times that questions are drawn again.
        level: Of the intervals.
        seed: Seed of the resampling; the global random state is not changed.

    Raises:
        ValueError: the lists are empty or differ in length.
    """
    values = np.stack([np.asarray(rights_a, dtype=np.float64), np.asarray(rights_b, dtype=np.float64)])
    count = values.shape[1]
    if not count:
        raise ValueError("there is nothing to compare.")
    first, second = _places(strata, count), None if clusters is None else _places(clusters, count)
    if len(first) != count or (second is not None and len(second) != count):
        raise ValueError("strata and clusters must name one for every question.")
    means, drawn = np.zeros(2), np.zeros((2, resamples))
    number = int(first.max()) + 1
    for stratum in range(number):
        in_stratum = first == stratum
        part = values[:, in_stratum]
        together = np.arange(part.shape[1]) if second is None else np.unique(second[in_stratum], return_inverse=True)[1]
        sums = np.stack([np.bincount(together, weights=row) for row in part])
        sizes = np.bincount(together).astype(np.float64)
        means += part.mean(axis=1) / number
        drawn += _resampled(sums, sizes, resamples, np.random.default_rng((seed, stratum))) / number
    ends = ((1 - level) / 2, (1 + level) / 2)
    low, high = np.quantile(drawn[0], ends)
    difference_low, difference_high = np.quantile(drawn[0] - drawn[1], ends)
    ratio = _ratio(means, drawn, ends)
    return Compared(
        float(means[0]),
        float(low),
        float(high),
        float(means[0] - means[1]),
        float(difference_low),
        float(difference_high),
        *ratio,
    )


def _places(labels: Sequence[Any] | NDArray[Any] | None, count: int) -> NDArray[Any]:
    """Number labels from 0 in the order of their first appearance."""
    if labels is None:
        return np.zeros(count, dtype=np.int64)
    known: dict[Any, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.int64)


def _resampled(sums: NDArray[Any], sizes: NDArray[Any], resamples: int, rng: np.random.Generator) -> NDArray[Any]:
    """Resample accuracies (2, resamples) over clusters: `sums` (2, C) right answers, `sizes` (C,) answers."""
    samples, clusters = [], len(sizes)
    step = max(1, _BLOCK // clusters)
    for start in range(0, resamples, step):
        drawn = rng.integers(0, clusters, (min(step, resamples - start), clusters))
        samples.append(np.stack([row[drawn].sum(axis=1) for row in sums]) / sizes[drawn].sum(axis=1))
    return np.concatenate(samples, axis=1)


def _ratio(
    means: NDArray[Any], drawn: NDArray[Any], ends: tuple[float, float]
) -> tuple[float | None, float | None, float | None]:
    """Ratio of the means with its interval. Resamples in which both are 0 are excluded."""
    if means[1] == 0:
        return None, None, None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[0] / drawn[1]
    # Between values that were drawn nothing is interpolated, for a ratio may be infinite.
    low, high = np.quantile(ratios[~np.isnan(ratios)], ends, method="nearest")
    finite = [float(value) if np.isfinite(value) else None for value in (low, high)]
    return float(means[0] / means[1]), finite[0], finite[1]

"""Intervals against other software, slow loops and cases that are known."""

import numpy as np
import pytest

from foveate.statistics import paired_bootstrap, wilson_interval


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # R: binom::binom.confint(x, n, methods = "wilson")
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (475, 500, 0.9272, 0.9659)],
)
def test_wilson_interval(right, count, low, high):
    assert wilson_interval(right, count) == pytest.approx((low, high), abs=1e-4)


def some(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    b = rng.random(count) < 0.7
    return np.where(rng.random(count) < 0.8, b, rng.random(count) < 0.4), b


def test_the_same_answers_differ_by_nothing():
    a, _ = some(0, 40)
    found = paired_bootstrap(a, a)
    assert (found.difference, found.difference_low, found.difference_high) == (0, 0, 0)
    assert (found.ratio, found.ratio_low, found.ratio_high) == (1, 1, 1)
    assert found.low < found.accuracy == a.mean() < found.high


def test_the_interval_is_that_of_a_slow_loop_over_tasks_and_images():
    a, b = some(1, 60)
    strata = ["one"] * 40 + ["two"] * 20
    clusters = [number // 2 for number in range(40)] + [number // 4 for number in range(20)]
    found = paired_bootstrap(a, b, strata=strata, clusters=clusters, resamples=4000)
    rng = np.random.default_rng(7)
    parts = [[range(k, k + 2) for k in range(0, 40, 2)], [range(k, k + 4) for k in range(40, 60, 4)]]
    drawn = []
    for _ in range(4000):
        means = np.zeros(2)
        for images in parts:
            chosen = [place for n in rng.integers(len(images), size=len(images)) for place in images[n]]
            means += np.array([a[chosen].mean(), b[chosen].mean()]) / 2
        drawn.append(means)
    first, second = np.array(drawn).T
    assert found.accuracy == pytest.approx((a[:40].mean() + a[40:].mean()) / 2)
    assert found.ratio == pytest.approx(found.accuracy / ((b[:40].mean() + b[40:].mean()) / 2))
    for ends, values in (
        ((found.low, found.high), first),
        ((found.difference_low, found.difference_high), first - second),
        ((found.ratio_low, found.ratio_high), first / second),
    ):
        assert ends == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=0.02)


def test_pairs_are_kept_together():
    """Two that are right on exactly the same questions but one are far surer to differ little than two at random."""
    rng = np.random.default_rng(3)
    b = rng.random(400) < 0.5
    a = b.copy()
    a[np.flatnonzero(b)[:4]] = False
    paired = paired_bootstrap(a, b)
    apart = paired_bootstrap(rng.permutation(a), b)
    width = lambda found: found.difference_high - found.difference_low  # noqa: E731
    assert width(paired) < width(apart) / 4
    assert paired.difference_high < 0 < apart.difference_high


def test_intervals_hold_what_they_promise():
    """Over many samples of a known truth, 95 % intervals of the difference hold it about so often."""
    rng = np.random.default_rng(11)
    held = 0
    for trial in range(200):
        b = rng.random(150) < 0.6
        a = np.where(rng.random(150) < 0.9, b, rng.random(150) < 0.3)  # truth: 0.9 * 0.6 + 0.1 * 0.3 - 0.6 = -0.03
        found = paired_bootstrap(a, b, resamples=400, seed=trial)
        held += found.difference_low <= -0.03 <= found.difference_high
    assert 178 <= held <= 199


def test_the_same_arguments_give_the_same_and_random_state_is_left_alone():
    a, b = some(2, 30)
    np.random.seed(5)  # noqa: NPY002 - it is the global state that must stay
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert paired_bootstrap(a, b) == paired_bootstrap(a, b) != paired_bootstrap(a, b, seed=1)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_ratios_that_do_not_exist():
    nothing = paired_bootstrap([1, 0, 1], [0, 0, 0])
    assert (nothing.ratio, nothing.ratio_low, nothing.ratio_high) == (None, None, None)
    seldom = paired_bootstrap([1] * 10, [1] + [0] * 9)
    assert seldom.ratio == 10
    assert seldom.ratio_low is not None and seldom.ratio_high is None  # a third of the draws has no right one


@pytest.mark.parametrize(
    ("a", "b", "more", "message"),
    [
        ([], [], {}, "nothing to compare"),
        ([1], [1, 0], {}, "shape"),
        ([1, 0], [1, 0], {"strata": [1]}, "one for every question"),
        ([1, 0], [1, 0], {"clusters": [1, 2, 3]}, "one for every question"),
    ],
)
def test_lists_that_do_not_fit(a, b, more, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(a, b, **more)


def test_many_questions_are_drawn_in_blocks():
    a, b = some(4, 30_000)
    found = paired_bootstrap(a, b, resamples=200)
    assert found.high - found.low < 0.02

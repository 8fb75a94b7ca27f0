"""The native-resolution rule against numbers that the authors' released resizing function returned."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate import FoveateError
from foveate.models.llava_uhd.native_size import native_size

# (width, height, budget side, patch, stages, up-scaling, size). Returned by the released function in any-resolution
# mode; the factor was only allowed where the released caller allows it, for areas within the budget.
RELEASED = [
    (512, 512, 1560, 10, 2, None, (480, 480)),
    (1024, 1024, 1024, 10, 2, None, (1000, 1000)),
    (768, 768, 768, 10, 2, None, (760, 760)),
    (640, 480, 1560, 10, 2, None, (640, 480)),
    (480, 640, 1560, 10, 2, 1.4, (640, 880)),
    (300, 200, 1560, 10, 2, None, (600, 400)),
    (1, 1, 1560, 10, 2, None, (480, 480)),
    (4000, 3000, 1560, 10, 2, None, (1800, 1320)),
    (4000, 3000, 1560, 10, 2, 1.4, (1800, 1320)),
    (1560, 1560, 1560, 10, 2, 1.4, (1560, 1560)),
    (1561, 1560, 1560, 10, 2, 1.4, (1520, 1520)),
    (20000, 100, 1560, 10, 2, None, (5120, 40)),
    (50, 30000, 1560, 10, 2, None, (40, 5120)),
    (3, 100000, 1560, 10, 2, None, (40, 5120)),
    (1920, 1080, 1580, 10, 3, None, (1920, 1040)),
    (1080, 1920, 4080, 10, 2, 2.5, (2680, 4800)),
    (800, 600, 1560, 14, 1, None, (784, 588)),
    (2480, 3508, 1560, 14, 2, None, (1288, 1848)),
    (224, 224, 512, 16, 0, 2, (512, 512)),
    # Sizes at which rounding in doubles crosses a multiple of the unit; exact arithmetic gives one unit more.
    (1960, 440, 768, 7, 0, None, (1610, 357)),
    (1440, 1960, 1560, 10, 1, None, (1320, 1800)),
    (1440, 1960, 1560, 10, 0, None, (1330, 1810)),
    (360, 1960, 768, 7, 0, None, (322, 1785)),
]


@pytest.mark.parametrize(("width", "height", "budget", "patch", "stages", "factor", "expected"), RELEASED)
def test_released_sizes(width, height, budget, patch, stages, factor, expected):
    size = native_size(
        width, height, patch_size=patch, num_stages=stages, scale_resolution=budget, upscale_factor=factor
    )
    assert size == expected


@pytest.mark.parametrize(("side", "most"), [(512, 163), (768, 368), (1024, 655)])
def test_token_counts_of_the_paper(side, most):
    """The paper's counts are the area over 40 x 40 pixels; whole tokens can only be as many or fewer."""
    width, height = native_size(side, side, scale_resolution=side)
    assert 0.85 * most < width * height // 1600 <= most


sides = st.integers(1, 40_000)


@settings(max_examples=300, deadline=None)
@given(
    width=sides,
    height=sides,
    patch=st.integers(1, 32),
    stages=st.integers(0, 3),
    budget=st.integers(64, 4096),
    floor=st.none() | st.integers(1, 2048),
    factor=st.none() | st.floats(0.5, 4),
)
def test_every_size_fits_the_encoder(width, height, patch, stages, budget, floor, factor):
    unit = patch * 2**stages
    size = native_size(
        width,
        height,
        patch_size=patch,
        num_stages=stages,
        scale_resolution=budget,
        min_resolution=floor,
        upscale_factor=factor,
    )
    w, h = size
    assert w % unit == 0 and h % unit == 0 and unit <= w <= 5120 and unit <= h <= 5120
    if min(size) > unit:  # a side raised to one unit is the only way above the larger of budget and floor
        assert w * h <= max(budget, floor or 0) ** 2
    if min(size) > unit and max(size) > 2 * unit:  # the aspect ratio is kept up to one unit a side
        assert (w - 1) / (h + unit + 1) <= width / height * 1.05 + 0.05
        assert (h - 1) / (w + unit + 1) <= height / width * 1.05 + 0.05


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 1500), height=st.integers(1, 1500))
def test_without_a_floor_small_images_stay_small(width, height):
    size = native_size(width, height, patch_size=8, num_stages=2, min_resolution=None)
    assert size == (max(width // 32 * 32, 32), max(height // 32 * 32, 32))


def test_up_scaling_stops_at_the_budget_area():
    within = native_size(1000, 1000, scale_resolution=1000, upscale_factor=2.0, min_resolution=None)
    without = native_size(1000, 1000, scale_resolution=1000, min_resolution=None)
    assert within == without == (1000, 1000)
    assert native_size(400, 300, upscale_factor=2.0, min_resolution=None) == (800, 600)
    assert native_size(400, 300, min_resolution=None) == (400, 280)


def test_the_floor_wins_over_a_smaller_budget():
    assert native_size(2000, 2000, scale_resolution=256, min_resolution=512) == (480, 480)
    assert native_size(2000, 2000, scale_resolution=256, min_resolution=None) == (240, 240)


def test_numpy_integers_are_integers():
    assert native_size(np.int64(640), np.uint16(480)) == (640, 480)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width"),
        ({"height": -3}, "height"),
        ({"width": 10.5}, "width must be a whole number"),
        ({"width": True}, "width"),
        ({"width": 2**40}, "larger than any image"),
        ({"patch_size": 0}, "patch_size"),
        ({"num_stages": -1}, "num_stages"),
        ({"num_stages": 2.0}, "num_stages"),
        ({"scale_resolution": 0}, "scale_resolution"),
        ({"min_resolution": 0}, "min_resolution"),
        ({"max_edge": 39}, "max_edge=39 is shorter than one token"),
        ({"upscale_factor": 0}, "upscale_factor"),
        ({"upscale_factor": float("nan")}, "upscale_factor"),
        ({"upscale_factor": "2"}, "upscale_factor"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(FoveateError, match=message):
        native_size(**({"width": 100, "height": 100} | arguments))

"""The native-resolution rule of LLaVA-UHD v3: which size an image is resized to before it is cut into patches.

One image becomes one view: no slices, no padding, no thumbnail. The rule keeps the aspect ratio up to rounding and
keeps the area between a floor and a budget; both sides of the result are multiples of the *unit*,
``patch_size * 2**num_stages``, so that every compression stage finds an even grid.

Source: LLaVA-UHD v3 (arXiv 2511.21150) and the resizing function of its released code (any-resolution mode, one
view). Python floats are IEEE doubles and ``*``, ``/`` and ``sqrt`` are correctly rounded, so the result is the same on
every machine, and it equals the released function's result for every size, rounding included.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from foveate.core.errors import FoveateError

#: No image format stores a longer side; a larger number is a mistake of the caller, not a size.
LONGEST_SIDE = 2**31 - 1


def positive_int(name: str, value: Any) -> int:
    """``value`` as an int (numpy integers too); a `FoveateError` naming it if it is not a whole number from 1 on."""
    try:
        number = operator.index(value)
    except TypeError:
        raise FoveateError(f"{name} must be a whole number, got {value!r}.") from None
    if isinstance(value, bool) or number < 1:
        raise FoveateError(f"{name} must be a whole number from 1 on, got {value!r}.")
    return number


def unit_size(patch_size: int, num_stages: int) -> int:
    """Side in pixels of the square that one token stands for after all stages: ``patch_size * 2**num_stages``."""
    patch_size = positive_int("patch_size", patch_size)
    try:
        stages = operator.index(num_stages)
    except TypeError:
        raise FoveateError(f"num_stages must be a whole number, got {num_stages!r}.") from None
    if isinstance(num_stages, bool) or not 0 <= stages <= 16:
        raise FoveateError(f"num_stages must be a whole number from 0 to 16, got {num_stages!r}.")
    return patch_size << stages


def native_size(
    width: int,
    height: int,
    *,
    patch_size: int = 10,
    num_stages: int = 2,
    scale_resolution: int = 1560,
    min_resolution: int | None = 512,
    max_edge: int = 5120,
    upscale_factor: float | None = None,
    token_multiple: int = 1,
) -> tuple[int, int]:
    """Size ``(width, height)`` in pixels that an image of ``width`` x ``height`` pixels is resized to.

    In this order:

    1. an image whose area is at most ``scale_resolution**2`` is first enlarged by ``upscale_factor``, if one is given
       (the authors evaluate with 1.4, and with 2 or 2.5 on some benchmarks);
    2. an area above the budget ``scale_resolution**2`` shrinks to it;
    3. an area below the floor ``min_resolution**2`` grows to it (``None``: no floor, small images stay small);
    4. a side longer than ``max_edge`` shrinks to it, and the other side with it;
    5. each side is cut down to a multiple of the unit ``patch_size * 2**num_stages``, or of ``token_multiple`` units
       where the connector merges so many tokens in each direction, and is one such multiple at least.

    The floor comes after the budget, so where both cannot hold (``min_resolution > scale_resolution``) the floor wins;
    a very thin image is one unit wide, which may take it over the budget.

    Raises:
        FoveateError: a size or setting is not a whole number from 1 on, ``upscale_factor`` is not a positive finite
            number, or ``max_edge`` is shorter than the unit.
    """
    columns, rows = positive_int("width", width), positive_int("height", height)
    if max(columns, rows) > LONGEST_SIDE:
        raise FoveateError(f"an image of {columns} x {rows} pixels is larger than any image file can be.")
    budget = positive_int("scale_resolution", scale_resolution)
    floor = 0 if min_resolution is None else positive_int("min_resolution", min_resolution)
    edge = positive_int("max_edge", max_edge)
    unit = unit_size(patch_size, num_stages) * positive_int("token_multiple", token_multiple)
    if unit > edge:
        raise FoveateError(
            f"max_edge={edge} is shorter than one token: patch_size={patch_size} with {num_stages} stages needs sides "
            f"of {unit} pixels or a multiple."
        )
    if upscale_factor is not None and not (
        isinstance(upscale_factor, (int, float)) and math.isfinite(upscale_factor) and upscale_factor > 0
    ):
        raise FoveateError(f"upscale_factor must be a positive number or None, got {upscale_factor!r}.")

    w: float = columns
    h: float = rows
    if upscale_factor is not None and columns * rows <= budget * budget:
        w, h = w * upscale_factor, h * upscale_factor
    ratio = w / h
    if w * h > budget * budget:
        h = int(budget / math.sqrt(ratio))
        w = int(h * ratio)
    if w * h < floor * floor:
        h = int(floor / math.sqrt(ratio))
        w = int(h * ratio)
    if max(w, h) > edge:
        scale = edge / max(w, h)
        w, h = int(w * scale), int(h * scale)
    return max(int(w // unit), 1) * unit, max(int(h // unit), 1) * unit

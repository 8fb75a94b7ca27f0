"""Exact shares of whole numbers, without floating-point error: three tenths of 50 are 15, never 16."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Literal, overload

from torch import Tensor

Rounding = Literal["nearest", "down", "up"]


@lru_cache(maxsize=1024)
def exactly(share: float) -> Fraction:
    """The fraction that is meant by a number: 0.3 is three tenths, and 6 / 7 six sevenths."""
    return Fraction(share).limit_denominator(10**9)


@overload
def share_of(share: float, count: int, rounding: Rounding = "nearest") -> int: ...
@overload
def share_of(share: float, count: Tensor, rounding: Rounding = "nearest") -> Tensor: ...
def share_of(share: float, count: int | Tensor, rounding: Rounding = "nearest") -> int | Tensor:
    """How many things a share of `count` things is.

    A product of floating-point numbers can differ by a rounding error from the number that is meant, and rounding then
    counts one more or less: 0.29 * 100 is 28.999999999999996.

    Args:
        share: 0 or more.
        count: 0 or more; several counts as a whole-number tensor.
        rounding: "nearest" (halves to the even number, as `round`), "down" or "up".
    """
    top, bottom = (exactly(share) if isinstance(share, float) else Fraction(share)).as_integer_ratio()
    product = count * top
    if rounding == "down":
        return product // bottom
    if rounding == "up":
        return -(-product // bottom)
    quotient, remainder = product // bottom, 2 * (product % bottom)
    return quotient + ((remainder > bottom) | ((remainder == bottom) & (quotient % 2 == 1)))

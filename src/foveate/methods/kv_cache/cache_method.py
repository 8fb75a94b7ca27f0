"""The base class of cache methods of next-scale models, and the profile of a model that they read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.method import Method, Modality, Site
from foveate.methods.kv_cache.scale_cache import Policy


@dataclass(frozen=True)
class Profile:
    """Calibration results of a model.

    Args:
        scales: Sides of its token maps.
        variance: (L, H) of `hack.head_variance` at the last map.
        selectivity: (L, K) of `scalekv.selectivity`.
        samples: Number of pictures.
    """

    scales: tuple[int, ...]
    variance: Tensor
    selectivity: Tensor
    samples: int


def history(scales: Sequence[int]) -> int:
    """Tokens that a full cache holds when the last map is read."""
    return sum(side * side for side in scales[:-1])


@dataclass(frozen=True)
class CacheMethod(Method):
    """A method that keeps fewer keys and values of an image's token maps in the cache."""

    site: ClassVar[Site] = Site.KV_CACHE
    modality: ClassVar[tuple[Modality, ...]] = ("image",)

    @abstractmethod
    def policy(self, average: int, profile: Profile, seed: int) -> Policy:
        """The policy for a mean of `average` tokens a head.

        Raises:
            FoveateError: the method cannot meet the budget.
        """


def check_positive(method: CacheMethod, *names: str) -> None:
    """Refuse fields that are no whole number from 1 on."""
    for name in names:
        value = getattr(method, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise FoveateError(f"{method.name}: {name} must be a whole number from 1 on, not {value!r}.")


def check_share(method: CacheMethod, *names: str) -> None:
    """Refuse fields that are no number from 0 to 1."""
    for name in names:
        value = getattr(method, name)
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise FoveateError(f"{method.name}: {name} must lie in 0 to 1, not {value!r}.")

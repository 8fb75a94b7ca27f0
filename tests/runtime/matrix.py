"""Which methods are tested on which families: a covering sample by default, the full product when asked for."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from foveate.core.method import Site
from foveate.core.registry import methods_at
from foveate.families import families
from tests.families.zoo import zoo

#: Methods that map the features of an image to a smaller raster, where the family says where.
RASTER = ("fourier:3",)
#: Methods inside the encoder that run with default arguments, where every patch becomes a token of its own.
INSIDE = ("tome:50%", "token-transforming:50%")


def raster_pairs() -> list[tuple[str, str]]:
    """Plans that map the features of an image to a smaller raster, on every specimen where the family says where."""
    specimens = [name for name, one in sorted(zoo().items()) if families()[one.family].raster_features]
    return [*product(specimens, RASTER)]


def steps() -> list[str]:
    """A step for every method before the language model that runs with default arguments."""
    found = []
    for name, cls in methods_at(Site.PRE_LLM).items():
        if cls.trained or cls.site != "pre_llm":
            continue
        found.append(name if cls.budget == "none" else f"{name}:3")
    return found


def pairs() -> list[Any]:
    """(specimen, step) parameters. Every method meets two specimens and every specimen three methods without `slow`."""
    specimens, plans = sorted(zoo()), steps()
    quick = {(specimens[(2 * i + j) % len(specimens)], plan) for i, plan in enumerate(plans) for j in range(2)}
    for i, specimen in enumerate(specimens):
        quick |= {(specimen, plans[(3 * i + j) % len(plans)]) for j in range(3)}
    patchwise = [name for name in specimens if families()[zoo()[name].family].patchwise]
    quick |= {*product(patchwise, INSIDE), *raster_pairs()}
    return [
        pytest.param(*pair, marks=() if pair in quick else pytest.mark.slow, id=f"{pair[0]}-{pair[1]}")
        for pair in [*product(specimens, plans), *product(patchwise, INSIDE), *raster_pairs()]
    ]


def inside_plans() -> list[str]:
    """A plan for every method inside the language model that needs no weights, at layer 1 of a small model."""
    return [
        f"{name}@1" if cls.budget == "none" else f"{name}:3@1"
        for name, cls in methods_at(Site.DECODER).items()
        if not cls.trained
    ]


def inside_pairs() -> list[Any]:
    """(specimen, plan) parameters for plans inside the language model, every plan on one specimen without `slow`."""
    specimens = [name for name, one in sorted(zoo().items()) if families()[one.family].decoder]
    plans = inside_plans()
    quick = {(specimens[3 * i % len(specimens)], plan) for i, plan in enumerate(plans)}
    return [
        pytest.param(*pair, marks=() if pair in quick else pytest.mark.slow, id=f"{pair[0]}-{pair[1]}")
        for pair in product(specimens, plans)
    ]


def covering(specimens: list[str], plans: list[str], times: int = 1) -> list[Any]:
    """(specimen, plan) parameters: without `slow` every specimen meets `times` plans, every plan `times` specimens."""
    count = max(len(specimens), len(plans))
    quick = {
        (specimens[(i + shift) % len(specimens)], plans[(i + i // len(plans)) % len(plans)])
        for i in range(count)
        for shift in range(times)
    }
    return [
        pytest.param(*pair, marks=() if pair in quick else pytest.mark.slow, id=f"{pair[0]}-{pair[1]}")
        for pair in product(specimens, plans)
    ]

"""What families say of themselves without a model is what their models are."""

from __future__ import annotations

import pytest

from foveate.families import families
from tests.families.zoo import zoo

#: Families of this library, whose models are no single one of the Hub.
OURS = ("foveate-llava", "foveate-llava-video", "llava-uhd")


@pytest.mark.parametrize("name", sorted(zoo()))
def test_encoders_have_a_cls_token_where_the_family_says_so(name: str) -> None:
    specimen = zoo()[name]
    family = families()[specimen.family]
    assert family.has_cls(family.core(specimen.model())) in family.cls_tokens


def test_hub_ids_have_an_owner_and_a_name() -> None:
    for family in families().values():
        assert family.example.count("/") == 1 or family.name in OURS, family.name

"""The promises of every method inside the language model. A new method is tested by being registered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.method import Site
from foveate.core.registry import methods_at
from foveate.core.tokens import Selection
from foveate.testing import DecoderPromises
from foveate.testing.decoder import SIZE
from foveate.testing.layer_tokens import layer_tokens


class TestDecoderMethods(DecoderPromises):
    methods = tuple(cls() for cls in methods_at(Site.DECODER).values() if not cls.trained)


@pytest.mark.parametrize("places", [[1, 1], [2, 1], [-1, 3], [0, SIZE]])
def test_places_that_are_wrong_are_refused(places: list[int]):
    @dataclass(frozen=True)
    class Wrong(DecoderMethod):
        name: ClassVar[str] = "wrong"

        def layers(self, num_layers: int) -> tuple[int, ...]:
            return (1,)

        def select(self, tokens: LayerTokens, count: int) -> Selection:
            return Selection(torch.tensor(places))

    with pytest.raises(FoveateError, match="wrong chose 2 places"):
        Wrong()(layer_tokens(SIZE), 2)

"""The second stage of PruneVid against a loop."""

from __future__ import annotations

import pytest

from foveate.families.family import frame_crops
from foveate.methods.decoder.prunevid import PruneVidDecoder
from foveate.testing.layer_tokens import changed, layer_tokens
from tests.methods.decoder.fabricated import rows_by_hand


@pytest.mark.parametrize("count", [3, 6, 11])
def test_equals_the_loop(count: int) -> None:
    tokens = changed(layer_tokens(12, seed=count), layout=lambda: frame_crops(3, 2, 2))
    weights = rows_by_hand(tokens.attention("previous"))
    question = range(14, 18)
    scores = [max(float(head[row][2 + place]) for head in weights for row in question) for place in range(12)]
    expected: list[int] = []
    for frame, share in enumerate([count // 3 + (frame < count % 3) for frame in range(3)]):
        own = range(4 * frame, 4 * frame + 4)
        expected += sorted(own, key=lambda place: -scores[place])[:share]
    assert PruneVidDecoder()(tokens, count).indices.tolist() == sorted(expected)


def test_the_layer_of_the_paper() -> None:
    assert PruneVidDecoder().layers(32) == (11,)
    assert PruneVidDecoder().layers(2) == (1,)

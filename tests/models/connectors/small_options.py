"""Options of every connector for the small shapes of these tests, where the defaults do not fit them."""

from __future__ import annotations

from typing import Any

#: Options by connector. A connector whose defaults work on a 6 x 6 grid of 24 channels needs no entry.
SMALL: dict[str, dict[str, Any]] = {
    "llava_mini": {"size": 2, "prefusion_layers": 0},
    "mqt": {"num_queries": 36, "num_heads": 2},
    "quecc": {"scale": 3},
    "resampler": {"num_queries": 16, "num_heads": 2},
    "spatial_resampler": {"num_queries": 9, "num_heads": 2},
    "tokenflex": {"tokens": 4, "lengths": [1, 4]},
}


def options_of(name: str) -> dict[str, Any]:
    return dict(SMALL.get(name, {}))

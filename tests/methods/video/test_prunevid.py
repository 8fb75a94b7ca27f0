"""PruneVid against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.methods.video.prunevid import PruneVid, segment_lengths
from tests.methods.video.clips import clip_of, moving

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "prunevid.json").read_text())


def in_order(rows: torch.Tensor) -> torch.Tensor:
    """The rows by their place along one direction; some are equal, as much in a clip is static."""
    return rows[(rows @ torch.arange(1.0, rows.shape[1] + 1).sqrt()).argsort()]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["clip"]))
def test_equals_the_authors_code(case: dict) -> None:
    """The same rows; theirs are ordered by segment, static ones first."""
    method = PruneVid(case["segments"], case["threshold"], case["clusters"])
    selection = method(clip_of(case["features"], case["clip"]), None)
    expected = torch.tensor(case["rows"])
    assert selection.features is not None and len(selection) == len(expected)
    torch.testing.assert_close(in_order(selection.features), in_order(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", GOLDEN["segments"], ids=lambda case: str(case["labels"]))
def test_segments_of_the_authors_code(case: dict) -> None:
    assert segment_lengths(case["labels"]) == case["lengths"]


@pytest.mark.parametrize("count", [1, 5, 40, 90, 119])
def test_a_budget_is_met_exactly(count: int) -> None:
    selection = PruneVid()(clip_of(moving((8, 3, 5), 6, still=0.8), (8, 3, 5)), count)
    selection.check(120)
    assert len(selection) == count


def test_a_static_clip_becomes_one_frame() -> None:
    frame = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    selection = PruneVid()(clip_of(frame.repeat(4, 1), (4, 3, 4)), None)
    assert selection.indices.tolist() == list(range(12))
    assert selection.features is not None
    torch.testing.assert_close(selection.features, frame)


def test_arguments_that_mean_nothing() -> None:
    for arguments in ({"segments": 0.0}, {"clusters": 1.5}):
        with pytest.raises(FoveateError, match="are shares"):
            PruneVid(**arguments)

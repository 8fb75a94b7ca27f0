"""STC-Pruner against a loop over its equation, and against the authors' code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.methods.video.stc import STC
from tests.methods.video.clips import clip_of, moving

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "stc.json").read_text())


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def by_the_paper(frames: list[list[list[float]]], count: int, alpha: float, window: int) -> list[int]:
    kept, means = [], []
    for number, frame in enumerate(frames):
        spatial = mean(frame)
        scores = []
        for token in frame:
            score = 1 - cosine(token, spatial)
            if means:
                score = alpha * (1 - cosine(token, mean(means[-window:]))) + (1 - alpha) * score
            scores.append(score)
        means.append(spatial)
        best = sorted(range(len(frame)), key=lambda i: (-scores[i], i))[:count]
        kept += sorted(number * len(frame) + i for i in best)
    return kept


@pytest.mark.parametrize(("alpha", "window"), [(0.5, 16), (0.2, 2), (1.0, 1), (0.0, 3)])
def test_paper(alpha: float, window: int) -> None:
    features = moving((5, 3, 4), 6).double()
    frames = features.view(5, 12, -1).tolist()
    selection = STC(alpha=alpha, window=window)(clip_of(features, (5, 3, 4)), 5 * 4)
    assert selection.indices.tolist() == by_the_paper(frames, 4, alpha, window)


@pytest.mark.parametrize("case", GOLDEN["prune"], ids=lambda case: str(case["frames"]))
def test_authors_code(case: dict) -> None:
    size = (case["frames"], 1, case["tokens"])
    features = torch.tensor(case["features"]).view(-1, case["width"])
    kept = STC(form="code")(clip_of(features, size), case["frames"] * case["count"]).indices
    expected = [number * case["tokens"] + place for number, places in enumerate(case["kept"]) for place in places]
    assert kept.tolist() == expected


@pytest.mark.parametrize("form", ["paper", "code"])
def test_later_frames_change_nothing(form: str) -> None:
    features, other = moving((4, 3, 3), 8), moving((4, 3, 3), 8).clone()
    other[18:] = torch.randn(18, other.shape[1], generator=torch.Generator().manual_seed(5))
    kept, changed = (STC(form=form)(clip_of(clip, (4, 3, 3)), 16).indices for clip in (features, other))
    assert kept[:8].tolist() == changed[:8].tolist() and kept.tolist() != changed.tolist()


def test_budgets_below_one_token_a_frame() -> None:
    assert len(STC()(clip_of(moving((5, 2, 2), 4), (5, 2, 2)), 3).indices) == 3


@pytest.mark.parametrize("arguments", [{"alpha": 2}, {"window": 0}, {"form": "gaussian"}])
def test_arguments(arguments: dict) -> None:
    with pytest.raises(FoveateError, match=f"stc: {next(iter(arguments))} is "):
        STC(**arguments)

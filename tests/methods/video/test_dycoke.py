"""DyCoke against numbers of the authors' code, and a loop over the paper's windows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.methods.video.dycoke import DyCoke
from tests.methods.video.clips import clip_of, moving

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "dycoke.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["clip"]))
def test_equals_the_authors_code(case: dict) -> None:
    features = torch.tensor(case["features"])
    selection = DyCoke(case["prune"], form="code")(clip_of(features, case["clip"]), None)
    selection.check(len(features))
    assert selection.indices.tolist() == sorted(case["kept"])
    torch.testing.assert_close(selection.features, features[case["kept"]])


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 11])
def test_windows_of_the_paper(frames: int) -> None:
    features = moving((frames, 2, 5), 4, seed=frames)
    kept = []
    for frame in range(frames):
        first = frame * 10
        of = frame - 2 if frame % 4 == 2 else frame - 1
        tokens = [*range(first, first + 10)]
        if frame % 4:
            likeness = {
                token: float(torch.cosine_similarity(features[token], features[token - first + of * 10], 0))
                for token in tokens
            }
            tokens = sorted(tokens, key=likeness.__getitem__)[:3]
        kept += sorted(tokens)
    assert DyCoke()(clip_of(features, (frames, 2, 5)), None).indices.tolist() == kept


def test_budgets() -> None:
    clip = clip_of(moving((6, 2, 5), 4), (6, 2, 5))
    for count in (1, 7, 20, 21, 40, 59):
        assert len(DyCoke()(clip, count)) == count
    assert (DyCoke()(clip, 32).indices // 10).bincount().tolist() == [10, 3, 3, 3, 10, 3]
    assert DyCoke()(clip, 32).indices.tolist() == DyCoke()(clip, None).indices.tolist()
    assert DyCoke()(clip, 4).indices.tolist() == [2, 7, 42, 47]


def test_arguments_that_mean_nothing() -> None:
    for make, message in [
        (lambda: DyCoke(prune=1.0), "dycoke: prune is a share"),
        (lambda: DyCoke(form="fast"), 'dycoke: form is "paper" or "code"'),
    ]:
        with pytest.raises(FoveateError, match=message):
            make()

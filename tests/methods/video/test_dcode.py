"""D-CoDe, merging and frames, against numbers of the authors' code and a loop over the paper's merge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.methods.frames.diverse_frames import DiverseFrames, diverse
from foveate.methods.video.dcode import DCoDe
from tests.methods.video.clips import clip_of, moving

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "dcode.json").read_text())
ARC = [[1.0, 0.0], [0.866025, 0.5], [0.5, 0.866025]]  # unit vectors at 0, 30 and 60 degrees


@pytest.mark.parametrize("case", GOLDEN["merge"], ids=lambda case: f"{case['merge']} {case['clip']}")
def test_merge_of_the_authors_code(case: dict) -> None:
    size = case["clip"][2]
    method = DCoDe(keep=case["top"] / size, threshold=case["threshold"], merge=case["merge"], form="code")
    selection = method(clip_of(case["features"], case["clip"]), None)
    selection.check(len(case["features"]))
    assert (selection.indices // size).bincount().tolist() == case["counts"]
    torch.testing.assert_close(selection.features, torch.tensor(case["rows"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", GOLDEN["frames"], ids=lambda case: str(case["count"]))
def test_frames_of_the_authors_code(case: dict) -> None:
    assert diverse(torch.tensor(case["features"]), case["count"], case["uniform"]) == case["places"]


def by_loop(features: Tensor, size: int, read: int, method: DCoDe) -> list[tuple[int, Tensor]]:
    """Place and value of every row."""
    rows = []
    for start in range(0, len(features), size):
        order = sorted(range(start, start + size), key=lambda i: (-float(features[i].norm()), i))[:read]
        groups: list[list[int]] = []
        for token in order:
            own = next(
                (g for g in groups if torch.cosine_similarity(features[g[0]], features[token], 0) >= method.threshold),
                None,
            )
            if own is None:
                groups.append([token])
            else:
                own.append(token)
        for group in groups:
            x, norms = features[group], features[group].norm(dim=1, keepdim=True)
            value = {"mean": x.mean(0), "max": x.amax(0), "weighted": (x * norms).sum(0) / norms.sum()}[method.merge]
            rows.append((group[0], value))
    return sorted(rows, key=lambda row: row[0])


@pytest.mark.parametrize("merge", ["mean", "max", "weighted"])
@pytest.mark.parametrize(("keep", "threshold"), [(0.5, 0.8), (1.0, 0.3), (0.7, 0.99)])
def test_merge_of_the_paper(merge: str, keep: float, threshold: float) -> None:
    features = moving((4, 2, 5), 3, seed=1)
    method = DCoDe(keep, threshold, merge)
    selection = method(clip_of(features, (4, 2, 5)), None)
    expected = by_loop(features, 10, int(keep * 10), method)
    assert selection.indices.tolist() == [place for place, _ in expected]
    torch.testing.assert_close(selection.features, torch.stack([value for _, value in expected]))
    if merge != "max":
        torch.testing.assert_close(selection.apply(features), selection.features)


def test_what_the_authors_code_loses() -> None:
    tokens = clip_of(ARC, (1, 1, 3))
    both = DCoDe(keep=1.0)(tokens, None), DCoDe(keep=1.0, form="code")(tokens, None)
    assert [one.indices.tolist() for one in both] == [[0, 2], [0]]


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("count", [1, 5, 16, 33, 47])
def test_a_budget_is_met_exactly(form: str, count: int) -> None:
    selection = DCoDe(form=form, threshold=0.5)(clip_of(moving((4, 3, 4), 3), (4, 3, 4)), count)
    selection.check(48)
    assert len(selection) == len(selection.features) == count
    assert count < 4 or (selection.indices // 12).bincount(minlength=4).min() >= count // 4


@pytest.mark.parametrize(("merge", "form"), [("mean", "paper"), ("weighted", "code"), ("max", "code")])
def test_rows_are_made_again_with_gradients(merge: str, form: str) -> None:
    features = moving((3, 3, 4), 3)
    selection = DCoDe(keep=1.0, threshold=0.5, merge=merge, form=form)(clip_of(features, (3, 3, 4)), None)
    leaf = features.clone().requires_grad_()
    rows = selection.remade(leaf)
    assert torch.equal(rows, selection.features)
    rows.square().sum().backward()
    torch.testing.assert_close(leaf.grad.sum(dim=0), 2 * rows.detach().sum(dim=0))  # shares of a row sum to one


def test_arguments_that_mean_nothing() -> None:
    for make, message in [
        (lambda: DCoDe(keep=0.0), "dcode: keep is a share"),
        (lambda: DCoDe(threshold=2.0), "dcode: threshold is a cosine"),
        (lambda: DCoDe(merge="sum"), "dcode: merge is mean, max or weighted"),
        (lambda: DCoDe(form="fast"), 'dcode: form is "paper" or "code"'),
        (lambda: DiverseFrames(), "diverse-frames needs a contrastive model"),
        (lambda: DiverseFrames("x", candidates=0), "diverse-frames: candidates"),
        (lambda: DiverseFrames("x", uniform=1.5), "diverse-frames: uniform is a share"),
    ]:
        with pytest.raises(FoveateError, match=message):
            make()

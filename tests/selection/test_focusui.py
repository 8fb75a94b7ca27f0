"""FocusUI's scorer and labels against loops and numbers of the authors' code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from foveate.errors import FoveateError
from foveate.selection.focusui import FocusUI, Scorer, box_overlap, scorer_loss, screen_label, ui_graph
from foveate.tokens import Grid, Need, Tower, VisualTokens, top

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "focusui.json").read_text())["cases"]


@pytest.mark.parametrize("case", GOLDEN)
def test_labels_equal_the_authors_code(case: dict) -> None:
    grid, side = Grid(*case["grid"]), case["side"]
    cells = torch.tensor(case["colours"], dtype=torch.float32) / 255
    pixels = cells.view(*grid, 1, 1).expand(-1, -1, side, side).permute(0, 2, 1, 3).reshape(1, grid.rows * side, -1)
    pixels = pixels.expand(3, -1, -1)
    left, top_, right, bottom = case["box"]
    size = (grid.columns * side, grid.rows * side)
    box = (left / size[0], top_ / size[1], right / size[0], bottom / size[1])
    torch.testing.assert_close(box_overlap(grid, box), torch.tensor(case["overlap"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(ui_graph(pixels, grid, copies=2), torch.tensor(case["graph"]), atol=1e-5, rtol=0)


def test_label_and_loss() -> None:
    label = screen_label(torch.tensor([0.0, 0.9, 1.0]), torch.tensor([0.5, 1.0, 0.2]))
    torch.testing.assert_close(label, torch.tensor([-0.5, 1.0, 1.0]))
    scores = torch.tensor([0.3, -0.2, 0.1])
    p, q = [math.exp(v) for v in label.tolist()], [math.exp(v) for v in scores.tolist()]
    slow = sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    assert float(scorer_loss(scores, label)) == pytest.approx(slow, abs=1e-6)
    assert float(scorer_loss(label, label)) == pytest.approx(0, abs=1e-6)


def test_scores_equal_the_loop_and_the_method_keeps_the_best(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scorer = Scorer(12).eval()
    image, text = torch.randn(20, 12), torch.randn(5, 12)
    u, v = F.normalize(scorer.image(image).tanh(), dim=-1), F.normalize(scorer.text(text).tanh(), dim=-1)
    slow = torch.tensor([sum((a @ b).item() for b in v) / len(v) for a in u])
    torch.testing.assert_close(scorer(image, text), slow, atol=1e-5, rtol=1e-5)
    scorer.save(tmp_path / "scorer.safetensors")
    method = FocusUI(str(tmp_path / "scorer.safetensors"))
    tokens = VisualTokens.of_grid(image, (4, 5), measured={Need("instruction"): text})
    assert torch.equal(method(tokens, 6).indices, top(scorer(image, text), 6))
    same = VisualTokens.of_grid(image[:1].expand(20, -1), (4, 5), measured={Need("instruction"): text})
    assert len(FocusUI(method.weights, shuffle=True)(same, 6).indices.unique()) == 6
    wide = VisualTokens.of_grid(torch.randn(20, 8), (4, 5), measured={Need("instruction"): text[:, :8]})
    with pytest.raises(FoveateError, match="12 numbers"):
        method(wide, 6)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="train-scorer"):
        FocusUI().needs(Tower(4, False))
    with pytest.raises(FoveateError, match="no file"):
        Scorer.load(tmp_path / "none")
    with pytest.raises(FoveateError, match="cut"):
        ui_graph(torch.zeros(3, 10, 10), Grid(3, 3))

"""FocusUI's scorer and labels against loops and numbers of the authors' code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from foveate.cli import main
from foveate.core.errors import FoveateError
from foveate.core.tokens import EncoderSpec, Grid, Need, VisualTokens, topk_indices
from foveate.methods.pre_llm.focusui import (
    FocusUI,
    Scorer,
    box_overlap,
    released_scorer,
    scorer_loss,
    screen_label,
    ui_graph,
)
from foveate.methods.pre_llm.pospad import PosPad

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "focusui.json").read_text())["cases"]


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
    torch.testing.assert_close(ui_graph(pixels, grid), torch.tensor(case["graph"]), atol=1e-5, rtol=0)


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
    assert torch.equal(method(tokens, 6).indices, topk_indices(scorer(image, text), 6))
    same = VisualTokens.of_grid(image[:1].expand(20, -1), (4, 5), measured={Need("instruction"): text})
    assert len(FocusUI(method.weights, shuffle=True)(same, 6).indices.unique()) == 6
    wide = VisualTokens.of_grid(torch.randn(20, 8), (4, 5), measured={Need("instruction"): text[:, :8]})
    with pytest.raises(FoveateError, match="12 numbers"):
        method(wide, 6)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="train-method focusui"):
        FocusUI().needs(EncoderSpec(4, False))
    with pytest.raises(FoveateError, match="no file"):
        Scorer.load(tmp_path / "none")
    with pytest.raises(FoveateError, match="cut"):
        ui_graph(torch.zeros(3, 10, 10), Grid(3, 3))


def test_neighbours_that_differ_a_little_are_apart_for_the_authors() -> None:
    """Cells of 28 x 28 pixels 9/255 apart are 1.71 from each other in one frame, 2.42 in the authors' two."""
    greys = torch.tensor([100.0, 109.0, 100.0, 109.0, 109.0, 100.0]) / 255
    pixels = greys.view(2, 3).repeat_interleave(28, 0).repeat_interleave(28, 1).expand(3, -1, -1)
    expected = [1 / max(1.0, math.log(n + 1)) for n in (1, 3, 2, 3, 3, 2)]
    torch.testing.assert_close(ui_graph(pixels, Grid(2, 3)), torch.tensor(expected))
    assert float(ui_graph(pixels, Grid(2, 3), copies=1)[0]) == pytest.approx(1 / math.log(7))


def released(size: int) -> dict[str, torch.Tensor]:
    """A checkpoint in the authors' layout, and an encoder of theirs for a check."""
    torch.manual_seed(3)
    found = {"model.embed_tokens.weight": torch.randn(7, size)}
    for side in ("vision", "text"):
        parts = {
            "attn": torch.nn.MultiheadAttention(size, 8, batch_first=True),
            "layer_norm": torch.nn.LayerNorm(size),
            "mlp": torch.nn.Sequential(torch.nn.Linear(size, size), torch.nn.GELU(), torch.nn.Linear(size, size)),
        }
        for part, module in parts.items():
            for name, value in module.state_dict().items():
                found[f"patch_scorer.{side}_enhancer.{part}.{name}"] = value + 0.1 * torch.randn_like(value)
    return found


def test_a_released_scorer_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = released(16)
    first = {name: value.bfloat16() for name, value in tensors.items() if "vision" in name or "embed" in name}
    second = {name: value.bfloat16() for name, value in tensors.items() if "text" in name}
    weight_map = {}
    for shard, part in (("a.safetensors", first), ("b.safetensors", second)):
        save_file(part, tmp_path / shard)
        weight_map |= dict.fromkeys(part, shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps({"image_drop_end_token_id": 5}))
    assert main(["convert-scorer", str(tmp_path), str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == 16
    scorer = Scorer.load(tmp_path / "out" / "focusui.safetensors")
    image, text = torch.randn(9, 16), torch.randn(4, 16)
    sides = []
    for side, x in (("vision", image), ("text", text)):
        own = {name.split("_enhancer.")[1]: v.bfloat16().float() for name, v in tensors.items() if f"{side}_e" in name}
        attention = torch.nn.MultiheadAttention(16, 8, batch_first=True)
        attention.load_state_dict(
            {name.removeprefix("attn."): v for name, v in own.items() if name.startswith("attn.")}
        )
        x = x + attention.eval()(x[None], x[None], x[None])[0][0]
        x = F.layer_norm(x, (16,), own["layer_norm.weight"], own["layer_norm.bias"])
        x = F.gelu(x @ own["mlp.0.weight"].T + own["mlp.0.bias"]) @ own["mlp.2.weight"].T + own["mlp.2.bias"]
        sides.append(F.normalize(x.tanh(), dim=-1))
    torch.testing.assert_close(scorer(image, text), (sides[0] @ sides[1].T).mean(dim=1), atol=1e-5, rtol=1e-5)
    method = PosPad("divprune", embedding=str(tmp_path / "out" / "marker.safetensors"))
    marked = method(VisualTokens.of_grid(torch.randn(6, 16), (2, 3)), 3).features
    assert marked is not None
    assert (marked == tensors["model.embed_tokens.weight"].bfloat16().float()[5]).all(dim=1).any()


def test_what_holds_no_released_scorer(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="no scorer of FocusUI here"):
        released_scorer({"model.layers.0.weight": torch.zeros(2)})
    broken = released(16)
    broken.pop("patch_scorer.text_enhancer.mlp.2.bias")
    with pytest.raises(FoveateError, match=r"this is no scorer of FocusUI.*text\.mlp\.2\.bias"):
        released_scorer(broken)
    assert main(["convert-scorer", str(tmp_path), str(tmp_path / "out")]) == 2

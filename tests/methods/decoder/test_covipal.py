"""CoViPAL's module against a loop, folders of weights, and the method in live models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import foveate
from foveate.core.errors import FoveateError
from foveate.core.network_folder import save_networks
from foveate.core.tokens import EncoderSpec
from foveate.methods.decoder.covipal import CoViPAL, Pruner
from foveate.testing.layer_tokens import WIDTH, layer_tokens
from foveate.testing.live import answers, logits
from tests.runtime.test_decoder_hooks import deep

ROWS = (((3, 4),), ((2, 3), (4, 3)), ((4, 5),))


def folder(path: Path, size: int, layers: tuple[int, ...] = (1,), seed: int = 0) -> Path:
    """Modules with random weights."""
    torch.manual_seed(seed)
    built = {"size": size, "width": 8, "heads": 2}
    save_networks(path, "covipal", {layer: Pruner(**built) for layer in layers}, built)
    return path


def norm(x: Tensor, layer: torch.nn.LayerNorm | None = None) -> Tensor:
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
    return x if layer is None else x * layer.weight + layer.bias


@torch.no_grad()
def by_hand(pruner: Pruner, image: Tensor, text: Tensor) -> list[float]:
    """Scores, token by token and head by head."""
    x = [pruner.image.weight @ norm(v) + pruner.image.bias for v in image]
    x += [pruner.text.weight @ norm(v) + pruner.text.bias for v in text]
    y = [norm(v, pruner.before) for v in x]
    weight, bias, part = pruner.attention.in_proj_weight, pruner.attention.in_proj_bias, pruner.width // pruner.heads
    query, key, value = ([w @ v + b for v in y] for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True))
    found = []
    for i in range(len(image)):
        heads = []
        for head in range(pruner.heads):
            own = slice(head * part, (head + 1) * part)
            shares = [math.exp(float(query[i][own] @ k[own]) / math.sqrt(part)) for k in key]
            heads.append(sum(share / sum(shares) * v[own] for share, v in zip(shares, value, strict=True)))
        h = x[i] + pruner.attention.out_proj.weight @ torch.cat(heads) + pruner.attention.out_proj.bias
        z = pruner.mlp[0].weight @ norm(h, pruner.after) + pruner.mlp[0].bias
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        h = h + pruner.mlp[2].weight @ z + pruner.mlp[2].bias
        found.append(float(pruner.head[1].weight[0] @ norm(h, pruner.head[0]) + pruner.head[1].bias))
    return found


def test_scores_equal_the_loop() -> None:
    torch.manual_seed(3)
    pruner = Pruner(WIDTH, 8, 2)
    with torch.no_grad():
        for parameter in pruner.parameters():
            parameter.normal_()
        image, text = torch.randn(5, WIDTH), torch.randn(3, WIDTH)
        torch.testing.assert_close(
            pruner(image, text), torch.tensor(by_hand(pruner, image, text)), atol=1e-4, rtol=1e-4
        )
        assert not torch.allclose(pruner(image, text), pruner(image, text + torch.randn(WIDTH)))
    assert Pruner(WIDTH, 9, 4).heads == 3


def test_the_best_go_on_in_view_of_the_question(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", WIDTH)
    tokens, method = layer_tokens(12, seed=1), CoViPAL(str(path))
    torch.manual_seed(0)
    scores = by_hand(Pruner(WIDTH, 8, 2), tokens.features, tokens.prompt.hidden[-4:])
    selection = method(tokens, 5)
    selection.check(12)
    assert selection.features is None
    assert selection.indices.tolist() == sorted(sorted(range(12), key=lambda i: -scores[i])[:5])
    assert len(method(tokens, 12)) == 12
    assert method.layers(32) == (1,)
    before = selection.indices.tolist()
    folder(path, WIDTH, seed=5)  # a file that changes is read again
    assert method(tokens, 5).indices.tolist() != before


@pytest.mark.parametrize("kind", ["llava", "qwen2.5-vl", "qwen3-vl"])
def test_live(kind: str, tmp_path: Path) -> None:
    specimen, model = deep(kind)
    path = folder(tmp_path / "weights", model.config.get_text_config().hidden_size, (2, 4))
    inputs = specimen.prompts(model, ROWS)
    uncompressed = logits(model, inputs)
    with foveate.compress(model, f"covipal(weights={str(path)!r}):100%"):
        torch.testing.assert_close(logits(model, inputs), uncompressed, atol=1e-5, rtol=1e-5)
    with foveate.compress(model, f"covipal(weights={str(path)!r}):50%") as handle:
        written = answers(model, inputs)
        images = handle.report().images
        assert answers(model, inputs, use_cache=False) == written
        assert answers(model, specimen.prompts(model, ROWS[:1]))[0] == written[0]
    assert [[layer.layer for layer in image.layers] for image in images] == [[2, 4]] * len(images)
    for image in images:
        half = round(0.5 * image.tokens_in)
        assert [layer.tokens_kept for layer in image.layers] == [half, round(0.5 * half)]


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    tokens = layer_tokens(9)
    with pytest.raises(FoveateError, match=r"needs trained weights: covipal\(weights=FOLDER\)"):
        CoViPAL().needs(EncoderSpec(1, False))
    with pytest.raises(FoveateError, match="is no folder with config.json"):
        CoViPAL(str(tmp_path / "none"))(tokens, 3)
    path = folder(tmp_path / "weights", WIDTH, (2, 3))
    with pytest.raises(FoveateError, match="layers 2, 3, not for layer 1"):
        CoViPAL(str(path))(tokens, 3)
    wide = folder(tmp_path / "wide", 10)
    with pytest.raises(FoveateError, match="of 10 numbers, and this model's have 6"):
        CoViPAL(str(wide))(tokens, 3)
    about = json.loads((path / "config.json").read_text())
    for change, words in (({"width": 16}, "do not belong"), ({"kind": "dpn"}, "holds nothing"), ({"layers": []}, "no")):
        (path / "config.json").write_text(json.dumps(about | change))
        with pytest.raises(FoveateError, match=words):
            CoViPAL(str(path))(layer_tokens(9, layer=2), 3)
    (path / "config.json").write_text(json.dumps(about))
    (path / "model.safetensors").write_bytes(b"not")
    with pytest.raises(FoveateError, match="do not belong together"):
        CoViPAL(str(path))(layer_tokens(9, layer=2), 3)

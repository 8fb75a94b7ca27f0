"""The Dynamic Pyramid Network: pooling against loops, the router by hand, and the method in live models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import foveate
from foveate.core.errors import FoveateError
from foveate.core.in_decoder import LayerTokens
from foveate.core.network_folder import save_networks
from foveate.core.tokens import Crop, EncoderSpec, Grid
from foveate.methods.decoder import dpn
from foveate.methods.decoder.dpn import DPN, Router
from foveate.testing.layer_tokens import WIDTH, changed, layer_tokens
from foveate.testing.live import answers, logits
from tests.runtime.test_decoder_hooks import deep

ROWS = (((4, 5),), ((3, 6), (6, 4)), ((5, 5),))


def folder(
    path: Path, size: int, layers: tuple[int, ...] = (1,), favourite: int | None = None, scaled: bool | None = False
) -> Path:
    """Routers with random weights, or such that always find one expert best, the last one where it has fewer."""
    torch.manual_seed(0)
    strides = dpn.default_strides(layers) if len(layers) > 1 else {layers[0]: (1, 2, 4)}
    routers = {layer: Router(size, strides[layer]) for layer in layers}
    with torch.no_grad():
        for router in routers.values():
            if favourite is not None:  # the norm gives its bias alone, and every hidden unit is positive
                router.norm.weight.zero_()
                router.norm.bias.fill_(1)
                router.layers[0].weight.fill_(1)
                router.layers[2].weight.zero_()[min(favourite, len(router.strides) - 1)] = 10
    built = {"size": size, "strides": {layer: list(own) for layer, own in strides.items()}}
    save_networks(path, "dpn", routers, built if scaled is None else built | {"scaled": scaled})
    return path


def on_grid(rows: int, columns: int, gone: tuple[int, ...] = (), separators: int = 0) -> LayerTokens:
    """Tokens of a grid, some of them gone, and separators after them."""
    left = [place for place in range(rows * columns) if place not in gone]
    index = torch.full((rows * columns,), -1)
    index[left] = torch.arange(len(left))
    tokens = layer_tokens(len(left) + separators, seed=rows)
    return changed(tokens, layout=lambda: (Crop(index, Grid(rows, columns)),))


def by_hand(tokens: LayerTokens, stride: int, operation: str) -> list[tuple[int, list[int], list[float]]]:
    """(first token, members, features) of every window, in the order of first tokens."""
    (crop,) = tokens.crops
    cells = {
        (r, c): int(crop.index[r * crop.grid.columns + c])
        for r in range(crop.grid.rows)
        for c in range(crop.grid.columns)
        if int(crop.index[r * crop.grid.columns + c]) >= 0
    }
    rows, columns = sorted({r for r, _ in cells}), sorted({c for _, c in cells})
    groups: dict[object, list[int]] = {}
    for (r, c), token in cells.items():
        groups.setdefault((rows.index(r) // stride, columns.index(c) // stride), []).append(token)
    for token in set(range(len(tokens))) - set(cells.values()):
        groups[token] = [token]
    found = []
    for members in sorted(groups.values(), key=min):
        values = tokens.features[members].T.tolist()
        found.append((min(members), members, [max(v) if operation == "max" else sum(v) / len(v) for v in values]))
    return found


@pytest.mark.parametrize("operation", ["max", "mean"])
@pytest.mark.parametrize(
    ("rows", "columns", "gone", "separators"),
    [(4, 4, (), 0), (5, 7, (), 3), (4, 6, (0, 1, 7, 12, 13), 1), (4, 6, (6, 7, 8, 9, 10, 11), 0)],
)
def test_windows_equal_the_loop(
    rows: int, columns: int, gone: tuple[int, ...], separators: int, operation: str
) -> None:
    tokens = on_grid(rows, columns, gone, separators)
    for stride in (2, 4):
        selection = dpn.pooled(tokens, stride, operation, lambda: torch.tensor(0.5))
        selection.check(len(tokens))
        expected = by_hand(tokens, stride, operation)
        assert selection.indices.tolist() == [first for first, _, _ in expected]
        assert [selection.sources(row).tolist() for row in range(len(selection))] == [sorted(m) for _, m, _ in expected]
        assert selection.features is not None
        torch.testing.assert_close(selection.features, 0.5 * torch.tensor([f for _, _, f in expected]))


def test_a_pyramid() -> None:
    """24 x 24 pooled by 2 and then by 4 is 576, 144, 9: the second windows are of what the first left."""
    places, grid = torch.arange(576), Grid(24, 24)
    tokens = changed(layer_tokens(576), layout=lambda: (Crop(places, grid),))
    first = dpn.pooled(tokens, 2)
    assert len(first) == 144
    index = torch.full((576,), -1)
    index[first.indices] = torch.arange(144)
    assert first.features is not None
    later = changed(layer_tokens(144), features=first.features, layout=lambda: (Crop(index, grid),))
    second = dpn.pooled(later, 4)
    cells = tokens.features.view(3, 8, 3, 8, WIDTH)
    assert second.features is not None
    torch.testing.assert_close(second.features, cells.amax(dim=(1, 3)).view(9, WIDTH))


def test_tiles_are_pooled_each_by_itself() -> None:
    crops = (Crop(torch.arange(4), Grid(2, 2)), Crop(torch.arange(4, 12), Grid(2, 4)))
    window = dpn.windows(crops, 13, 2)
    assert window.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 1, 1, 2, 2, 3]


@torch.no_grad()
def test_the_router_by_hand() -> None:
    torch.manual_seed(0)
    router, context = Router(8, (1, 2, 4)), torch.randn(8)
    assert sum(p.numel() for p in router.layers.parameters()) == 8 * 2 + 2 * 3
    norm = (context - context.mean()) / (context.var(unbiased=False) + 1e-5).sqrt()
    hidden = [float(row @ norm) for row in router.layers[0].weight]
    hidden = [h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in hidden]
    scores = [math.exp(sum(w * h for w, h in zip(row, hidden, strict=True)) / 10) for row in router.layers[2].weight]
    torch.testing.assert_close(router(context), torch.tensor([s / sum(scores) for s in scores]))


def test_the_best_expert_pools_and_small_images_stay(tmp_path: Path) -> None:
    for favourite, stride in enumerate((1, 2, 4)):
        path = folder(tmp_path / str(stride), WIDTH, favourite=favourite)
        tokens = on_grid(4, 5)
        selection = DPN(str(path))(tokens, None)
        assert len(selection) == {1: 20, 2: 6, 4: 2}[stride]
        assert (selection.features is None) == (stride == 1)
        assert len(DPN(str(path))(on_grid(3, 5), None)) == 15
        scaled = DPN(str(path), scaled=True)(tokens, None)
        assert scaled.features is not None
        whole = tokens.features if selection.features is None else selection.features
        router = dpn.network_of(str(path), "dpn", dpn.build, 1, "cpu")
        torch.testing.assert_close(scaled.features, whole * float(router(dpn.context(tokens)).max()))
        # As the folder says, and as the paper does where it says nothing.
        paper = DPN(str(folder(tmp_path / f"{stride}-paper", WIDTH, favourite=favourite, scaled=None)))(tokens, None)
        assert paper.features is not None and torch.equal(paper.features, scaled.features)
    assert dpn.default_layers(32) == (8, 16, 24)
    assert dpn.default_layers(4) == (1, 2, 3)
    assert dpn.default_layers(2) == (1,)
    assert dpn.default_strides((8, 16, 24)) == {8: (1, 2, 4), 16: (1, 2, 4), 24: (1, 2)}


@pytest.mark.parametrize("kind", ["llava", "llava-next", "qwen2.5-vl", "qwen3-vl"])
def test_live(kind: str, tmp_path: Path) -> None:
    specimen, model = deep(kind)
    size = model.config.get_text_config().hidden_size
    inputs = specimen.prompts(model, ROWS)
    uncompressed = logits(model, inputs)
    one = folder(tmp_path / "one", size, (2, 4), favourite=0)
    with foveate.compress(model, f"dpn(weights={str(one)!r})"):
        torch.testing.assert_close(logits(model, inputs), uncompressed, atol=1e-5, rtol=1e-5)
    two = folder(tmp_path / "two", size, (2, 4), favourite=1)
    with foveate.compress(model, f"dpn(weights={str(two)!r})") as handle:
        written = answers(model, inputs)
        images = handle.report().images
        assert answers(model, inputs, use_cache=False) == written
        assert answers(model, specimen.prompts(model, ROWS[:1]))[0] == written[0]
    for image in images:
        layers = [layer.tokens_kept for layer in image.layers]
        if image.tokens_in >= 16:
            assert layers[0] < image.tokens_in / 2 or kind == "llava-next"  # newlines stay
            assert layers[1] < layers[0] or layers[0] < 16


def test_gradients_reach_the_image(tmp_path: Path) -> None:
    """Under a plan a language model learns with pooled images: gradients reach what made them."""
    specimen, model = deep("llava")
    path = folder(tmp_path / "two", model.config.get_text_config().hidden_size, (2, 4), favourite=1)
    inputs = specimen.prompts(model, ROWS[:1])
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    model.train()
    model.zero_grad()
    with foveate.compress(model, f"dpn(weights={str(path)!r})"):
        model(**inputs, labels=labels).loss.backward()
    first = next(model.model.multi_modal_projector.parameters())
    assert first.grad is not None and float(first.grad.abs().sum()) > 0


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_gradient_of_a_maximum_is_its_members(stride: int) -> None:
    """That of max pooling reaches the largest token of a window alone, times the factor, and the factor itself."""
    tokens, factor = on_grid(4, 8), torch.tensor(0.3, requires_grad=True)
    selection = dpn.pooled(tokens, stride, "max", lambda: factor)
    features = tokens.features.clone().requires_grad_()
    assert selection.remade is not None and selection.features is not None
    remade = selection.remade(features)
    torch.testing.assert_close(remade, selection.features)
    weight = torch.randn_like(remade)
    (remade * weight).sum().backward()
    cells = tokens.features.detach().view(4 // stride, stride, 8 // stride, stride, WIDTH).clone().requires_grad_()
    expected = cells.amax(dim=(1, 3)).flatten(0, 1)
    (0.3 * expected * weight).sum().backward()
    assert features.grad is not None and cells.grad is not None and factor.grad is not None
    torch.testing.assert_close(features.grad, cells.grad.reshape(32, WIDTH))
    torch.testing.assert_close(factor.grad, (expected * weight).sum().detach())


def test_a_model_that_learns_draws_experts_and_routers_learn_with_it() -> None:
    """Experts are drawn by their probabilities, and the loss reaches routers; a model that answers takes the best."""
    specimen, model = deep("llava-next")
    routers = nn.ModuleDict({str(layer): Router(32, (1, 2)) for layer in (2, 4)})
    noted: list[tuple[int, torch.Tensor]] = []
    inputs = specimen.prompts(model, (((7, 9),),))
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    with foveate.compress(model, DPN().learning(routers, noted)) as handle:
        model.train()
        counts = set()
        for draw in range(12):
            torch.manual_seed(draw)
            model(**inputs, labels=labels).loss.backward()
            (image,) = handle.report().images
            counts.add(tuple(layer.tokens_kept for layer in image.layers))
        assert len(counts) > 2 and {layer for layer, _ in noted} == {2, 4}
        for router in routers.values():
            assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in router.parameters())
        model.eval()
        noted.clear()
        assert answers(model, inputs) == answers(model, inputs) and not noted
    assert "weights" not in str(handle.plan)


def test_few_tokens_are_not_drawn() -> None:
    """Of 64 tokens windows of 2 x 2 leave 16, fewer than 18."""
    tokens = on_grid(8, 8)
    assert {dpn.drawn(tokens, torch.tensor([0.1, 0.4, 0.5]), (1, 2, 4)) for _ in range(20)} == {0}
    assert dpn.drawn(tokens, torch.tensor([0.0, 0.5, 0.5]), (1, 2, 4)) == 0
    assert {dpn.drawn(on_grid(8, 10), torch.tensor([0.5, 0.4, 0.1]), (1, 2, 4)) for _ in range(40)} == {0, 1}


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="needs trained weights: .* or one next to the model's weights as dpn"):
        DPN().needs(EncoderSpec(1, False))
    with pytest.raises(FoveateError, match="max or mean"):
        DPN("x", operation="sum")  # ty: ignore[invalid-argument-type]
    path = folder(tmp_path / "weights", WIDTH)
    with pytest.raises(FoveateError, match="takes no budget"):
        DPN(str(path))(on_grid(4, 4), 3)
    with pytest.raises(FoveateError, match="of 10 numbers"):
        DPN(str(folder(tmp_path / "wide", 10)))(on_grid(4, 4), None)
    with pytest.raises(FoveateError, match="foveate train-method dpn"):
        DPN(str(tmp_path / "none")).layers(4)

"""STViT: super tokens, their border, and the authors' weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.stvit import (
    STViTConfig,
    STViTForImageClassification,
    STViTModel,
    convert_released_state,
)
from foveate.models.encoders.stvit.configuration import SIZES
from foveate.models.encoders.stvit.modeling import SuperTokenAttention
from foveate.models.encoders.stvit.super_tokens import associate, cells_of, raster_of, sample, spread
from tests.models.encoders.operations import built_without_weights, multiplications
from tests.models.encoders.released_stvit import FIELDS, pixels, projection, weights
from tests.models.encoders.small_encoders import images, small_config

(GOLDEN,) = json.loads((Path(__file__).parents[2] / "golden" / "stvit.json").read_text(encoding="utf-8"))["cases"]


def classifier(**changes: Any) -> STViTForImageClassification:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return STViTForImageClassification(small_config("stvit", num_labels=5, **changes)).eval()


def released(**changes: Any) -> STViTForImageClassification:
    """The model of the golden values."""
    config = STViTConfig(**FIELDS | changes)
    model = STViTForImageClassification(config).eval()
    result = model.load_state_dict(convert_released_state(weights(), config), strict=False)
    assert not result.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in result.missing_keys)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_the_authors_code(attention):
    model = released()
    model.set_attn_implementation(attention)
    x = pixels().requires_grad_()
    output = model(x, output_hidden_states=True)
    (output.logits * projection()).sum().backward()
    first = output.hidden_states[1].view(2, 9, 9, 8).permute(0, 3, 1, 2)[:, ::4, ::4, ::2]
    second = output.hidden_states[2].view(2, 5, 5, 12).permute(0, 3, 1, 2)[:, ::4, ::2]
    close = {"atol": 2e-5, "rtol": 1e-4}
    for values, name in ((first, "first"), (second, "second"), (output.hidden_states[-1][..., ::4], "tokens")):
        torch.testing.assert_close(values.detach().flatten(), torch.tensor(GOLDEN[name]), **close)
    torch.testing.assert_close(output.logits.detach().flatten(), torch.tensor(GOLDEN["logits"]), **close)
    torch.testing.assert_close(x.grad[:, :, 5::9, 3::9].flatten(), torch.tensor(GOLDEN["gradient"]), **close)


def test_a_masked_border_gives_other_values():
    output, masked = (released(**changes)(pixels()).logits for changes in ({}, {"border": "masked"}))
    assert (output - masked).abs().max() > 0.01


def test_weights_of_other_networks_are_refused():
    config = STViTConfig(**FIELDS)
    with pytest.raises(FoveateError, match=r"'absolute_pos_embed' is no weight of STViT"):
        convert_released_state({"absolute_pos_embed": torch.zeros(1)}, config)
    with pytest.raises(FoveateError, match="the weights have a stage 4, and the configuration has 3"):
        convert_released_state({"layers.3.blocks.0.attn.stoken_refine.qkv.bias": torch.zeros(12)}, config)


def test_constants_of_the_authors_fold_and_unfold_are_left_out():
    state = {f"layers.0.blocks.0.attn.{name}.weights": torch.eye(9).view(9, 1, 3, 3) for name in ("fold", "unfold")}
    assert convert_released_state(state, STViTConfig(**FIELDS)) == {}


def loop(raster: Tensor, side: int, iterations: int, masked: bool) -> Tensor:
    """Super tokens of one image, mapped back, token by token and neighbor by neighbor: `(D, H, W)` to the same shape.

    Without attention among super tokens. Padding is real tokens of zeros, or ignored.
    """
    channels, height, width = raster.shape
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    last = (height, width) if masked else (rows * side, columns * side)
    tokens = {
        (y, x): raster[:, y, x] if y < height and x < width else torch.zeros(channels)
        for y in range(last[0])
        for x in range(last[1])
    }
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    members = {cell: [place for place in tokens if (place[0] // side, place[1] // side) == cell] for cell in cells}
    centers = {cell: sum(tokens[place] for place in members[cell]) / len(members[cell]) for cell in cells}
    shares: dict[tuple[int, int], dict[tuple[int, int], Tensor]] = {}
    for iteration in range(iterations):
        if iteration:
            centers = updated(tokens, shares, cells)
        for place, token in tokens.items():
            logits = {}
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    cell = (place[0] // side + i, place[1] // side + j)
                    if cell in centers or not masked:
                        center = centers.get(cell, torch.zeros(channels))
                        logits[cell] = (token @ center / channels**0.5).exp()
            shares[place] = {cell: logit / sum(logits.values()) for cell, logit in logits.items()}
    centers = updated(tokens, shares, cells)
    output = torch.zeros_like(raster)
    for y in range(height):
        for x in range(width):
            output[:, y, x] = sum(share * centers[cell] for cell, share in shares[y, x].items() if cell in centers)
    return output


def updated(tokens: Any, shares: Any, cells: Any) -> dict[tuple[int, int], Tensor]:
    """The means of all tokens by their shares of each cell."""
    centers = {}
    for cell in cells:
        near = [place for place in tokens if cell in shares[place]]
        centers[cell] = sum(shares[place][cell] * tokens[place] for place in near) / sum(
            shares[place][cell] for place in near
        )
    return centers


def mapped(raster: Tensor, side: int, iterations: int = 1, masked: bool = False) -> Tensor:
    """Super tokens mapped back, without attention among them."""
    cells, grid = cells_of(raster, side)
    real = cells_of(torch.ones_like(raster[:1, :1]), side)[0] if masked else None
    association = associate(cells, grid, iterations, real)
    back = spread(sample(cells, association, grid), association)
    return raster_of(back, grid, side, *raster.shape[-2:])


@pytest.mark.parametrize("masked", [False, True], ids=["zero", "masked"])
@pytest.mark.parametrize(("size", "side"), [((8, 12), 4), ((7, 5), 3), ((4, 6), 2)])
@pytest.mark.parametrize("iterations", [1, 3])
def test_equals_a_loop_over_tokens_and_neighbors(iterations, size, side, masked):
    raster = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    for image, output in zip(raster, mapped(raster, side, iterations, masked), strict=True):
        torch.testing.assert_close(output, loop(image, side, iterations, masked), atol=1e-5, rtol=1e-4)


def test_a_constant_loses_mass_at_the_border_unless_it_is_masked():
    """0.7 in 4 channels: every logit is 0.98, and neighbors that do not exist have 0."""
    constant = torch.full((1, 4, 8, 8), 0.7)
    share = math.exp(0.98)
    edge, corner = (0.7 * count * share / (count * share + 9 - count) for count in (6, 4))
    assert (round(edge, 4), round(corner, 4)) == (0.5894, 0.4765)
    expected = torch.full((4, 4), 0.7)
    expected[0] = expected[-1] = expected[:, 0] = expected[:, -1] = edge
    expected[0, 0] = expected[0, -1] = expected[-1, 0] = expected[-1, -1] = corner
    output = mapped(constant, 2)
    torch.testing.assert_close(output, F.interpolate(expected[None, None], scale_factor=2).expand(1, 4, 8, 8))
    torch.testing.assert_close(mapped(constant, 2, masked=True), constant)
    torch.testing.assert_close(mapped(constant[..., :7, :5], 2, masked=True), constant[..., :7, :5])


def test_weights_of_a_token_sum_to_one_and_padding_has_none():
    raster = torch.randn(1, 4, 7, 5)
    cells, grid = cells_of(raster, 3)
    assert cells.shape == (1, 6, 9, 4) and grid == Grid(3, 2)
    torch.testing.assert_close(associate(cells, grid).weights.sum(-1), torch.ones(1, 6, 9))
    real = cells_of(torch.ones(1, 1, 7, 5), 3)[0]
    masked = associate(cells, grid, real=real)
    torch.testing.assert_close(masked.weights.sum(-1, keepdim=True), real)
    torch.testing.assert_close(masked.mass.sum(), torch.tensor(35.0))


def test_cells_are_the_inverse_of_the_raster():
    raster = torch.randn(2, 3, 7, 5)
    cells, grid = cells_of(raster, 3)
    assert torch.equal(raster_of(cells, grid, 3, 7, 5), raster)
    assert torch.equal(cells[1, 2, 4], raster[1, :, 4, 1])  # row 1, column 0 of cells; in it row 1, column 1


def test_gradients_flow_through_values_alone():
    raster = torch.randn(1, 4, 6, 6, requires_grad=True)
    cells, grid = cells_of(raster, 2)
    association = associate(cells, grid, 2)
    assert not association.weights.requires_grad and not association.mass.requires_grad
    # With fixed weights the map is linear, and its gradient is what the transposed map gives.
    factors = torch.randn(1, 4, 6, 6)
    (mapped(raster, 2, 2) * factors).sum().backward()
    with torch.no_grad():
        for place in ((0, 0), (3, 2), (5, 5)):
            unit = torch.zeros(1, 4, 6, 6)
            unit[0, 1, place[0], place[1]] = 1
            back = spread(sample(cells_of(unit, 2)[0], association, grid), association)
            expected = (raster_of(back, grid, 2, 6, 6) * factors).sum()
            torch.testing.assert_close(raster.grad[0, 1, place[0], place[1]], expected, atol=1e-5, rtol=1e-4)


def test_cells_of_one_token_are_plain_attention():
    torch.manual_seed(0)
    config = STViTConfig(**FIELDS | {"cell_sizes": [1, 1, 1]})
    config._attn_implementation = "sdpa"
    module, raster = SuperTokenAttention(config, 0).eval(), torch.randn(2, 8, 3, 5)
    layer = module.self_attention
    x = raster.flatten(2).mT
    heads = [part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (layer.q_proj, layer.k_proj, layer.v_proj)]
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(module(raster), layer.out_proj(mixed).mT.view(2, 8, 3, 5))


def test_grids_of_the_papers_sizes():
    config = STViTConfig()
    assert config.output_grid(224, 224) == Grid(7, 7) and config.output_grid(384, 384) == Grid(12, 12)
    assert config.output_grid(228, 36) == Grid(8, 2)  # 57 x 9, 29 x 5, 15 x 3, 8 x 2
    assert (config.hidden_size, config.num_hidden_layers) == (512, 20)


#: Millions of parameters. `foveate flops` has the GMACs.
PARAMETERS = {"small": 25, "base": 52, "large": 95}


@pytest.mark.parametrize("size", SIZES)
def test_parameters_of_the_papers_sizes(size):
    config = STViTConfig.of_size(size, num_labels=1000)
    model = built_without_weights(lambda: STViTForImageClassification(config))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == PARAMETERS[size]


def test_attention_among_super_tokens_is_cheap():
    """What super tokens save of the operations of the encoder at 224 and at 448 pixels, compared with all tokens."""
    plain = STViTConfig(cell_sizes=[1, 1, 1, 1])
    saved = []
    for side in (224, 448):
        models = (built_without_weights(lambda config=config: STViTModel(config)) for config in (STViTConfig(), plain))
        few, all_tokens = (multiplications(model, side, side) for model in models)
        saved.append(round(1 - few / all_tokens, 2))
    assert saved == [0.53, 0.79]


def test_a_classifier_is_saved_and_loaded(tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert type(again) is STViTForImageClassification
    output = again(images(), torch.tensor([0, 3]))
    assert torch.equal(output.logits, model(images()).logits)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, torch.tensor([0, 3])))


def test_layer_scale_starts_with_its_value():
    model = classifier(layer_scale_init_value=1e-6)
    assert isinstance(model.encoder.stages[0].blocks[0].scale1, nn.Identity)
    assert torch.equal(model.encoder.stages[1].blocks[0].scale2.weight, torch.full((16, 1, 1), 1e-6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell_sizes": [4, 2]}, r"cell_sizes of stvit must be a list of 3 values, one per stage, not \[4, 2\]"),
        ({"cell_sizes": [4, 2, 0]}, "cell_sizes of the encoder stvit must be a list of whole numbers from 1 on"),
        ({"layer_scale": True}, "layer_scale of stvit must be a list of 3 values"),
        ({"depths": [1, 1]}, "as many depths as hidden_sizes"),
        ({"num_heads": [1, 3, 2]}, "the 3 heads of a stage of stvit do not divide its width 16"),
        ({"hidden_sizes": [7, 16, 24]}, "the stem of stvit needs an even first width, not 7"),
        ({"num_iterations": 0}, "num_iterations of the encoder stvit must be a whole number from 1 on"),
        ({"border": "wrap"}, "border of stvit must be zero or masked, not 'wrap'"),
        ({"mlp_ratio": 0.0}, "mlp_ratio of stvit leaves no hidden width"),
        ({"patch_size": 8}, "patch_size of stvit must be 4"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(FoveateError, match=message):
        small_config("stvit", **changes)


def test_unknown_sizes():
    with pytest.raises(FoveateError, match="no STViT of size 'tiny'; possible are small, base, large"):
        STViTConfig.of_size("tiny")

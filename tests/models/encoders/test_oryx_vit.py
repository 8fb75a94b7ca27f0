"""OryxViT: the authors' numbers and weights, SigLIP, and views of several sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.oryx_vit import OryxViTConfig, OryxViTModel, convert_released_state
from foveate.models.encoders.patch_size import with_patch_size
from tests.models.encoders.operations import built_without_weights
from tests.models.encoders.released_oryx_vit import FIELDS, SIZES, pixels, projection, weights
from tests.models.encoders.small_encoders import images, small_config, small_encoder
from tests.models.llava.small_encoder_llava import llava

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "oryx_vit.json").read_text(encoding="utf-8"))["cases"]


def released() -> OryxViTModel:
    """The model of the golden values."""
    config = OryxViTConfig(**FIELDS)
    model = OryxViTModel(config).eval()
    model.load_state_dict(convert_released_state(weights(), config))
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", range(len(SIZES)))
def test_equals_the_authors_code(case, attention):
    """The authors encode the three images as one sequence, in which every image attends to itself alone."""
    model = released()
    model.set_attn_implementation(attention)
    x = pixels(case).requires_grad_()
    tokens = model(x).last_hidden_state
    (tokens * projection(case, tokens.shape)).sum().backward()
    close = {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(tokens.detach()[:, ::3, ::2].flatten(), torch.tensor(GOLDEN[case]["tokens"]), **close)
    torch.testing.assert_close(x.grad[:, :, 5::9, 3::9].flatten(), torch.tensor(GOLDEN[case]["gradient"]), **close)


def test_is_siglip_with_the_exact_gelu_before_its_last_norm():
    """At the size of the table of positions, with a SigLIP whose activation is replaced."""
    fields = {name: value for name, value in FIELDS.items() if name != "position_side"}
    siglip: Any = SiglipVisionModel(SiglipVisionConfig(**fields, hidden_act="gelu", vision_use_head=False)).eval()
    model = released()
    renamed = {
        "patches.": "embeddings.patch_embedding.",
        "blocks.": "encoder.layers.",
        ".attention.": ".self_attn.",
        ".norm1.": ".layer_norm1.",
        ".norm2.": ".layer_norm2.",
    }
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        state[name] = value
    state["embeddings.position_embedding.weight"] = state.pop("positions.weight").flatten(2)[0].T
    result = getattr(siglip, "vision_model", siglip).load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert all("post_layernorm" in name for name in result.missing_keys)
    with torch.no_grad():
        expected = siglip(pixels(1), output_hidden_states=True).hidden_states
        output = model(pixels(1), output_hidden_states=True).hidden_states
    for states in zip(output, expected, strict=True):
        torch.testing.assert_close(*states, atol=1e-5, rtol=1e-4)


def test_weights_of_a_whole_oryx_are_those_of_its_tower():
    config = OryxViTConfig(**FIELDS)
    whole = {f"model.vision_tower.vision_tower.{name}": value for name, value in weights().items()}
    whole |= {"model.layers.0.mlp.up_proj.weight": torch.zeros(1), "model.mm_projector.image_newline": torch.zeros(1)}
    expected = convert_released_state(weights(), config)
    converted = convert_released_state(whole, config)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], value) for name, value in expected.items())


def test_layers_after_the_last_block_are_left_out_and_weights_of_other_networks_refused():
    config = OryxViTConfig(**FIELDS)
    head = {name: torch.zeros(12) for name in ("norm.weight", "norm.bias", "attn_pool.latent", "attn_pool.q.weight")}
    assert convert_released_state(weights() | head, config).keys() == convert_released_state(weights(), config).keys()
    with pytest.raises(FoveateError, match="'cls_token' is no weight of OryxViT"):
        convert_released_state(weights() | {"cls_token": torch.zeros(1, 1, 12)}, config)
    with pytest.raises(FoveateError, match="pos_embed has 25 positions, and the configuration 36"):
        convert_released_state(weights(), OryxViTConfig(**FIELDS | {"position_side": 6}))


def test_the_defaults_are_the_blocks_of_siglip_so400m():
    """And positions of 2048 x 2048 pixels."""
    so400m = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    siglip: Any = built_without_weights(lambda: SiglipVisionModel(SiglipVisionConfig(**so400m, patch_size=14)))
    model = built_without_weights(lambda: OryxViTModel(OryxViTConfig()))
    theirs = {name: value.numel() for name, value in siglip.named_parameters() if "encoder.layers." in name}
    assert sum(parameter.numel() for parameter in model.blocks.parameters()) == sum(theirs.values()) == 411_466_608
    assert model.positions.weight.shape == (1, 1152, 128, 128)
    assert OryxViTConfig().output_grid(1536, 1536) == Grid(96, 96)


def test_positions_of_all_sizes_are_one_table():
    """Values that grow linearly with rows keep doing so inside every other grid: bilinear, no aligned corners."""
    model = OryxViTModel(small_config("oryx_vit", position_side=4)).eval()
    rows = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 24, 4, 4)
    model.positions.weight.data.copy_(rows)
    for grid in (Grid(4, 4), Grid(8, 3), Grid(16, 5)):
        centres = (torch.arange(grid.rows) + 0.5) * 4 / grid.rows - 0.5
        expected = centres.clamp(0, 3).view(1, 1, -1, 1).expand(1, 24, *grid)
        torch.testing.assert_close(model.positions(grid).detach(), expected)


def test_other_patches_keep_the_table_of_positions():
    model = small_encoder("oryx_vit")
    small = with_patch_size(model, 4)
    assert torch.equal(small.positions.weight, model.positions.weight)
    with torch.no_grad():
        assert small(images()).last_hidden_state.shape == (2, 12 * 12, 24)


@pytest.mark.parametrize("halve", [False, True])
def test_views_of_several_sizes_with_the_connector_of_oryx(halve):
    """Every view has the tokens that it has alone; at scale 1 the MLP reads twice the features, or half of that."""
    model, _ = llava("oryx_vit", "oryx")
    model.model.multi_modal_projector.options = type(model.model.multi_modal_projector.options)(halve=halve)
    views = images(3)
    sizes = [(48, 32), (16, 40), (48, 32)]
    with torch.no_grad():
        tokens = model.get_image_features(views, image_sizes=torch.tensor(sizes)).pooler_output
        for view, (height, width), own in zip(views, sizes, tokens, strict=True):
            features = model.model.vision_tower(view[None, :, :height, :width]).last_hidden_state
            expected = model.model.multi_modal_projector.project(features * (1 if halve else 2))[0]
            assert len(own) == height // 8 * (width // 8)
            torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "the 5 heads of oryx_vit do not divide its width 24"),
        ({"position_side": 0}, "position_side of the encoder oryx_vit must be a whole number from 1 on"),
        ({"intermediate_size": 1.5}, "intermediate_size of the encoder oryx_vit must be a whole number from 1 on"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(FoveateError, match=message):
        small_config("oryx_vit", **changes)

"""FALCON's encoder: registers of crops, and their attention across crops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.falcon import (
    FalconVisionConfig,
    FalconVisionModel,
    convert_released_state,
    crop_grid,
    crop_positions,
    split_crops,
)
from tests.checkpointing import checkpoint
from tests.models.encoders import released_falcon
from tests.models.encoders.operations import built_without_weights, multiplications
from tests.models.encoders.small_encoders import images, small_config, small_encoder

(GOLDEN,) = json.loads((Path(__file__).parents[2] / "golden" / "falcon.json").read_text(encoding="utf-8"))["cases"]
EPS = {"siglip": 1e-6, "clip": 1e-5}
#: Four crops of two images.
POSITIONS, COUNTS = torch.tensor([[4, 4], [0, 0], [0, 1], [4, 4]]), [3, 1]


@pytest.fixture(params=["siglip", "clip"])
def geometry(request) -> str:
    return request.param


def encoder(geometry: str = "siglip", **changes: Any) -> FalconVisionModel:
    model: Any = small_encoder("falcon_vision", geometry=geometry, **changes)
    return model


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_equals_the_authors_code(geometry):
    """Their encoders of both geometries with `add_crop_embed`, on seven crops of three images.

    The weights are formulas, in `released_falcon`. Their files ran with the attention classes and embeddings of the
    transformers that is installed, in place of an older one's; SigLIP's registers are taken after its last layer norm,
    CLIP's without one, as their `feature_select` does. Patches are every 17th number of all.
    """
    config = FalconVisionConfig(**released_falcon.FIELDS, geometry=geometry, layer_norm_eps=EPS[geometry])
    model = FalconVisionModel(config).eval()
    result = model.load_state_dict(convert_released_state(released_falcon.weights(geometry), config))
    assert not result.missing_keys and not result.unexpected_keys
    call = {"crop_positions": released_falcon.positions(), "crops_per_image": released_falcon.CROPS_PER_IMAGE}
    with torch.no_grad():
        output = model(released_falcon.pixels(), output_patches=True, **call)
    expected = GOLDEN[geometry]
    close(output.last_hidden_state.flatten(), torch.tensor(expected["registers"]))
    close(output.patch_tokens.flatten()[::17], torch.tensor(expected["patches"]))


def test_crop_grids_equal_the_authors_code():
    """`AnchorResize` for random and regular sizes, at most 16 crops of 384 pixels and 9 of 336."""
    for height, width, side, count, rows, columns in GOLDEN["grids"]:
        assert crop_grid(height, width, side, count) == Grid(rows, columns), (height, width)


def test_without_re_attention_it_is_a_transformer_with_more_tokens(geometry):
    """Patches and registers equal the same weights in a SigLIP or CLIP of transformers, whose tokens are extended."""
    model = encoder(geometry)
    with torch.no_grad():
        for block in model.blocks:
            block.re_attention.out_proj.weight.zero_()
            block.re_attention.out_proj.bias.zero_()
        output = model(images(), output_patches=True)
        tokens = model.patches(images()).flatten(2).transpose(1, 2) + model.positions.weight.flatten(2).transpose(1, 2)
        if geometry == "clip":
            tokens = torch.cat([model.cls_token.weight.expand(2, -1, -1), tokens], dim=1)
        extra = model.registers.weight + (model.crop_positions.rows[4] + model.crop_positions.columns[4]) / 2
        x = model.pre_norm(torch.cat([tokens, extra.expand(2, -1, -1)], dim=1))
        for block in model.blocks:
            x = x + block.attention(block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        x = model.norm(x)
    close(output.patch_tokens, x[:, :-5])
    close(output.last_hidden_state, x[:, -5:])
    assert output.patch_tokens.shape[1] == 36 + (geometry == "clip")


def test_re_attention_equals_a_loop_over_images():
    model = encoder()
    block, x = model.blocks[0], torch.randn(7, 11, 24)
    read: list[Any] = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: read.append(args[1]))
    with torch.no_grad():
        model(images(7), crops_per_image=[2, 1, 3, 1])
        output = block(x, read[0])
        mixed = block.attention(block.norm1(x))
        for crops in ([0, 1], [2], [3, 4, 5], [6]):
            together = torch.cat([mixed[crop, -5:] for crop in crops])
            exchanged = block.re_attention(together[None])[0]
            for place, crop in enumerate(crops):
                mixed[crop, -5:] += exchanged[5 * place : 5 * place + 5]
        hidden = x + mixed
        close(output, hidden + block.mlp(block.norm2(hidden)))


def test_crops_reach_each_other_through_re_attention_alone():
    """A changed pixel changes the registers of other crops of its image; without ReAtten and in other images none."""
    pixels, changed = images(4), images(4)
    changed[1, :, 3, 3] += 5
    for re_attention, others in ((True, [0, 1, 2]), (False, [1])):
        model = encoder(re_attention=re_attention)
        with torch.no_grad():
            before, after = (
                model(values, crop_positions=POSITIONS, crops_per_image=COUNTS).last_hidden_state
                for values in (pixels, changed)
            )
        differs = (before - after).abs().amax((1, 2)) > 1e-6
        assert differs.nonzero().flatten().tolist() == others


def test_permuted_crops_give_permuted_registers():
    model, pixels, order = encoder(), images(3), torch.tensor([2, 0, 1])
    positions = torch.tensor([[4, 4], [0, 0], [1, 0]])
    with torch.no_grad():
        plain = model(pixels, crop_positions=positions, crops_per_image=[3]).last_hidden_state
        together = model(pixels[order], crop_positions=positions[order], crops_per_image=[3]).last_hidden_state
        misplaced = model(pixels[order], crop_positions=positions, crops_per_image=[3]).last_hidden_state
    close(together, plain[order])
    assert not torch.allclose(misplaced, plain[order], atol=1e-3)


def test_images_with_other_numbers_of_crops_equal_each_alone():
    model, pixels = encoder(), images(4)
    with torch.no_grad():
        together = model(pixels, crop_positions=POSITIONS, crops_per_image=COUNTS).last_hidden_state
        first = model(pixels[:3], crop_positions=POSITIONS[:3], crops_per_image=[3]).last_hidden_state
        second = model(pixels[3:]).last_hidden_state
    close(together, torch.cat([first, second]))


def test_gradients_of_crops_with_checkpointing():
    grads = []
    for checkpointing in (False, True):
        model = encoder().train()
        if checkpointing:
            checkpoint(model)
        model(images(4), crop_positions=POSITIONS, crops_per_image=COUNTS).last_hidden_state.square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-4)
    assert grads[0]["crop_positions.rows"][1:4].abs().sum() == 0  # of rows that no crop is in
    assert float(grads[0]["crop_positions.columns"][1].abs().sum()) > 0


def test_re_attention_starts_from_the_attention_of_its_block(tmp_path):
    model = encoder()
    for block in model.blocks:
        for name, value in block.attention.state_dict().items():
            assert torch.equal(block.re_attention.state_dict()[name], value)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    state = {name: value for name, value in model.state_dict().items() if "re_attention" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    again = AutoModel.from_pretrained(tmp_path).eval()  # a checkpoint without it
    close(again(images()).last_hidden_state, model(images()).last_hidden_state)


@pytest.mark.parametrize(
    ("geometry", "cls", "config_class"),
    [("clip", CLIPVisionModel, CLIPVisionConfig), ("siglip", SiglipVisionModel, SiglipVisionConfig)],
)
def test_weights_of_clip_and_siglip_are_read(geometry, cls, config_class):
    """Tokens before the first block are those of the tower, and ReAtten has the weights of its attention."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
    tower = cls(config_class(**sizes, image_size=48, patch_size=8)).eval()
    config = small_config("falcon_vision", geometry=geometry, layer_norm_eps=EPS[geometry], num_registers=1)
    model = FalconVisionModel(config).eval()
    result = model.load_state_dict(convert_released_state(tower.state_dict(), config), strict=False)
    assert set(result.missing_keys) == {"registers.weight", "crop_positions.rows", "crop_positions.columns"}
    assert not result.unexpected_keys
    layers = tower.get_submodule("vision_model.encoder.layers" if hasattr(tower, "vision_model") else "encoder.layers")
    for block, layer in zip(model.blocks, layers, strict=True):
        assert torch.equal(block.re_attention.q_proj.weight, layer.self_attn.q_proj.weight)
    read: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: read.append(args[0]))
    with torch.no_grad():
        model(images())
        close(read[0][:, :-1], tower(images(), output_hidden_states=True).hidden_states[0])


def test_weights_of_whole_models_and_of_others():
    config = FalconVisionConfig(**released_falcon.FIELDS)
    state = released_falcon.weights("siglip")
    whole = {f"model.vision_model.{name}": value for name, value in state.items()} | {"lm_head.weight": torch.zeros(1)}
    assert convert_released_state(whole, config).keys() == FalconVisionModel(config).state_dict().keys()
    plain = convert_released_state(state, FalconVisionConfig(**released_falcon.FIELDS, re_attention=False))
    assert not any("re_attention" in name for name in plain)
    with pytest.raises(FoveateError, match="'layer.weight' is no weight of FALCON's encoder"):
        convert_released_state({"layer.weight": torch.zeros(1)}, config)
    with pytest.raises(FoveateError, match="have 5 positions of crops, and max_crops 9 needs 10"):
        convert_released_state(state, FalconVisionConfig(**{**released_falcon.FIELDS, "max_crops": 9}))
    for wrong in ({"image_size": 16}, {"geometry": "clip"}):
        with pytest.raises(FoveateError, match=r"have 9 positions, without \[CLS\]"):
            convert_released_state(state, FalconVisionConfig(**{**released_falcon.FIELDS, **wrong}))


def test_crops_and_their_positions():
    pixels = torch.arange(2 * 6 * 9.0).view(2, 6, 9)
    crops = split_crops(pixels, 3)
    positions = crop_positions(Grid(2, 3), 16)
    assert crops.shape == (6, 2, 3, 3) and positions[0].tolist() == [16, 16]
    for crop, (row, column) in zip(crops, crop_positions(Grid(2, 3), overview=False).tolist(), strict=True):
        assert torch.equal(crop, pixels[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3])
    assert torch.equal(positions[1:], crop_positions(Grid(2, 3), overview=False))
    with pytest.raises(FoveateError, match="6 x 9 pixels is not divided by crops of 4 pixels"):
        split_crops(pixels, 4)
    with pytest.raises(FoveateError, match="cannot be cut into 1 to 16 crops"):
        crop_grid(0, 5, 384)


def test_tokens_and_operations_of_the_paper():
    """576 patches become 64 tokens, 9 times fewer; ReAtten runs on registers alone."""
    config = FalconVisionConfig()
    assert config.output_grid(384, 384) == Grid(1, 64) and not config.spatial
    assert (384 // 16) ** 2 == 9 * 64
    small = {"num_hidden_layers": 2}
    costs = [
        multiplications(
            built_without_weights(lambda on=on: FalconVisionModel(FalconVisionConfig(**small, re_attention=on))),
            384,
            384,
        )
        for on in (True, False)
    ]
    # One crop: four products of the 64 registers with D x D, and their attention, in each of 2 blocks.
    assert costs[0] - costs[1] == 2 * (4 * 64 * 1024**2 + 2 * 64 * 64 * 1024)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"geometry": "vit"}, "geometry of falcon_vision must be siglip or clip, not 'vit'"),
        ({"num_registers": 0}, "num_registers of the encoder falcon_vision must be"),
        ({"max_crops": 0}, "max_crops of the encoder falcon_vision must be"),
        ({"num_attention_heads": 5}, "5 heads of falcon_vision do not divide its width 24"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(FoveateError, match=message):
        small_config("falcon_vision", **changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"crops_per_image": [1, 2]}, "numbers from 1 on whose sum is 2, .* not \\[1, 2\\]"),
        ({"crops_per_image": [2, 0]}, "numbers from 1 on whose sum is 2"),
        ({"crop_positions": torch.tensor([[0, 0]])}, "for each of the 2 crops"),
        ({"crop_positions": torch.tensor([[0, 0], [0, 5]])}, "from 0 to 4"),
        ({"crop_positions": torch.tensor([[0, 0], [-1, 0]])}, "from 0 to 4"),
    ],
)
def test_crops_that_do_not_fit(call, message):
    with pytest.raises(FoveateError, match=message):
        encoder()(images(), **call)

"""Encoders for other patches: what stays, and what the patch kernel answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.patch_size import with_patch_size
from foveate.models.vit_uhd.patch_embedding import resize_matrix, resize_patch_kernel
from tests.models.encoders.small_encoders import SIDE, images, small_encoder

NAMES = ("adventurer", "lookupvit", "plain_vit")


@pytest.mark.parametrize("name", NAMES)
def test_only_the_patch_kernel_and_positions_change(name):
    model = small_encoder(name)
    small = with_patch_size(model, 4)
    assert type(small) is type(model) and not small.training
    assert small.config.patch_size == 4 and small.config.image_size == SIDE and model.config.patch_size == 8
    state = model.state_dict()
    for key, value in small.state_dict().items():
        if key not in ("patches.weight", "positions.weight"):
            assert torch.equal(value, state[key]), key
    positions = F.interpolate(state["positions.weight"], (12, 12), mode=model.positions.mode, align_corners=False)
    torch.testing.assert_close(small.positions.weight, positions)
    assert model.positions.mode == ("bilinear" if name == "lookupvit" else "bicubic")
    with torch.no_grad():
        assert small(images()).last_hidden_state.shape[1] == small.config.output_grid(SIDE, SIDE).size


@pytest.mark.parametrize("name", NAMES)
def test_the_same_patch_size_is_the_same_encoder(name):
    model = small_encoder(name)
    same = with_patch_size(model, 8)
    with torch.no_grad():
        assert torch.equal(same(images()).last_hidden_state, model(images()).last_hidden_state)


@pytest.mark.parametrize("name", ["adventurer", "plain_vit"])
def test_larger_patches_of_an_enlarged_image_are_the_same_tokens(name):
    """The pseudo-inverse loses nothing where patches grow by the resize that it inverts."""
    model = small_encoder(name)
    large = with_patch_size(model, 16, image_size=2 * SIDE)
    patches = F.unfold(images(), 8, stride=8).transpose(1, 2).unflatten(2, (3, 64))  # (B, N, C, 64)
    grown = (patches @ resize_matrix(8, 16).float().T).flatten(2).transpose(1, 2)
    enlarged = F.fold(grown, 2 * SIDE, 16, stride=16)
    with torch.no_grad():
        expected, output = model(images()), large(enlarged)
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(output.prefix_tokens, expected.prefix_tokens, atol=1e-4, rtol=1e-3)


def test_kernels():
    model = small_encoder("plain_vit")
    weight, bias = model.patches.weight, model.patches.bias.detach()
    for kernel in ("pseudo-inverse", "adjoint"):
        small = with_patch_size(model, 1, kernel=kernel)
        assert torch.equal(small.patches.weight, resize_patch_kernel(weight, 1, method=kernel))
        assert torch.equal(small.patches.bias, bias)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        random: Any = with_patch_size(model, 1, kernel="initialize")
    assert random.patches.weight.shape == (24, 3, 1, 1)
    assert float((random.patches.weight - small.patches.weight).detach().abs().max()) > 0.1
    assert not random.patches.bias.any()
    # At single pixels the kernel answers a flat image as the sum over the patch did.
    flat = torch.ones(1, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(small.patches(flat)[..., 0, 0], model.patches(flat)[..., 0, 0], atol=1e-4, rtol=1e-3)


def test_dtype_attention_and_training_stay():
    model = small_encoder("plain_vit").to(torch.float64).train()
    model.set_attn_implementation("eager")
    small = with_patch_size(model, 4)
    assert small.training and small.dtype == torch.float64 and small.config._attn_implementation == "eager"
    assert small.config.output_grid(SIDE, SIDE) == Grid(12, 12)


def test_what_is_impossible_ends_in_one_sentence():
    model = small_encoder("plain_vit")
    with pytest.raises(FoveateError, match="plain_vit needs images whose sides are multiples of 7 pixels"):
        with_patch_size(model, 7)
    with pytest.raises(FoveateError, match="unknown patch kernel 'random': choose one of pseudo-inverse, adj"):
        with_patch_size(model, 4, kernel="random")  # ty: ignore[invalid-argument-type]
    with pytest.raises(FoveateError, match="the encoder sit is not a convolution over patches"):
        with_patch_size(small_encoder("sit"), 8)

"""LookupViT: gather and scatter against a loop, and several numbers of compressed tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.lookupvit import LookupViTModel
from foveate.models.encoders.lookupvit.modeling import Gather, LookupViTBlock, Scatter
from tests.models.encoders.operations import built_without_weights, multiplications
from tests.models.encoders.small_encoders import SIDE, images, small_config, small_encoder
from tests.models.llava.small_encoder_llava import llava
from tests.models.llava.small_llava import small_batch


@pytest.fixture(params=[False, True], ids=["plain", "normalized"])
def block(request):
    torch.manual_seed(0)
    config = small_config("lookupvit", hidden_size=8, normalize_scatter=request.param)
    config._attn_implementation = "sdpa"
    return LookupViTBlock(config, scatters=True).eval(), torch.randn(2, 4, 8), torch.randn(2, 9, 8), request.param


def test_a_block_equals_a_loop_over_tokens_and_heads(block):
    module, compressed, lookup, normalized = block
    gather, scatter, width = module.gather, module.scatter, 8 // 2
    with torch.no_grad():
        new_compressed, new_lookup = module(compressed, lookup)
        for image in range(2):
            keys = [gather.k_proj(gather.lookup_norm(z)) for z in lookup[image]]
            values = [gather.v_proj(gather.lookup_norm(z)) for z in lookup[image]]
            weights = torch.zeros(2, 4, 9)
            gathered = []
            for m, c in enumerate(compressed[image]):
                query, parts = gather.q_proj(gather.compressed_norm(c)), []
                for head in range(2):
                    part = slice(head * width, (head + 1) * width)
                    logits = torch.stack([query[part] @ key[part] / width**0.5 for key in keys])
                    weights[head, m] = logits.softmax(0)
                    parts.append(sum(weights[head, m, n] * values[n][part] for n in range(9)))
                gathered.append(c + gather.out_proj(torch.cat(parts)))
            expected = module.block(torch.stack(gathered)[None])[0]
            torch.testing.assert_close(new_compressed[image], expected, atol=1e-5, rtol=1e-4)
            read = [scatter.v_proj(scatter.norm(c)) for c in expected]
            for n, z in enumerate(lookup[image]):
                parts = []
                for head in range(2):
                    part = slice(head * width, (head + 1) * width)
                    shares = weights[head, :, n] / (weights[head, :, n].sum() if normalized else 1)
                    parts.append(sum(shares[m] * read[m][part] for m in range(4)))
                z = z + scatter.out_proj(torch.cat(parts))
                z = z + module.mlp(module.norm(z))
                torch.testing.assert_close(new_lookup[image, n], z, atol=1e-5, rtol=1e-4)


def test_weights_sum_to_one_over_the_lookup_tokens():
    torch.manual_seed(0)
    weights = Gather(8, 2, 1e-6)(torch.randn(2, 4, 8), torch.randn(2, 9, 8))[1]
    assert weights.shape == (2, 2, 4, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4))


def test_a_normalized_scatter_of_equal_tokens_is_their_value():
    torch.manual_seed(0)
    scatter = Scatter(8, 2, 1e-6, normalize=True)
    compressed = torch.randn(1, 1, 8).expand(-1, 4, -1)
    output = scatter(compressed, torch.rand(1, 2, 4, 9))
    torch.testing.assert_close(
        output, scatter.out_proj(scatter.v_proj(scatter.norm(compressed)))[:, :1].expand(-1, 9, -1)
    )


def test_without_scattered_values_lookup_tokens_meet_their_mlp_alone(block):
    module, compressed, lookup, _ = block
    with torch.no_grad():
        module.scatter.v_proj.weight.zero_()
        module.scatter.v_proj.bias.zero_()
        module.scatter.out_proj.bias.zero_()
        torch.testing.assert_close(module(compressed, lookup)[1], lookup + module.mlp(module.norm(lookup)))


def test_compressed_tokens_are_resized_in_two_dimensions():
    """Token (i, j) of 3 x 3 is the mean of patches (2 i, 2 j) to (2 i + 1, 2 j + 1) of 6 x 6, with their positions."""
    model = small_encoder("lookupvit", compressed_side=3)
    with torch.no_grad():
        first = model(images(), output_hidden_states=True).hidden_states[0].view(2, 3, 3, 24)
        raster = model.patches(images()) + model.positions(Grid(6, 6))
        for i in range(3):
            for j in range(3):
                mean = raster[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
                torch.testing.assert_close(first[:, i, j], mean, atol=1e-5, rtol=1e-4)


def test_resizing_positions_and_patches_apart_is_the_same():
    model = small_encoder("lookupvit")
    with torch.no_grad():
        first = model(images(), output_hidden_states=True).hidden_states[0]
        patches, positions = model.patches(images()), model.positions(Grid(6, 6))
        small = [F.interpolate(part, (4, 4), mode="bilinear") for part in (patches, positions)]
        torch.testing.assert_close(first, sum(small).flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_one_model_gives_several_numbers_of_tokens():
    model = small_encoder("lookupvit", training_sides=[2, 3, 5])
    for count in (1, 4, 9, 16, 25, 36):
        assert model(images(), num_compressed=count).last_hidden_state.shape == (2, count, 24)
    assert model(images()).last_hidden_state.shape[1] == 16  # compressed_side, which need not be trained
    for wrong, message in ((8, "8 is no square number"), (49, "choose a side from 1 to 6"), (0, "0 x 0"), (-4, "-4")):
        with pytest.raises(FoveateError, match=message):
            model(images(), num_compressed=wrong)


def test_training_draws_one_of_the_sides_per_step():
    model = small_encoder("lookupvit", training_sides=[2, 3, 5]).train()
    torch.manual_seed(0)
    counts = [model(images()).last_hidden_state.shape[1] for _ in range(20)]
    torch.manual_seed(0)
    assert counts == [model(images()).last_hidden_state.shape[1] for _ in range(20)]
    assert set(counts) == {4, 9, 25}
    assert model(images(), **model.config.tower_options()).last_hidden_state.shape[1] == 16


def test_training_in_a_language_model_keeps_the_number_of_placeholders():
    model, processor = llava("lookupvit", training_sides=[2, 3, 5])
    model.train()(**small_batch(processor)).logits.sum().backward()


def test_lookup_tokens_can_be_the_output():
    model = small_encoder("lookupvit", output="lookup")
    assert model.config.output_grid(SIDE, 2 * SIDE) == Grid(6, 12)
    assert model(images()).last_hidden_state.shape == (2, 36, 24)
    assert model.blocks[-1].scatter is not None
    assert small_encoder("lookupvit").blocks[-1].scatter is None  # nothing reads its lookup tokens


def test_cost_is_linear_in_the_number_of_patches():
    model = built_without_weights(lambda: LookupViTModel(small_config("lookupvit")))
    one, two, three = (multiplications(model, SIDE, count * SIDE) for count in (1, 2, 3))
    assert three - two == two - one > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compressed_side": 7}, "7 x 7 compressed tokens, and this image has 6 x 6 patches"),
        ({"compressed_side": 0}, "compressed_side of the encoder lookupvit must be a whole number from 1 on"),
        (
            {"training_sides": [2, 0]},
            "training_sides of the encoder lookupvit must be a list of whole numbers from 1 on",
        ),
        ({"training_sides": 3}, "must be a list of whole numbers"),
        ({"training_sides": [2, 9]}, "9 x 9 compressed tokens, and this image has 6 x 6 patches"),
        ({"num_attention_heads": 5}, "5 heads of lookupvit do not divide its width 24"),
        ({"output": "both"}, "output of lookupvit must be compressed or lookup"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(FoveateError, match=message):
        small_config("lookupvit", **changes)

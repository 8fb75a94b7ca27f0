"""The plain vision transformer: equal to that of transformers, and 50,176 tokens of one image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTModel

from foveate.core.errors import FoveateError
from foveate.models.encoders.plain_vit import PlainViTConfig, PlainViTModel, convert_vit_state
from tests.models.encoders.operations import built_without_weights, multiplications
from tests.models.encoders.small_encoders import images, small_config

FIELDS = {
    "image_size": 48,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
}


@pytest.fixture(scope="module")
def reference() -> ViTModel:
    torch.manual_seed(0)
    return ViTModel(ViTConfig(**FIELDS, layer_norm_eps=1e-6, initializer_range=0.2), add_pooling_layer=False).eval()


@pytest.mark.parametrize("side", [48, 80])
def test_equals_that_of_transformers_at_its_size_and_with_resized_positions(reference, side):
    config = PlainViTConfig(**FIELDS)
    model = PlainViTModel(config).eval()
    model.load_state_dict(convert_vit_state(reference.state_dict(), config))
    with torch.no_grad():
        expected = reference(images(side=side), interpolate_pos_encoding=True).last_hidden_state
        output = model(images(side=side))
    torch.testing.assert_close(output.prefix_tokens, expected[:, :1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.last_hidden_state, expected[:, 1:], atol=1e-5, rtol=1e-4)


def test_pooler_and_mask_token_are_left_out(reference):
    state = reference.state_dict()
    extra = {"pooler.dense.weight": torch.zeros(24, 24), "embeddings.mask_token": torch.zeros(1, 1, 24)}
    assert convert_vit_state(state | extra, PlainViTConfig(**FIELDS)).keys() == (
        convert_vit_state(state, PlainViTConfig(**FIELDS)).keys()
    )


def test_weights_of_other_networks_are_refused(reference):
    with pytest.raises(FoveateError, match=r"'encoder.layer.0' is no weight of ViTModel"):
        convert_vit_state({"encoder.layer.0": torch.zeros(1)}, PlainViTConfig(**FIELDS))
    with pytest.raises(FoveateError, match="positions of 36 patches, and the configuration 144"):
        convert_vit_state(reference.state_dict(), PlainViTConfig(**FIELDS | {"patch_size": 4}))


@pytest.mark.parametrize(("size", "giga", "millions"), [("tiny", 1.3, 6), ("small", 4.6, 22), ("base", 17.6, 86)])
def test_sizes_are_those_of_deit(size, giga, millions):
    """GMACs at 224 x 224 pixels and parameters without a classifier, as DeiT has them."""
    model = built_without_weights(lambda: PlainViTModel(PlainViTConfig.of_size(size)))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions
    assert round(multiplications(model, 224, 224) / 1e9, 1) == pytest.approx(giga, abs=0.05)


@pytest.mark.slow
def test_an_image_is_50176_tokens():
    """Every pixel of 224 x 224 is a token; all weights of a head would be 10 GB in float32. Rows equal a softmax."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    torch.manual_seed(0)
    model = PlainViTModel(PlainViTConfig(patch_size=1, initializer_range=0.3, **sizes)).eval()
    block: Any = model.blocks[0]
    rows = torch.tensor([0, 1, 22_450, 50_176])
    with torch.inference_mode():
        output = model(images(1, side=224), output_hidden_states=True)
        assert output.last_hidden_state.shape == (1, 50_176, 16)
        x = torch.cat([model.cls_token(1), output.hidden_states[0]], dim=1)[0]
        normed, attention = block.norm1(x), block.attention
        logits = attention.q_proj(normed[rows]) @ attention.k_proj(normed).T / 4
        y = x[rows] + attention.out_proj(logits.softmax(-1) @ attention.v_proj(normed))
        expected = model.norm(y + block.mlp(block.norm2(y)))
    actual = torch.cat([output.prefix_tokens, output.last_hidden_state], dim=1)[0, rows]
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)


def test_impossible_configurations():
    with pytest.raises(FoveateError, match="5 heads of plain_vit do not divide its width 24"):
        small_config("plain_vit", num_attention_heads=5)
    with pytest.raises(FoveateError, match="no plain ViT of size 'huge'; possible are tiny, small, base"):
        PlainViTConfig.of_size("huge")

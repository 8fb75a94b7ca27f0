"""Registers before the tokens of CLIP, SigLIP and DINOv2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from foveate.core.errors import FoveateError
from foveate.models.encoders.registers import RegistersConfig, RegistersModel, norm_outliers, plant_outliers
from foveate.models.encoders.registers.towers import LAYOUTS
from tests.models.encoders.small_encoders import images, small_config

SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 48, "patch_size": 8}
TOWERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "clip_vision_model": (CLIPVisionModel, {"intermediate_size": 64}),
    "siglip_vision_model": (SiglipVisionModel, {"intermediate_size": 64}),
    "dinov2": (Dinov2Model, {"mlp_ratio": 2}),
}
CONFIGS = {"clip_vision_model": CLIPVisionConfig, "siglip_vision_model": SiglipVisionConfig, "dinov2": Dinov2Config}


@pytest.fixture(params=LAYOUTS)
def tower(request) -> Any:
    cls, fields = TOWERS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(CONFIGS[request.param](**SIZES, **fields)).eval()


def patches(tower: Any, tokens: torch.Tensor) -> torch.Tensor:
    return tokens[:, LAYOUTS[tower.config.model_type].has_cls :]


@pytest.mark.parametrize("side", [48, 64])
def test_without_registers_it_is_the_tower(tower, side):
    model = RegistersModel.from_tower(tower, 0)
    resized = {} if tower.config.model_type == "dinov2" else {"interpolate_pos_encoding": side != 48}
    with torch.no_grad():
        expected = tower(images(side=side), output_hidden_states=True, **resized)
        output = model(images(side=side), output_hidden_states=True)
    last = expected.last_hidden_state
    if tower.config.model_type == "clip_vision_model":  # which normalizes [CLS] only
        last = tower.get_submodule("vision_model" if hasattr(tower, "vision_model") else "").post_layernorm(last)
    torch.testing.assert_close(output.last_hidden_state, patches(tower, last))
    for layer in range(3):
        assert torch.equal(output.hidden_states[layer], patches(tower, expected.hidden_states[layer]))
    if tower.config.model_type == "siglip_vision_model":
        assert output.prefix_tokens is None
    else:
        torch.testing.assert_close(output.prefix_tokens[:, 0], expected.pooler_output)


def test_registers_stand_before_all_tokens_without_positions(tower):
    """The blocks read [registers, tokens of the tower]; the output holds the patches alone."""
    torch.manual_seed(1)
    model, read = RegistersModel.from_tower(tower, 5), []
    blocks = model.get_submodule("tower").get_submodule(
        f"vision_model.{model.layout.blocks}" if hasattr(model.tower, "vision_model") else model.layout.blocks
    )
    blocks[0].register_forward_pre_hook(lambda module, args: read.append(args[0]))
    with torch.no_grad():
        output = model(images())
        plain = tower(images(), output_hidden_states=True).hidden_states[0]
    assert torch.equal(read[0][:, :5], model.registers.weight.expand(2, -1, -1))
    assert torch.equal(read[0][:, 5:], plain)
    assert output.last_hidden_state.shape == (2, 36, 48)
    assert output.prefix_tokens.shape == (2, 5 + model.layout.has_cls, 48)
    assert float(model.registers.weight.detach().std()) == pytest.approx(48**-0.5, rel=0.2)


def test_weights_of_every_tower_are_saved_and_loaded(tower, tmp_path):
    model = RegistersModel.from_tower(tower, 3)
    model.save_pretrained(tmp_path)
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is RegistersModel and not any(info.values())
    assert again.config.vision_config.model_type == tower.config.model_type
    assert (again.config.image_size, again.config.hidden_size, again.config.num_hidden_layers) == (48, 48, 3)
    with torch.no_grad():
        assert torch.equal(again.eval()(images()).last_hidden_state, model(images()).last_hidden_state)


def test_it_is_the_vision_tower_of_a_llava_of_transformers():
    """Without registers answers are those of the plain tower; with them there are as many tokens."""
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SIZES, intermediate_size=64),
        text_config=LlamaConfig(vocab_size=40, **text),
        image_token_index=39,
        vision_feature_layer=-2,
    )
    torch.manual_seed(0)
    llava = LlavaForConditionalGeneration(config).eval()
    inputs = {"input_ids": torch.tensor([[1, *[39] * 36, 2, 3]]), "pixel_values": images(1)}
    with torch.no_grad():
        expected = llava(**inputs).logits
        towers = [RegistersModel.from_tower(llava, count) for count in (0, 4)]
        llava.config.vision_feature_select_strategy = "full"
        outputs = []
        for tower in towers:
            llava.model.vision_tower = tower
            outputs.append(llava(**inputs).logits)
    torch.testing.assert_close(outputs[0], expected)
    assert outputs[1].shape == expected.shape and not torch.allclose(outputs[1], expected)


def test_planted_outliers_are_at_their_places_alone():
    torch.manual_seed(0)
    tower = plant_outliers(Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2)), (8, 20), block=1)
    model = RegistersModel.from_tower(tower, 0)
    with torch.no_grad():
        states = model(images(), output_hidden_states=True, normalize=False).hidden_states
    assert [norm_outliers(state).share for state in states] == pytest.approx([0, 0, 2 / 36, 2 / 36])
    norms = states[-1].norm(dim=-1)
    assert norms.topk(2).indices.sort().values.tolist() == [[8, 20], [8, 20]]
    assert norm_outliers(states[-1]).largest > 8


def test_outliers_are_counted_within_their_image():
    tokens = torch.ones(2, 4, 9)
    tokens[0, 2] = 4
    tokens[1] *= 100
    share, largest = norm_outliers(tokens)
    assert share == 1 / 8 and largest == pytest.approx(2.5)
    assert norm_outliers(tokens, factor=5).share == 0


def test_fields_of_the_tower_and_of_the_encoder_are_the_same():
    config = RegistersConfig(vision_config={"model_type": "siglip_vision_model", "hidden_size": 96}, image_size=64)
    assert (config.hidden_size, config.image_size, config.vision_config.image_size) == (96, 64, 64)
    assert RegistersConfig().output_grid(224, 224) == (16, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": {"model_type": "bert"}}, "must be one of clip_vision_model, .*, not bert"),
        ({"num_registers": -1}, "num_registers .* from 0 on, not -1"),
        ({"num_registers": 1.5}, "num_registers .* from 0 on, not 1.5"),
        ({"hidden_size": 25}, "heads of the vision transformer do not divide its width 25"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(FoveateError, match=message):
        small_config("registers", **changes)


def test_other_models_are_refused():
    with pytest.raises(FoveateError, match="registers are added to one of clip_vision_model, .*, not to Linear"):
        RegistersModel.from_tower(torch.nn.Linear(2, 2))
    with pytest.raises(FoveateError, match="not to registers"):
        RegistersModel.from_tower(RegistersModel(small_config("registers")))

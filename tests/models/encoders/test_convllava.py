"""ConvLLaVA: stages, counts of tokens, and weights of ConvNeXt in three layouts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import ConvNextConfig, ConvNextModel

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.convllava import (
    ConvLLaVAConfig,
    ConvLLaVAModel,
    convert_clip_state,
    initialize_from_clip,
)
from foveate.models.llava import FoveateLlavaForConditionalGeneration, FoveateLlavaProcessor
from foveate.models.llava.conversion import convert_released_config
from foveate.models.llava.processing import pair
from foveate.models.llava_uhd import byte_tokenizer
from foveate.training.building import new_model
from foveate.training.collate import Collator
from foveate.training.recipe import NewModel
from tests.models.connectors.released_tokenpacker import wave
from tests.models.encoders.operations import built_without_weights, multiplications
from tests.models.encoders.small_encoders import fields_of, images, small_config, small_encoder
from tests.models.llava.small_llava import TEXT
from tests.training.test_architectures import EXAMPLES
from tests.training.test_architectures import TEXT as RECIPE_TEXT

WIDTHS = [4, 6, 8, 8, 12]
#: The authors' tower with few channels: stride 64 in five stages.
FIELDS: dict[str, Any] = {
    "image_size": 128,
    "depths": [1, 1, 2, 1, 2],
    "hidden_sizes": WIDTHS,
    "layer_scale_init_value": 0.5,
    "initializer_range": 0.3,
}
#: Fields of `config.json` of the released LLaVAs.
RELEASED = TEXT | {
    "model_type": "llava_llama",
    "architectures": ["LlavaLlamaForCausalLM"],
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -1,
    "mm_vision_select_feature": "patch",
}


def convnext(stages: int = 5) -> ConvNextModel:
    """The authors' tower: `ConvNextModel` of `transformers`, to which their code appends a `ConvNextStage`."""
    shape = {name: FIELDS[name][:stages] for name in ("depths", "hidden_sizes")}
    torch.manual_seed(0)
    return ConvNextModel(ConvNextConfig(**FIELDS | shape, num_stages=stages)).eval()


def tokens_of(model: ConvNextModel, pixels: Tensor) -> Tensor:
    """What the authors' tower returns: the last map, row-major, without the norm of the pooled map."""
    return model.encoder(model.embeddings(pixels)).last_hidden_state.permute(0, 2, 3, 1).flatten(1, 2)


def randomized(model: Any) -> Any:
    """The model with random biases, scales and norms too."""
    for number, parameter in enumerate(model.parameters()):
        parameter.data.add_(wave(number, tuple(parameter.shape), 0.2))
    return model


def test_tokens_of_the_papers_sizes():
    config = ConvLLaVAConfig()
    counts = {768: 144, 1024: 256, 1536: 576}
    assert {side: config.output_grid(side, side).size for side in counts} == counts
    assert config.output_grid(1536, 768) == Grid(24, 12)
    assert (config.hidden_size, config.num_hidden_layers, config.multiple) == (3072, 42, 64)
    with pytest.raises(FoveateError, match="multiples of 64 pixels, not 1536 x 336"):
        config.output_grid(1536, 336)


def test_a_released_tower_gives_the_authors_tokens(tmp_path):
    theirs = randomized(convnext())
    theirs.save_pretrained(tmp_path)
    model, info = ConvLLaVAModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert model.config.model_type == "convllava" and model.config.layer_norm_eps == 1e-6
    pixels = torch.randn(2, 3, 128, 192)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pixels).last_hidden_state, tokens_of(theirs, pixels))
        # `mm_vision_select_layer` -2 of the authors: the block is gone, and the last map is read.
        theirs.encoder.stages[-1].layers.pop(-1)
        dropped, info = ConvLLaVAModel.from_pretrained(tmp_path, config=with_drop(model), output_loading_info=True)
        assert not any(info.values())
        output = dropped.eval()(pixels, output_hidden_states=True)
        torch.testing.assert_close(output.last_hidden_state, tokens_of(theirs, pixels))
        assert len(output.hidden_states) == dropped.config.num_hidden_layers + 1 == 7
        before = model(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(before, output.last_hidden_state)


def with_drop(model: ConvLLaVAModel) -> ConvLLaVAConfig:
    return ConvLLaVAConfig(**FIELDS, drop_last_block=True, layer_norm_eps=model.config.layer_norm_eps)


def test_a_stage_is_added_to_a_convnext(tmp_path):
    theirs = randomized(convnext(stages=4))
    theirs.save_pretrained(tmp_path)
    config = ConvLLaVAConfig.from_pretrained(tmp_path)
    assert config.output_grid(128, 128) == Grid(4, 4)
    config = config.with_stage(depth=2, width=12, layer_scale_init_value=1e-6, image_size=192)
    assert config.depths == [1, 1, 2, 1, 2] and config.hidden_sizes == WIDTHS and config.image_size == 192
    model, info = ConvLLaVAModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    new = {name for name in model.state_dict() if name.startswith("encoder.stages.4.")}
    assert set(info["missing_keys"]) == new and not info["unexpected_keys"]
    for block in model.encoder.stages[4].layers:
        assert torch.equal(block.layer_scale_parameter, torch.full((12,), 1e-6))
    pixels = torch.randn(1, 3, 192, 128)
    with torch.no_grad():
        output = model.eval()(pixels, output_hidden_states=True)
        torch.testing.assert_close(output.hidden_states[5], tokens_of(theirs, pixels))
    assert output.last_hidden_state.shape == (1, 6, 12)
    with pytest.raises(FoveateError, match="num_hidden_layers of convllava must be the number of its blocks, 7, not 5"):
        ConvLLaVAModel.from_pretrained(tmp_path, depths=[1, 1, 2, 1, 2], hidden_sizes=[4, 6, 8, 8, 8])


def test_a_stage_after_a_block_that_was_removed():
    config = ConvLLaVAConfig(**FIELDS, drop_last_block=True).with_stage(depth=3, width=5)
    assert config.depths == [1, 1, 2, 1, 1, 3] and not config.drop_last_block


def clip_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a ConvNeXt under the names of timm, four stages."""
    named: dict[str, tuple[int, ...]] = {"stem.0.weight": (4, 3, 4, 4), "stem.1.weight": (4,)}
    for stage in range(4):
        width = WIDTHS[stage]
        if stage:
            named[f"stages.{stage}.downsample.0.weight"] = (WIDTHS[stage - 1],)
            named[f"stages.{stage}.downsample.1.weight"] = (width, WIDTHS[stage - 1], 2, 2)
        for block in range(FIELDS["depths"][stage]):
            name = f"stages.{stage}.blocks.{block}"
            named |= {f"{name}.gamma": (width,), f"{name}.norm.weight": (width,)}
            named[f"{name}.conv_dw.weight"] = (width, 1, 7, 7)
            named[f"{name}.mlp.fc1.weight"] = (4 * width, width)
            named[f"{name}.mlp.fc2.weight"] = (width, 4 * width)
    biases = {name.removesuffix("weight") + "bias": shape[:1] for name, shape in named.items() if "gamma" not in name}
    return named | biases


def clip_state() -> dict[str, Tensor]:
    return {name: wave(number, shape, 0.4) for number, (name, shape) in enumerate(clip_shapes().items())}


def clip_forward(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """ConvNeXt from the weights of timm, one equation after the other: the last map."""

    def norm(name: str, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6).permute(0, 3, 1, 2)

    def conv(name: str, x: Tensor, **options: Any) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def linear(name: str, x: Tensor) -> Tensor:
        return torch.einsum("bchw,dc->bdhw", x, state[f"{name}.weight"]) + state[f"{name}.bias"].view(-1, 1, 1)

    x = norm("stem.1", conv("stem.0", x, stride=4))
    for stage in range(4):
        if stage:
            x = conv(f"stages.{stage}.downsample.1", norm(f"stages.{stage}.downsample.0", x), stride=2)
        for block in range(FIELDS["depths"][stage]):
            name = f"stages.{stage}.blocks.{block}"
            branch = norm(f"{name}.norm", conv(f"{name}.conv_dw", x, padding=3, groups=x.shape[1]))
            branch = linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", branch)))
            x = x + state[f"{name}.gamma"].view(-1, 1, 1) * branch
    return x


@pytest.mark.parametrize("prefix", ["", "visual.trunk.", "module.visual.trunk."])
def test_a_model_starts_from_a_convnext_of_clip(prefix):
    plain = clip_state()
    state = {f"{prefix}{name}": value for name, value in plain.items()}
    state |= {"visual.head.mlp.fc1.weight": torch.zeros(1), "transformer.resblocks.0.ln_1.weight": torch.zeros(1)}
    torch.manual_seed(0)
    model = ConvLLaVAModel(ConvLLaVAConfig(**FIELDS)).eval()
    new = {name: value.clone() for name, value in model.state_dict().items() if ".stages.4." in name}
    initialize_from_clip(model, state)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in new.items())
    pixels = torch.randn(1, 3, 128, 64)
    with torch.no_grad():
        hidden = model(pixels, output_hidden_states=True).hidden_states[5]
        torch.testing.assert_close(hidden, clip_forward(plain, pixels).flatten(2).mT, atol=1e-4, rtol=1e-4)


def test_linear_layers_may_be_convolutions():
    state = clip_state()
    as_convolutions = {name: value[..., None, None] if ".fc" in name and value.ndim == 2 else value
                       for name, value in state.items()}  # fmt: skip
    for name, value in convert_clip_state(as_convolutions).items():
        assert torch.equal(value, convert_clip_state(state)[name]), name


def test_weights_of_other_networks_are_refused():
    model = ConvLLaVAModel(ConvLLaVAConfig(**FIELDS))
    with pytest.raises(FoveateError, match="hold no ConvNeXt"):
        initialize_from_clip(model, {"visual.proj": torch.zeros(1)})
    with pytest.raises(FoveateError, match=r"'stages.0.blocks.0.grn.weight' is no weight of a ConvNeXt"):
        initialize_from_clip(model, {"visual.trunk.stages.0.blocks.0.grn.weight": torch.zeros(1)})
    state = clip_state()
    missing = {name: value for name, value in state.items() if name != "stages.1.blocks.0.gamma"}
    deeper = state | {"stages.0.blocks.1.gamma": torch.zeros(4)}
    wider = state | {"stem.1.bias": torch.zeros(8)}
    for wrong, name in (
        (missing, "stages.1.layers.0.layer_scale"),
        (deeper, "stages.0.layers.1"),
        (wider, "embeddings.layernorm.bias"),
    ):
        with pytest.raises(FoveateError, match=f"another network than the model's first stages, such as in .*{name}"):
            initialize_from_clip(model, wrong)


def test_an_image_that_moves_by_64_pixels_moves_its_tokens_by_one():
    """Tokens in whose receptive field no padding is; with one block per stage it is 6 tokens to each side."""
    torch.manual_seed(0)
    model = ConvLLaVAModel(ConvLLaVAConfig(**FIELDS | {"depths": [1] * 5})).eval()
    scene = torch.randn(1, 3, 1024, 1088)
    with torch.no_grad():
        first, second = (model(part).last_hidden_state.view(16, 16, 12) for part in (scene[..., :-64], scene[..., 64:]))
        torch.testing.assert_close(first[:, 7:10], second[:, 6:9], atol=1e-5, rtol=1e-4)
        assert (first[:, 7:10] - second[:, 7:10]).abs().max() > 1e-3
        assert (first[:, 1:] - second[:, :-1]).abs().amax((0, 2))[0] > 1e-3  # reaches the border


def test_stochastic_depth_acts_in_training_alone():
    plain, model = small_encoder("convllava"), small_encoder("convllava", drop_path_rate=0.9)
    assert torch.equal(model(images()).last_hidden_state, plain(images()).last_hidden_state)
    torch.manual_seed(0)
    model.train()
    assert not torch.equal(model(images()).last_hidden_state, model(images()).last_hidden_state)


def test_parameters_of_convnext_l():
    """Published of ConvNeXt-L: 198 M, with a norm and a classifier. `foveate flops` has its GMACs."""
    four = ConvLLaVAConfig(depths=[3, 3, 27, 3], hidden_sizes=[192, 384, 768, 1536], image_size=224)
    model = built_without_weights(lambda: ConvLLaVAModel(four))
    head = 1536 * 1000
    count = sum(parameter.numel() for parameter in model.parameters()) + head + 1000 + 2 * 1536
    assert round(count / 1e6) == 198


def test_cost_is_linear_in_the_number_of_pixels():
    model = built_without_weights(lambda: ConvLLaVAModel(ConvLLaVAConfig()))
    giga = {side: multiplications(model, side, side) / 1e9 for side in (768, 1024, 1536)}
    assert giga[1536] / giga[768] == 4 and giga[1024] / giga[768] == pytest.approx(16 / 9)


def test_a_language_model_reads_576_tokens_of_1536_pixels():
    fields = fields_of("convllava", image_size=1536, patch_size=4, depths=[1] * 5)
    new = NewModel(architecture="llava", vision={"type": "convllava", **fields}, text=RECIPE_TEXT)
    model, processor = new_model(new, seed=0)
    pair(model, processor)
    batch = Collator(processor)(EXAMPLES)
    assert batch["pixel_values"].shape == (2, 3, 1536, 1536)
    assert (batch["input_ids"] == processor.image_token_id).sum(-1).tolist() == [576, 576]
    with torch.no_grad():
        tokens = model.get_image_features(batch["pixel_values"][:1]).pooler_output
    assert tokens[0].shape == (576, 32)


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("inside", [True, False], ids=["in the checkpoint", "in a folder of its own"])
def test_a_released_llava_is_read(layer, inside, tmp_path):
    """Made here from the authors' classes: their names, their configuration, and tokens of their tower."""
    theirs, tower, folder = randomized(convnext()), tmp_path / "ConvNeXt", tmp_path / "llava"
    theirs.save_pretrained(tower)
    if layer == -2:
        theirs.encoder.stages[-1].layers.pop(-1)
    config = RELEASED | {"mm_vision_select_layer": layer, "mm_vision_tower": str(tower), "mm_hidden_size": 12}
    native = FoveateLlavaForConditionalGeneration(native_config(config))
    weights = {}
    for name, value in native.state_dict().items():
        target = name.replace("model.language_model.", "model.")
        target = target.replace("model.multi_modal_projector.linear_1.", "model.mm_projector.0.")
        target = target.replace("model.multi_modal_projector.linear_2.", "model.mm_projector.2.")
        if "vision_tower" not in name:
            weights[target] = value.clone()
    if inside:
        weights |= {f"model.vision_tower.vision_tower.{name}": value for name, value in theirs.state_dict().items()}
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)
    model, info = FoveateLlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"] and not info["missing_keys"]
    assert model.config.vision_config.drop_last_block == (layer == -2)
    pixels = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        tokens = model.eval().get_image_features(pixels).pooler_output[0]
        expected = model.model.multi_modal_projector.project(tokens_of(theirs, pixels))[0]
        torch.testing.assert_close(tokens, expected)
    processor = FoveateLlavaProcessor.from_pretrained(folder)
    pair(model, processor)
    assert processor.tokens_of(128, 128) == model.config.image_seq_length == 4


def native_config(config: dict[str, Any]) -> Any:
    fields = convert_released_config(config)
    config_class: Any = FoveateLlavaForConditionalGeneration.config_class
    return config_class(**fields)


@pytest.mark.parametrize("side", [768, 1024, 1536])
def test_the_authors_towers_have_known_sizes(side):
    fields = convert_released_config(RELEASED | {"mm_vision_tower": f"ConvLLaVA/ConvLLaVA-ConvNeXt-{side}"})
    vision = fields["vision_config"]
    assert vision["image_size"] == side and vision["hidden_sizes"] == [192, 384, 768, 1536, 3072]
    assert fields["image_seq_length"] == (side // 64) ** 2
    assert (fields["vision_feature_layer"], fields["vision_feature_select_strategy"]) == (-1, "full")


def test_released_training_arguments_add_a_stage():
    """The authors' code removes the last block of the last stage before it adds another one."""
    tower = ConvNextConfig(depths=[1, 1, 2, 3], hidden_sizes=WIDTHS[:4], num_stages=4, image_size=64).to_dict()
    config = {"mm_vision_resolution": 768, "mm_vision_select_layer": -2, "vision_add_five_stage": 6}
    fields = ConvLLaVAConfig.released_fields(config | {"vision_five_stage_width": 20}, tower)
    assert fields["depths"] == [1, 1, 2, 2, 6] and fields["hidden_sizes"] == [*WIDTHS[:4], 20]
    assert fields["image_size"] == 768 and not fields["drop_last_block"]
    assert ConvLLaVAConfig.released_fields(config, tower)["hidden_size"] == 1536
    assert ConvLLaVAConfig.released_fields(config, {"model_type": "clip_vision_model"}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [1, 1]}, "as many depths as hidden_sizes and at least one of them, not 2 and 5"),
        ({"depths": [], "hidden_sizes": []}, "not 0 and 0"),
        ({"depths": [0] * 5}, "depths of the encoder convllava must be a list of whole numbers from 1 on"),
        ({"hidden_sizes": 4}, "hidden_sizes of the encoder convllava must be a list of whole numbers"),
        ({"hidden_size": 8}, "must be the width of its last stage, 24, not 8"),
        ({"num_hidden_layers": 5}, "must be the number of its blocks, 6, not 5"),
        ({"depths": [1] * 5, "drop_last_block": True}, "needs a last stage of two blocks or more"),
        ({"hidden_act": "sharp"}, "hidden_act of convllava must be one of gelu, .*, not 'sharp'"),
        ({"drop_path_rate": 1.0}, "drop_path_rate of convllava must be from 0 on and below 1"),
        ({"image_size": 40}, "multiples of 16 pixels, not 40 x 40"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(FoveateError, match=message):
        small_config("convllava", **changes)

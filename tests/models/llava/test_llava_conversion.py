"""Checkpoints in the authors' layout of LLaVA-1.5."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, CLIPVisionModel

import foveate
from foveate.core.errors import FoveateError
from foveate.models.connectors import connector_named
from foveate.models.llava import FoveateLlavaConfig, FoveateLlavaForConditionalGeneration, FoveateLlavaProcessor
from foveate.models.llava.conversion import convert_released_config
from foveate.models.llava_uhd import byte_tokenizer
from tests.models.llava.small_llava import TEXT, small_llava, vision_config

KINDS = {
    "mlp": {"mm_projector_type": "mlp2x_gelu"},
    "tokenpacker": {"mm_projector_type": "tokenpacker", "scale_factor": 3},
    "m3": {"mm_projector_type": "mlp2x_gelu", "matryoshka_vis_token_scale": 9},
    "mqt": {"mm_projector_type": "linear", "query_abstractor_type": "matry_query", "num_visual_tokens": "36"},
    "resampler": {"mm_projector_type": "resampler"},
    "spatial_resampler": {"mm_projector_type": "adapt_spatial_resampler"},
    "quecc": {
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_token_compression_type": "quecc",
        "mm_vision_token_compression_kernel_size": 3,
        "mm_vision_token_compression_stride": 3,
    },
    "llava_mini": {
        "mm_projector_type": "mlp2x_gelu",
        "compressor_size": 2,
        "prefusion_layer_num": 2,
        "model_type": "llava_mini_llama",
    },
}
OPTIONS: dict[str, dict] = {
    "mlp": {},
    "tokenpacker": {"scale": 3},
    "m3": {"tokens": 9},
    "mqt": {"tokens": 36},
    "resampler": {},
    "spatial_resampler": {},
    "quecc": {"scale": 3},
    "llava_mini": {"size": 2, "prefusion_layers": 2},
}


def released_weights(model, connector: str, tower: bool) -> dict[str, torch.Tensor]:
    """Weights under the authors' names, made by hand from ours."""
    released: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        if name.startswith("model.vision_tower."):
            if tower:
                rest = name.removeprefix("model.vision_tower.").removeprefix("vision_model.")
                released[f"model.vision_tower.vision_tower.vision_model.{rest}"] = weight.clone()
        elif name.startswith("model.language_model."):
            released[name.replace("model.language_model.", "model.")] = weight.clone()
        elif name.startswith("model.prefusion."):
            released[name.replace("model.prefusion.layers.", "model.prefusion_layers.")] = weight.clone()
        elif not name.startswith("model.multi_modal_projector."):
            released[name] = weight.clone()
    ours = model.model.multi_modal_projector.state_dict()
    prefix = f"model.{connector_named(connector).released_prefix}"
    for source, target in connector_named(connector).released_keys.items():
        plain = source.replace("\\", "").removesuffix("$")
        plain = plain[1:] if plain.startswith("^") else f"{prefix}.{plain}"
        if isinstance(target, tuple):
            released[plain] = torch.cat([ours.pop(name) for name in target])
            continue
        for name in [name for name in ours if name.startswith(target)]:
            released[f"{plain}{name.removeprefix(target)}"] = ours.pop(name)
    assert not ours
    return released


def write_released(folder: Path, connector: str, tower: bool = True, **config):
    """Write random weights in the authors' layout; return the model with the same weights in ours."""
    native = small_llava(connector, **OPTIONS[connector])
    weights = released_weights(native, connector, tower)
    weights["model.image_newline"] = torch.zeros(32)
    if connector == "llava_mini":
        weights["model.compressor.pos_embed"] = torch.zeros(4, 24)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    fields = TEXT | {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_hidden_size": 48,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_vision_tower": "/not/here/clip",
        "image_aspect_ratio": "pad",
        "vision_config": vision_config().to_dict(),
        **KINDS[connector],
        **config,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    byte_tokenizer().save_pretrained(folder)
    native.config.image_token_index = 0
    return native


@pytest.mark.parametrize("connector", list(KINDS))
def test_a_released_folder_gives_the_same_logits_and_is_saved_in_our_layout(connector, tmp_path):
    native = write_released(tmp_path, connector)
    loaded, info = FoveateLlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert loaded.config.connector_type == connector and loaded.config.image_token_id == 0
    count = loaded.model.multi_modal_projector.output_grid((6, 6)).size
    ids = torch.tensor([[5, *[0] * count, 7, 8]])
    pixels = torch.randn(1, 3, 48, 48)
    expected = native(input_ids=ids, pixel_values=pixels).logits
    assert torch.equal(loaded.eval()(input_ids=ids, pixel_values=pixels).logits, expected)
    loaded.save_pretrained(tmp_path / "ours")
    names = load_file(tmp_path / "ours" / "model.safetensors")
    assert not any("mm_projector" in name or "query_abstractor" in name for name in names)
    again = FoveateLlavaForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    for name, weight in native.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    # Weights in a file may be aligned differently in memory, which changes the order of sums.
    torch.testing.assert_close(again(input_ids=ids, pixel_values=pixels).logits, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("model_type", ["llava_llama", "llava"])
def test_load_reads_model_and_processor(model_type, tmp_path):
    write_released(tmp_path, "tokenpacker", model_type=model_type)
    model, processor = foveate.load(tmp_path, device="cpu")
    assert type(model) is FoveateLlavaForConditionalGeneration and type(processor) is FoveateLlavaProcessor
    content = [{"type": "image", "image": torch.zeros(3, 30, 40, dtype=torch.uint8)}, {"type": "text", "text": "a?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert prompt == f"USER: {processor.image_token}\na? ASSISTANT:"
    inputs = processor(images=torch.zeros(3, 30, 40, dtype=torch.uint8), text=prompt, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 4
    model.generate(**inputs, max_new_tokens=2)


def test_auto_config_reads_the_model_type_of_the_release(tmp_path):
    write_released(tmp_path, "m3")
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is FoveateLlavaConfig and config.connector_options == {"tokens": 9}


def test_a_frozen_tower_is_read_from_where_the_configuration_says(tmp_path):
    folder = tmp_path / "released"
    folder.mkdir()
    native = write_released(folder, "mlp", tower=False, mm_vision_tower=str(tmp_path / "clip"), vision_config=None)
    tower = CLIPVisionModel(vision_config())
    tower.load_state_dict(native.model.vision_tower.state_dict())
    tower.save_pretrained(tmp_path / "clip")
    loaded = FoveateLlavaForConditionalGeneration.from_pretrained(folder)
    for name, weight in native.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_a_tower_that_is_not_there_is_an_error(tmp_path):
    write_released(tmp_path, "mlp", tower=False)
    with pytest.raises(
        FoveateError, match="holds no vision tower, and '/not/here/clip', which it names, cannot be read"
    ):
        FoveateLlavaForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_projector_type": "linear"}, "'linear' is not supported; possible are "),
        ({"mm_vision_select_feature": "cls_patch"}, "'cls_patch' is not supported"),
        ({"vision_config": None}, "does not describe its vision tower.*add a vision_config"),
    ],
)
def test_what_is_not_supported(change, message):
    fields = TEXT | {"model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "none"}
    with pytest.raises(FoveateError, match=message):
        convert_released_config(fields | {"vision_config": vision_config().to_dict()} | change)


def test_the_tower_of_llava_15_has_its_known_geometry():
    fields = TEXT | {
        "model_type": "llava_llama",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    }
    vision = convert_released_config(fields)["vision_config"]
    assert (vision["hidden_size"], vision["num_hidden_layers"], vision["image_size"]) == (1024, 24, 336)
    assert re.fullmatch("clip_vision_model", vision["model_type"])

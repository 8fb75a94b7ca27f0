"""Loading the authors' full-model layout."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from foveate import load
from foveate.core.errors import FoveateError
from foveate.models.llava_uhd import (
    LlavaUHDConfig,
    LlavaUHDForConditionalGeneration,
    LlavaUHDProcessor,
    byte_tokenizer,
)
from foveate.models.llava_uhd.checkpoint import convert_released_config
from foveate.models.llava_uhd.image_processing import LlavaUHDImageProcessor
from foveate.models.llava_uhd.pairing import pair
from tests.models.llava_uhd.small_llava_uhd import small_text_config, small_vision_config

# What a configuration of the authors' training code holds in addition to the language model's fields.
LLAVA_FIELDS = {
    "mm_projector_type": "mlp",
    "mm_hidden_size": 16,
    "mm_vision_tower": "/not/here/moonvit",
    "mm_vision_select_layer": -2,
    "mm_use_im_start_end": False,
    "image_aspect_ratio": "anyres",
    "tokenizer_padding_side": "right",
    "use_mm_proj": True,
}

MOONVIT = {
    "model_type": "moonvit",
    "patch_size": 4,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "init_pos_emb_height": 4,
    "init_pos_emb_width": 4,
    "merger_layer_index": [0, 1],
    "merging_method": "m_pooling",
}


def released_name(name: str) -> str:
    """Our name of a weight -> the authors'."""
    part, _, rest = name.removeprefix("model.").partition(".")
    match part:
        case "vision_tower":
            return f"model.vision_tower.vision_tower.{rest}"
        case "multi_modal_projector":
            return "model.mm_projector.proj." + rest.replace("linear_1", "0").replace("linear_2", "2")
        case "language_model":
            return f"model.{rest}"
    return name


def write_released(folder: Path, family: str = "qwen2", **config) -> LlavaUHDForConditionalGeneration:
    """Write random weights in the released layout; return the same weights assembled in ours."""
    torch.manual_seed(0)
    text = small_text_config(family)
    native = LlavaUHDForConditionalGeneration(
        LlavaUHDConfig(vision_config=small_vision_config(), text_config=text, image_token_id=259)
    ).eval()
    for block in native.model.vision_tower.encoder.blocks[:2]:  # trained stages are no plain averages
        torch.nn.init.normal_(block.merger.attn_layer[2].weight)
    weights = {released_name(name): weight.clone() for name, weight in native.state_dict().items()}
    for block in range(2):
        name = f"model.vision_tower.vision_tower.encoder.blocks.{block}.merger.zero_init_fc.weight"
        weights[name] = torch.zeros(16, 16)
    weights["model.image_newline"] = torch.zeros(32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    fields = text.to_dict() | LLAVA_FIELDS | {"model_type": "llava_qwen", "vision_config": MOONVIT} | config
    fields = {name: value for name, value in fields.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(fields))
    return native


def same_logits(loaded, native, batch) -> bool:
    with torch.no_grad():
        return torch.equal(loaded.eval()(**batch).logits, native(**batch).logits)


def test_names_are_the_authors(tmp_path):
    write_released(tmp_path)
    assert {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight",
        "model.mm_projector.proj.0.weight",
        "model.mm_projector.proj.2.bias",
        "model.vision_tower.vision_tower.patch_embed.proj.weight",
        "model.vision_tower.vision_tower.encoder.blocks.0.merger.attn_layer.0.weight",
        "model.vision_tower.vision_tower.encoder.final_layernorm.weight",
    } < set(load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_flat_configuration(tmp_path, batch, family):
    model_type = {"qwen2": "llava_qwen", "qwen3": "llava_qwen3"}[family]
    native = write_released(tmp_path, family, model_type=model_type)
    loaded, info = LlavaUHDForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.config.text_config.model_type == family
    assert not hasattr(loaded.config.text_config, "mm_projector_type")
    assert loaded.config.image_token_id == 259  # the last row, as the vocabulary is smaller than Qwen2's
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert same_logits(loaded, native, batch)


def test_nested_configuration_through_the_auto_classes(tmp_path, batch):
    nested = {
        "model_type": "llava_uhd_v3",
        "text_config": small_text_config("qwen2").to_dict(),
        "image_token_index": 259,
        "auto_map": {"AutoConfig": "configuration_llava_uhd_v3.LlavaUhdV3Config"},
    }
    native = write_released(tmp_path, **nested)
    assert type(AutoConfig.from_pretrained(tmp_path)) is LlavaUHDConfig
    assert same_logits(AutoModelForImageTextToText.from_pretrained(tmp_path), native, batch)
    with torch.no_grad():
        base = AutoModel.from_pretrained(tmp_path)(**batch).last_hidden_state
        assert torch.equal(base, native.model(**batch).last_hidden_state)


def test_vision_tower_described_in_its_own_folder(tmp_path, batch):
    tower = tmp_path / "moonvit"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps(MOONVIT))
    native = write_released(tmp_path, vision_config=..., mm_vision_tower=str(tower))
    assert same_logits(LlavaUHDForConditionalGeneration.from_pretrained(tmp_path), native, batch)


def test_saved_again_in_our_layout(tmp_path, batch):
    released, ours = tmp_path / "released", tmp_path / "ours"
    released.mkdir()
    native = write_released(released)
    LlavaUHDForConditionalGeneration.from_pretrained(released).save_pretrained(ours)
    shutil.rmtree(released)
    assert set(load_file(ours / "model.safetensors")) == set(native.state_dict())
    assert json.loads((ours / "config.json").read_text())["model_type"] == "llava_uhd"
    assert same_logits(AutoModelForImageTextToText.from_pretrained(ours), native, batch)


def test_sharded_weights(tmp_path, batch):
    native = write_released(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: weights[name] for name in chosen}, tmp_path / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors").unlink()
    assert same_logits(LlavaUHDForConditionalGeneration.from_pretrained(tmp_path), native, batch)


PREPROCESSOR = {
    "image_processor_type": "LlavaUhdImageProcessor",
    "processor_class": "LlavaUhdV3Processor",
    "auto_map": {
        "AutoProcessor": "processing_llava_uhd_v3.LlavaUhdV3Processor",
        "AutoImageProcessor": "image_processing_llava_uhd.LlavaUhdImageProcessor",
    },
    "scale_resolution": 64,
    "patch_size": 10,  # the vision tower's is 4
    "any_res": True,
    "allow_upscale": True,
}


@pytest.mark.parametrize("preprocessor", [PREPROCESSOR, None])
def test_processor_of_a_released_folder(tmp_path, pictures, preprocessor):
    native = write_released(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens("<unused>")  # so that the placeholder gets the id that this model does not expect
    Tokenizer.from_str(tokenizer.backend_tokenizer.to_str().replace("<image>", "<other>")).save(
        str(tmp_path / "tokenizer.json")
    )
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    if preprocessor:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    processor = LlavaUHDProcessor.from_pretrained(tmp_path)
    assert processor.image_token_id == 261
    assert (processor.image_processor.patch_size, processor.image_processor.num_stages) == (4, 2)
    assert processor.image_processor.upscale_factor == (1.4 if preprocessor else None)
    assert processor.image_processor.scale_resolution == (64 if preprocessor else 1560)
    small = {"scale_resolution": 64, "min_resolution": 16}
    inputs = processor(images=pictures[0], text="<image>?", return_tensors="pt", images_kwargs=small)

    loaded = LlavaUHDForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(FoveateError, match=r"id 261, .* vocabulary \(0 to 259\) lacks"):
        pair(loaded, processor)
    loaded.resize_token_embeddings(262)
    pair(loaded, processor)
    theirs = inputs["input_ids"].masked_fill(inputs["input_ids"] == 261, 259)
    with torch.no_grad():
        expected = native(**{**inputs, "input_ids": theirs}).logits
        assert torch.allclose(loaded(**inputs).logits[..., :260], expected, atol=1e-6)


def test_a_pair_that_does_not_fit(qwen2, processor):
    pair(qwen2, processor)
    assert qwen2.config.image_token_id == 259
    other = LlavaUHDProcessor(LlavaUHDImageProcessor(patch_size=4, num_stages=3), byte_tokenizer())
    with pytest.raises(FoveateError, match="patch_size 4 and num_stages 3.*patch_size 4 and num_stages 2"):
        pair(qwen2, other)


def test_unknown_and_missing_weights_are_reported(tmp_path):
    write_released(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.vision_tower.vision_tower.encoder.blocks.0.adapter.weight"] = torch.zeros(2)
    del weights["model.mm_projector.proj.2.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = LlavaUHDForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["unexpected_keys"]) == {"model.vision_tower.encoder.blocks.0.adapter.weight"}
    assert set(info["missing_keys"]) == {"model.multi_modal_projector.linear_2.bias"}


def test_what_is_not_llava_uhd_v3_is_refused(tmp_path):
    with pytest.raises(FoveateError, match="mm_projector_type 'resampler' is not supported"):
        convert_released_config({"model_type": "llava_qwen", "mm_projector_type": "resampler"})
    write_released(tmp_path, vision_config=...)
    with pytest.raises(FoveateError, match=r"'/not/here/moonvit' is no folder .* mm_hidden_size 16 .* \(1152\)"):
        LlavaUHDForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(FoveateError, match="model_type 'unheard_of'"):
        convert_released_config({"model_type": "llava_uhd_v3", "text_config": {"model_type": "unheard_of"}})


def test_a_sparse_configuration_is_the_released_model():
    """7B: the language model's shape is given, the tower is the published one, the placeholder is Qwen2's first
    free row."""
    fields = convert_released_config(
        {
            "model_type": "llava_qwen",
            "hidden_size": 3584,
            "vocab_size": 152064,
            "mm_hidden_size": 1152,
            "rope_theta": 1000000.0,
            "image_token_index": -200,
            "torch_dtype": "bfloat16",
        }
    )
    config = LlavaUHDConfig.from_dict(fields)
    assert config.image_token_id == 151646
    assert config.text_config.hidden_size == 3584
    assert config.text_config.rope_parameters["rope_theta"] == 1000000.0
    assert (config.vision_config.patch_size, config.vision_config.merger_layer_index) == (10, [4, 18])
    assert config.dtype == torch.bfloat16


@pytest.mark.parametrize("model_type", ["llava_qwen", "llava_uhd_v3"])
def test_loaded_by_name(tmp_path, pictures, model_type):
    """`foveate.load` runs no Python code of the folder and makes model and processor agree."""
    native = write_released(tmp_path, model_type=model_type, image_token_index=-200)
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    model, processor = load(tmp_path, device="cpu")
    assert (type(model), type(processor)) == (LlavaUHDForConditionalGeneration, LlavaUHDProcessor)
    small = {"scale_resolution": 64, "min_resolution": 16}
    inputs = processor(images=pictures[0], text="<image>?", return_tensors="pt", images_kwargs=small)
    assert same_logits(model, native, inputs)

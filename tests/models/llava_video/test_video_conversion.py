"""Checkpoints of video connectors in the authors' layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2Config

from foveate.core.errors import FoveateError
from foveate.models.llava_video import FoveateLlavaVideoForConditionalGeneration
from foveate.models.video_connectors import video_connector_named
from tests.models.llava.small_llava import TEXT
from tests.models.llava_video.small_llava_video import small_llava_video, words_config
from tests.models.video_connectors.small_options import options_of

#: `model_type`, other fields of config.json, and the options that they mean, by connector.
KINDS: dict[str, tuple[str, dict, dict]] = {
    "vqtoken": ("llava_qwen", {"mm_projector_type": "mlp2x_gelu"}, {"module": "released"}),
    "b_vllm": (
        "bvlm_qwen2",
        {"bert_type": "qformer_pretrain", "num_query": 4},
        {"patch_queries": 4, "normalize": True, "noise": "always"},
    ),
    "slow_fast": (
        "llava_qwen_slow_fast",
        {
            "mm_projector_type": "mlp2x_gelu",
            "cross_attn_gating_type": "whole-dynamic-tanh-warmup",
            "cross_attn_implementation": "text-only-vanilla-flashattn",
            "cross_attn_every_n_layers": 2,
            "fast_token_temporal_stride": 2,
        },
        {
            "clip_pooling": 1,
            "sampling_stride": 1,
            "temporal_stride": 2,
            "spatial_stride": 1,
            "least_frames": 1,
            "every": 2,
            "first": 0,
            "last": None,
        },
    ),
    "hicom": (
        "hicom_qwen2",
        {
            "mm_projector_type": "local22_adaptkv_guidecoarse_global3_guidecoarse",
            "instruction_config": words_config().to_dict(),
        },
        {
            "frames_per_group": 2,
            "group_side": 2,
            "local_guide": "coarse",
            "adapters": "kv",
            "learned_scale": "",
            "newline": False,
            "queries": 3,
            "global_guide": "coarse",
        },
    ),
}
#: Options besides, which the authors' code does not read from its configuration.
FIXED: dict[str, dict] = {"vqtoken": {"places": 36, "clusters": 5}, "hicom": {}, "slow_fast": {}}
FIXED["b_vllm"] = {name: value for name, value in options_of("b_vllm").items() if name != "patch_queries"}


def text_config() -> Qwen2Config:
    return Qwen2Config(**TEXT | {"vocab_size": 264})


def released_weights(model, connector: str) -> dict[str, torch.Tensor]:
    """Weights under the authors' names, made by hand from ours."""
    cls = video_connector_named(connector)
    released = {}
    ours = model.model.multi_modal_projector.state_dict()
    for name in [name for name in ours if "_qformer." in name]:
        part, rest = name.split("_qformer.")
        rest = rest.replace("attention.attention.", "attention.self.").replace("layernorm.", "LayerNorm.")
        released[f"model.vlm_att_encoder_{part}.bert.{rest}"] = ours.pop(name)
    for source, target in cls.released_keys.items():
        plain = source.replace("\\", "").replace("(?:coarse|fine)", "coarse").removesuffix("$")
        plain = plain[1:] if plain.startswith("^") else f"model.{cls.released_prefix}.{plain}"
        for name in [name for name in ours if name.startswith(target)]:
            released[f"{plain}{name.removeprefix(target)}"] = ours.pop(name)
    assert not ours
    for name, weight in model.state_dict().items():
        if name.startswith("model.instruction_encoder."):
            rest = name.removeprefix("model.instruction_encoder.").removeprefix("text_model.")
            released[f"model.vision_tower.guide_encoder.text_model.{rest}"] = weight.clone()
        elif name.startswith("model.vision_tower."):
            rest = name.removeprefix("model.vision_tower.").removeprefix("vision_model.")
            released[f"model.vision_tower.vision_tower.vision_model.{rest}"] = weight.clone()
        elif name.startswith("model.language_model."):
            released[name.replace("model.language_model.", "model.")] = weight.clone()
        elif name.startswith("model.memory_readers."):
            layer, rest = name.removeprefix("model.memory_readers.").split(".", 1)
            theirs = next(rest.replace(ours, one) for one, ours in cls.released_reader_keys.items() if ours in rest)
            released[f"model.layers.{layer}.self_attn.{theirs}"] = weight.clone()
        elif not name.startswith("model.multi_modal_projector."):
            released[name] = weight.clone()
    return released


def write_released(folder: Path, connector: str, **config):
    """Write random weights in the authors' layout; return the model with the same weights in ours."""
    kind, fields, options = KINDS[connector]
    native = small_llava_video(connector, text=text_config(), **options, **FIXED[connector])
    for reader in getattr(native.model, "memory_readers", {}).values():
        torch.nn.init.constant_(reader.gate, 0.7)
    save_file(released_weights(native, connector), folder / "model.safetensors", metadata={"format": "pt"})
    text = text_config().to_dict() | {"model_type": kind}
    vision = {
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "/not/here",
        "vision_config": native.config.vision_config.to_dict(),
    }
    (folder / "config.json").write_text(json.dumps(text | vision | fields | config))
    native.config.image_token_index, native.config.video_token_id = 262, 263
    return native


@pytest.mark.parametrize("connector", KINDS)
def test_a_released_folder_gives_the_same_tokens_and_is_saved_in_our_layout(connector, tmp_path, monkeypatch):
    native = write_released(tmp_path, connector)
    cls = video_connector_named(connector)
    monkeypatch.setattr(
        cls, "released_options", classmethod(lambda cls, config: KINDS[connector][2] | FIXED[connector])
    )
    loaded, info = FoveateLlavaVideoForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    inputs = {"pixel_values_videos": torch.randn(1, 4, 3, 48, 48), "video_instruction_ids": torch.arange(7)[None]}
    with torch.no_grad():
        ours, theirs = (model.eval().get_video_features(**inputs).pooler_output[0] for model in (native, loaded))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    ids = torch.tensor([[1, *[263] * len(ours), 2, 3]])
    call = inputs | {"input_ids": ids, "use_cache": False}
    with torch.no_grad():
        first, second = (model(**call).logits for model in (native, loaded))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
    assert loaded.config.image_token_id == 262 and loaded.config.video_token_id == 263
    loaded.save_pretrained(tmp_path / "ours")
    again = FoveateLlavaVideoForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(again.get_video_features(**inputs).pooler_output[0], ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("connector", KINDS)
def test_options_of_the_authors(connector):
    kind, fields, options = KINDS[connector]
    assert video_connector_named(connector).released_options(fields | {"model_type": kind}) == options


def test_other_models_are_refused(tmp_path):
    write_released(tmp_path, "vqtoken", model_type="llava_other")
    with pytest.raises(FoveateError, match="has one of the model types .*llava_qwen.*, and this is 'llava_other'"):
        FoveateLlavaVideoForConditionalGeneration.from_pretrained(tmp_path)

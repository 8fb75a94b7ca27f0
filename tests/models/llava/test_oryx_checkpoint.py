"""A whole Oryx in the authors' layout: their logits from an image and a question, files and bad input."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import foveate
from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.oryx_vit import OryxViTConfig, OryxViTModel, convert_released_state
from foveate.models.llava import FoveateLlavaConfig, FoveateLlavaForConditionalGeneration, FoveateLlavaProcessor
from foveate.models.llava.conversion import convert_released_config
from foveate.models.llava.layouts import OryxLayout
from tests.models.encoders.released_oryx_vit import weights as tower_weights
from tests.models.llava.released_oryx import (
    MODEL_TYPES,
    QUESTION,
    SIZES,
    TEXT,
    VISION,
    VOCABULARY,
    image,
    prompt_parts,
    tokenizer,
    write_released,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "oryx_checkpoint.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of every kind of release."""
    made = {}
    for model_type in MODEL_TYPES:
        made[model_type] = tmp_path_factory.mktemp(model_type)
        write_released(made[model_type], model_type)
    return made


def asked(processor: Any, case: int) -> Any:
    content = [{"type": "image", "image": image(case)}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert prompt == processor.image_token.join(prompt_parts())
    return processor(images=image(case), text=prompt, return_tensors="pt")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_equals_the_authors_logits(model_type, folders):
    """From an image and a question, by their code and by ours."""
    model, processor = foveate.load(folders[model_type], device="cpu")
    cases = [case for case in GOLDEN["cases"] if case["model_type"] == model_type]
    assert len(cases) == len(SIZES)
    for case in cases:
        with torch.no_grad():
            logits = model(**asked(processor, case["image"])).logits
        assert logits.shape[1] == case["length"]
        ours = logits[0, ::11, :VOCABULARY:17].flatten()
        torch.testing.assert_close(ours, torch.tensor(case["logits"]), atol=2e-5, rtol=1e-4)


def test_the_processor_is_the_authors(folders):
    model, processor = foveate.load(folders["oryx_qwen"], device="cpu")
    assert processor.layout == OryxLayout(side=32, patch_size=8)
    assert processor.image_processor.image_mean == processor.image_processor.image_std == (0.5,) * 3
    learned = processor.tokenizer.convert_tokens_to_ids(["<image>", *processor.layout.special_tokens])
    assert learned == list(range(VOCABULARY, VOCABULARY + 5))
    assert model.config.text_config.vocab_size == VOCABULARY + 5
    inputs = asked(processor, 0)
    assert int((inputs["input_ids"] == VOCABULARY).sum()) == 2 * 4 + 6 * 10


def test_rows_that_no_text_has_are_never_written(folders):
    model, processor = foveate.load(folders["oryx_qwen"], device="cpu")
    with torch.no_grad():
        model.lm_head.weight[:VOCABULARY] = 0.0
        model.lm_head.weight[VOCABULARY:] = model.lm_head.weight.new_ones(5, 1) * 100
        inputs = asked(processor, 1)
        written = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert int(written[0, inputs["input_ids"].shape[1] :].max()) < VOCABULARY


def test_is_saved_in_our_layout_and_read_again(folders, tmp_path):
    model, processor = foveate.load(folders["oryx_qwen"], device="cpu")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not any("mm_projector" in name or "pos_embed" in name for name in load_file(tmp_path / "model.safetensors"))
    again, reader = foveate.load(tmp_path, device="cpu")
    inputs = asked(reader, 2)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**asked(processor, 2)).logits, atol=1e-5, rtol=1e-4)
    assert again.generation_config.suppress_tokens == list(range(VOCABULARY, VOCABULARY + 5))


def test_keys_are_all_known(folders):
    for folder in folders.values():
        _, info = FoveateLlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert type(AutoConfig.from_pretrained(folder)) is FoveateLlavaConfig


def test_plans_choose_the_scale(folders):
    """As for images, short and long videos in the paper."""
    model, processor = foveate.load(folders["oryx_qwen"], device="cpu")
    inputs = asked(processor, 1)
    with torch.no_grad(), foveate.compress(model, "oryx:25%") as handle:
        model(**inputs)
    assert [one.tokens_kept for one in handle.report().images] == [2, 12]


def test_a_tower_in_a_folder_of_its_own(tmp_path):
    config = OryxViTConfig(**VISION)
    tower = OryxViTModel(config)
    tower.load_state_dict(convert_released_state(tower_weights(), config))
    tower.save_pretrained(tmp_path / "tower")
    write_released(tmp_path, "oryx_qwen", tower=False, mm_vision_tower=f"oryx_vit:{tmp_path / 'tower'}")
    model = FoveateLlavaForConditionalGeneration.from_pretrained(tmp_path)
    for name, value in tower.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], value), name


def test_bad_input(tmp_path, caplog, monkeypatch):
    write_released(tmp_path, "oryx_qwen", tower=False)
    with pytest.raises(FoveateError, match=r"'/not/here/oryx_vit.pth', which it names, is a pickle.* of oryx_vit"):
        FoveateLlavaForConditionalGeneration.from_pretrained(tmp_path)
    write_released(tmp_path, "oryx_qwen")
    other = tokenizer()
    other.add_tokens(["<image>"], special_tokens=True)
    other.save_pretrained(tmp_path)
    with pytest.raises(FoveateError, match="the tokenizer must have at most 264 tokens, and none of <image>, "):
        FoveateLlavaProcessor.from_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.mm_projector.image_sep"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # before 5.24 it is not
    with pytest.raises(RuntimeError):  # of transformers, which logs ours
        FoveateLlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert "the checkpoint lacks the learned vector image_sep." in caplog.text


def test_the_tower_of_the_authors_has_its_known_geometry():
    """Positions of 2048 x 2048 pixels, read where the configuration names the tower alone."""
    fields = TEXT | {
        "model_type": "oryx_qwen",
        "mm_projector_type": "simple_mlp_twoview",
        "mm_resampler_type": "dynamic_compressor",
        "mm_vision_tower": "oryx_vit:checkpoints/oryx_vit.pth",
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    }
    converted = convert_released_config(fields)
    assert converted["text_config"]["model_type"] == "qwen2" and "rope_scaling" not in converted["text_config"]
    assert converted["released_vision_tower"] == "checkpoints/oryx_vit.pth"
    vision = OryxViTConfig(**converted["vision_config"])
    assert vision.position_side == 128 and vision.output_grid(384, 384) == Grid(24, 24)

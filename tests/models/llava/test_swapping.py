"""Another connector between the tower and the language model of a LLaVA."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

import foveate
from foveate.core.errors import FoveateError
from foveate.models.connectors import all_connectors
from foveate.models.llava import FoveateLlavaForConditionalGeneration
from tests.models.connectors.small_options import options_of
from tests.models.llava.small_llava import GRID, small_batch, small_config, small_llava, small_processor

PROJECTOR = [f"model.multi_modal_projector.linear_{number}.{part}" for number in (1, 2) for part in ("bias", "weight")]
#: Connectors that continue with the projector of LLaVA.
CONTINUE = ("average", "fourier", "llava_mini", "m3", "mlp", "oryx", "quecc")


def plain_llava(encoder: Any = "clip", **fields: Any) -> Any:
    """A LLaVA of transformers and its processor."""
    config = small_config("mlp", encoder).to_dict()
    for name in ("model_type", "connector_type", "connector_options", "released_vision_tower", "architectures"):
        config.pop(name, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(LlavaConfig(**config | fields)).eval()
    ours = small_processor("mlp", encoder)
    processor = LlavaProcessor(
        ours.image_processor,
        ours.tokenizer,
        patch_size=ours.patch_size,
        vision_feature_select_strategy=ours.vision_feature_select_strategy,
        num_additional_image_tokens=ours.num_additional_image_tokens,
        chat_template="{{ messages }}",
    )
    return model, processor


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
def test_m3_at_full_length_equals_the_original(encoder):
    model, processor = plain_llava(encoder)
    batch = small_batch(processor)
    expected = model(**batch).logits
    swapped, counting, info = foveate.swap_connector(model, processor, "m3", output_loading_info=True)
    assert type(swapped) is FoveateLlavaForConditionalGeneration
    assert info == {"missing_keys": [], "unexpected_keys": []}
    ours = small_batch(counting)
    assert torch.equal(ours["input_ids"], batch["input_ids"])
    assert torch.equal(swapped(**ours).logits, expected)
    assert torch.equal(model(**batch).logits, expected)
    with foveate.compress(swapped, "m3:9") as handle:
        swapped(**ours)
        assert [image.tokens_kept for image in handle.report().images] == [9, 9, 9]


@pytest.mark.parametrize("name", all_connectors())
def test_every_parameter_is_shared_new_or_named(name, tmp_path):
    options = options_of(name) | ({"prefusion_layers": 1} if name == "llava_mini" else {})
    model, processor = plain_llava()
    swapped, counting, info = foveate.swap_connector(model, processor, name, options, output_loading_info=True)
    old, new = dict(model.named_parameters()), dict(swapped.named_parameters())
    for key, weight in new.items():
        assert (key in info["missing_keys"]) == (weight is not old.get(key))
    assert {key for key in old if new.get(key) is not old[key]} == set(info["unexpected_keys"])
    assert info["unexpected_keys"] == ([] if name in CONTINUE else PROJECTOR)
    assert all(key.startswith(("model.multi_modal_projector.", "model.prefusion.")) for key in info["missing_keys"])
    assert all(weight.isfinite().all() and not weight.is_meta for weight in swapped.state_dict().values())
    assert not swapped.training and counting.chat_template == processor.chat_template
    batch = small_batch(counting)
    logits = swapped(**batch).logits

    swapped.save_pretrained(tmp_path)
    counting.save_pretrained(tmp_path)
    loaded, loaded_processor = foveate.load(str(tmp_path))
    torch.testing.assert_close(loaded(**small_batch(loaded_processor)).logits, logits)


def test_new_weights_are_those_of_a_new_model():
    model, processor = plain_llava()
    swapped, _ = foveate.swap_connector(model, processor, "mqt", options_of("mqt"))
    new, expected = (
        swapped.model.multi_modal_projector,
        small_llava("mqt", **options_of("mqt")).model.multi_modal_projector,
    )
    for (name, weight), other in zip(new.named_parameters(), expected.parameters(), strict=True):
        assert weight.shape == other.shape and weight.requires_grad, name
        assert weight.std(correction=0).item() == pytest.approx(other.std(correction=0).item(), rel=0.25), name


def test_new_and_dropped_weights_are_logged(caplog):
    caplog.set_level(logging.WARNING, "foveate.models")
    foveate.swap_connector(*plain_llava(), "m3")
    assert not caplog.records
    foveate.swap_connector(*plain_llava(), "tokenflex", options_of("tokenflex"))
    new, dropped = (record.getMessage() for record in caplog.records)
    assert "must be trained" in new and "model.multi_modal_projector.gate.weight" in new
    assert all(name in dropped for name in PROJECTOR)


def test_swapping_again_keeps_what_both_have():
    model, processor = foveate.swap_connector(*plain_llava(), "mqt", options_of("mqt"))
    shorter = options_of("mqt") | {"tokens": 4}
    again, counting, info = foveate.swap_connector(model, processor, "mqt", shorter, output_loading_info=True)
    assert info == {"missing_keys": [], "unexpected_keys": []} and counting.tokens_of(48, 48) == 4
    with foveate.compress(model, "mqt:4"):
        expected = model(**small_batch(processor)).logits[:, -1]
    torch.testing.assert_close(again(**small_batch(counting)).logits[:, -1], expected)


def test_a_projector_of_other_layers_is_not_kept():
    model, processor = plain_llava()
    _, _, info = foveate.swap_connector(model, processor, "pixel_unshuffle", output_loading_info=True)
    assert info["missing_keys"] == info["unexpected_keys"] == PROJECTOR


def test_dtype_mode_and_attention_are_kept():
    model, processor = plain_llava(multimodal_projector_bias=False)
    model.to(torch.bfloat16).train()
    model.set_attn_implementation("eager")
    swapped, counting = foveate.swap_connector(model, processor, "m3")
    assert swapped.training and swapped.dtype == torch.bfloat16
    assert swapped.config._attn_implementation == swapped.model.language_model.config._attn_implementation == "eager"
    assert swapped.model.multi_modal_projector.linear_1.bias is None
    assert all(weight.dtype == torch.bfloat16 for weight in swapped.parameters())
    swapped(**small_batch(counting).to(torch.bfloat16)).logits.float().sum().backward()
    assert swapped.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


def test_tied_embeddings_stay_tied():
    model, processor = plain_llava(tie_word_embeddings=True)
    swapped, _ = foveate.swap_connector(model, processor, "m3")
    assert swapped.config.tie_word_embeddings
    assert swapped.lm_head.weight is swapped.get_input_embeddings().weight


def test_refusals():
    model, processor = plain_llava()
    with pytest.raises(FoveateError, match="there is no connector 'm4'; possible are average"):
        foveate.swap_connector(model, processor, "m4")
    with pytest.raises(FoveateError, match="has no option queries"):
        foveate.swap_connector(model, processor, "m3", {"queries": 1})
    with pytest.raises(FoveateError, match=f"cannot make 256 tokens of {GRID} x {GRID} patches"):
        foveate.swap_connector(model, processor, "tokenflex")
    with pytest.raises(FoveateError, match="takes a LlavaForConditionalGeneration, not Linear"):
        foveate.swap_connector(torch.nn.Linear(1, 1), processor, "m3")  # ty: ignore[invalid-argument-type]
    for plan in ("divprune:9", "fastv:50%@1"):
        with foveate.compress(model, plan), pytest.raises(FoveateError, match="a plan is attached"):
            foveate.swap_connector(model, processor, "m3")
    model.hf_device_map = {"model": 0, "lm_head": 1}
    with pytest.raises(FoveateError, match="several devices"):
        foveate.swap_connector(model, processor, "m3")


@pytest.mark.parametrize("name", ["m3", "mqt", "tokenflex", "oryx"])
def test_adapters_and_the_whole_connector_are_trained_at_several_lengths(name):
    peft = pytest.importorskip("peft")
    plain, plain_processor = plain_llava()
    swapped, processor = foveate.swap_connector(plain, plain_processor, name, options_of(name))
    batch = small_batch(processor)
    plan = {"m3": "m3:9", "mqt": "mqt:5", "tokenflex": "tokenflex:1", "oryx": "oryx:9"}[name]
    with foveate.compress(swapped, plan):
        expected = swapped(**batch).logits[:, -1]
    settings = peft.LoraConfig(
        target_modules=r".*language_model.*\.q_proj", modules_to_save=["multi_modal_projector"], init_lora_weights=False
    )
    model = peft.get_peft_model(swapped, settings)
    with pytest.raises(FoveateError, match="adapters of PEFT are added after it"):
        foveate.swap_connector(model, plain_processor, "m3")
    with foveate.compress(model, plan) as handle:
        logits = model(**batch).logits[:, -1]
        assert [image.tokens_kept for image in handle.report().images] == [int(plan.split(":")[1])] * 3
    assert not torch.allclose(logits, expected)
    logits.sum().backward()
    trained = {key for key, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert {"lora" in key or "modules_to_save" in key for key in trained} == {True}
    assert any("multi_modal_projector" in key for key in trained) and any("lora_A" in key for key in trained)
    merged = model.merge_and_unload()
    with foveate.compress(merged, plan):
        torch.testing.assert_close(merged(**batch).logits[:, -1], logits, atol=1e-3, rtol=1e-3)

"""LLaVA with any connector."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

import foveate
from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.llava import FoveateLlavaConfig, FoveateLlavaForConditionalGeneration
from tests.models.llava.small_llava import (
    PATCH,
    SIDE,
    pictures,
    small_batch,
    small_config,
    small_llava,
    small_processor,
    vision_config,
)


@pytest.fixture(scope="module")
def model():
    """A model with TokenPacker; read it, do not change it."""
    return small_llava("tokenpacker")


@pytest.fixture(scope="module")
def processor():
    return small_processor("tokenpacker")


@pytest.fixture(scope="module")
def batch(processor):
    return small_batch(processor)


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
def test_with_the_mlp_it_equals_the_class_of_transformers(encoder):
    model = small_llava("mlp", encoder)
    fields = model.config.to_dict()
    for name in ("model_type", "connector_type", "connector_options", "released_vision_tower", "architectures"):
        fields.pop(name, None)
    plain = LlavaForConditionalGeneration(LlavaConfig(**fields)).eval()
    plain.load_state_dict(model.state_dict())
    batch = small_batch(small_processor("mlp", encoder))
    assert torch.equal(model(**batch).logits, plain(**batch).logits)


def test_several_layers_side_by_side_as_in_transformers():
    config = small_config("mlp")
    config.vision_feature_layer = [1, -2]
    model = FoveateLlavaForConditionalGeneration(config).eval()
    plain = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=config.vision_config,
            text_config=config.text_config,
            image_token_index=259,
            vision_feature_layer=[1, -2],
        )
    ).eval()
    plain.load_state_dict(model.state_dict())
    batch = small_batch(small_processor("mlp"))
    assert torch.equal(model(**batch).logits, plain(**batch).logits)


def test_a_batch_equals_single_prompts(model, processor, batch):
    logits = model(**batch).logits
    first, second, third = pictures()
    prompts = [([first, second], "<image> and <image>: compare"), ([third], "<image>?")]
    for row, (images, text) in enumerate(prompts):
        single = processor(images=images, text=text, return_tensors="pt")
        alone = model(**single).logits[0]
        torch.testing.assert_close(logits[row][batch["attention_mask"][row].bool()], alone, atol=1e-4, rtol=1e-4)


def test_eager_attention_equals_sdpa(model, batch):
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    text = batch["attention_mask"].bool()
    torch.testing.assert_close(eager(**batch).logits[text], model(**batch).logits[text], atol=1e-4, rtol=1e-4)


def test_beams_repeat_images(model, batch):
    first = model.generate(**batch, max_new_tokens=3, num_beams=2, do_sample=False)
    assert first.shape[0] == 2
    doubled = {name: torch.cat([value, value]) for name, value in batch.items()}
    assert torch.equal(model.generate(**doubled, max_new_tokens=3, num_beams=2, do_sample=False)[:2], first)


def test_a_missing_placeholder_is_an_error(model, batch):
    ids = batch["input_ids"].clone()
    ids[1, -2:] = 259
    with pytest.raises(ValueError, match="do not match"):
        model(**{**batch, "input_ids": ids})


def test_budget_reaches_a_nested_connector():
    model = small_llava("m3")
    pixels = torch.randn(2, 3, SIDE, SIDE)
    lengths = [len(model.get_image_features(pixels, budget=count).pooler_output[0]) for count in (None, 9, 1)]
    assert lengths == [36, 9, 1]


def test_tokens_that_are_no_patches_are_refused():
    config = small_config("average", "siglip")
    config.vision_feature_select_strategy = "default"
    with pytest.raises(
        FoveateError, match="reads the 36 patches of an image, and with .*'default' there are 35 tokens"
    ):
        FoveateLlavaForConditionalGeneration(config)(
            input_ids=torch.tensor([[259]]), pixel_values=torch.zeros(1, 3, SIDE, SIDE)
        )


def test_a_hidden_state_that_there_is_not_is_refused():
    with pytest.raises(FoveateError, match="the vision tower has the hidden states 0 to 4, and -6 was chosen"):
        small_llava("mlp").get_image_features(torch.zeros(1, 3, SIDE, SIDE), vision_feature_layer=-6)


def test_configurations_that_are_refused():
    with pytest.raises(FoveateError, match="there is no connector 'plumbing'; possible are average"):
        small_config("plumbing")
    with pytest.raises(FoveateError, match="m3 has no option scale; possible are"):
        small_config("m3", scale=2)
    with pytest.raises(FoveateError, match="not pixtral"):
        FoveateLlavaConfig(vision_config={"model_type": "pixtral"})
    with pytest.raises(FoveateError, match="hidden states 0 to 4, and tokenpacker reads 5"):
        small_llava("tokenpacker", layers=[2, 5])
    config = small_config("tokenpacker")
    config.vision_feature_layer = [1, 2]
    with pytest.raises(FoveateError, match="chooses its own layers"):
        FoveateLlavaForConditionalGeneration(config)


def test_gradient_checkpointing_gives_the_same_gradients(batch):
    gradients = []
    for checkpointing in (False, True):
        model = small_llava("tokenpacker").train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)
    connector = {name: gradient for name, gradient in gradients[0].items() if ".multi_modal_projector." in name}
    assert connector and all(gradient is not None for gradient in connector.values())


def test_the_trainer_trains_the_connector(batch, tmp_path):
    from transformers import Trainer, TrainingArguments

    model = small_llava("tokenpacker")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("multi_modal_projector" in name)
    before = copy.deepcopy(model.state_dict())
    data = [{"input_ids": batch["input_ids"][1], "pixel_values": batch["pixel_values"][2]}] * 2

    def collate(rows):
        ids = torch.stack([row["input_ids"] for row in rows])
        return {
            "input_ids": ids,
            "attention_mask": (ids != 256).long(),
            "labels": ids,
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        }

    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True, save_strategy="no"
    )
    Trainer(model, arguments, train_dataset=data, data_collator=collate).train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("multi_modal_projector" in name for name in changed)


def test_peft_adapts_the_language_model_and_trains_the_connector(batch):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        target_modules=r".*language_model.*\.q_proj", modules_to_save=["multi_modal_projector"], r=2
    )
    model = peft.get_peft_model(small_llava("tokenpacker"), config)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any("multi_modal_projector.modules_to_save" in name for name in trained)
    assert any("lora_B" in name for name in trained)


@pytest.mark.parametrize("plan", ["divprune:4", "fastervlm:4", "downsample:4", "fastv:50%@1"])
def test_plans_attach_behind_the_connector(batch, plan):
    model = small_llava("average", scale=2)
    inputs = small_batch(small_processor("average", scale=2))
    full = model(**inputs).logits
    with foveate.compress(model, plan) as handle:
        generated = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert generated.shape[1] == inputs["input_ids"].shape[1] + 2
        assert [image.tokens_in for image in handle.report().images] == [9, 9, 9]
    assert torch.equal(model(**inputs).logits, full)


def test_measured_values_are_means_over_the_patches_of_a_token():
    family = foveate.families.family_of(model := small_llava("pixel_unshuffle", scale=3))
    call = {"pixel_values": torch.zeros(2, 3, SIDE, SIDE)}
    values = torch.randn(2 * 36, 2)
    found = family.spread(model.model, "image", call, None, values)
    expected = values.view(2, 2, 3, 2, 3, 2).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(torch.stack(found), expected)
    assert family.grids(model.model, "image", call) == [Grid(2, 2)] * 2


def test_regions_that_are_not_equal_refuse_measurements():
    model = small_llava("average", size=[4, 5])
    inputs = small_batch(small_processor("average", size=[4, 5]))
    with foveate.compress(model, "divprune:4"):
        model(**inputs)
    with foveate.compress(model, "fastervlm:4"), pytest.raises(FoveateError, match="no equal rectangles") as error:
        model(**inputs)
    assert error.value.code == "needs-equal-regions"
    with pytest.raises(FoveateError) as error:
        foveate.compress(model, "tome:50%")
    assert error.value.code == "needs-one-token-per-patch"


def test_sizes_alone_give_the_number_of_placeholders(processor):
    counted = processor._get_num_multimodal_tokens(image_sizes=[[40, 30], [100, 20]])
    assert counted.num_image_tokens == [9, 9]
    assert small_processor("m3", tokens=4)._get_num_multimodal_tokens([[9, 9]]).num_image_tokens == [4]
    assert vision_config().image_size // PATCH == 6
    double, crop = {"height": 2 * SIDE, "width": 2 * SIDE}, {"height": 4 * PATCH, "width": 4 * PATCH}
    for options in (
        {"size": double},
        {"images_kwargs": {"size": double}},
        {"do_center_crop": True, "crop_size": crop},
        {"do_center_crop": True, "crop_size": 4 * PATCH},
        {"crop_size": crop},  # nothing is cropped
    ):
        inputs = processor(images=pictures(1), text="<image>", return_tensors="pt", **options)
        counted = processor._get_num_multimodal_tokens([[40, 30]], **options)
        assert counted.num_image_tokens == [int((inputs["input_ids"] == 259).sum())]


def test_load_refuses_a_processor_of_another_connector(tmp_path):
    small_llava("tokenpacker").save_pretrained(tmp_path / "one")
    small_processor("average").save_pretrained(tmp_path / "one")
    with pytest.raises(FoveateError, match="tokens of the connector average, and the model has tokenpacker"):
        foveate.load(tmp_path / "one", device="cpu")
    small_llava("tokenpacker", scale=3).save_pretrained(tmp_path / "two")
    small_processor("tokenpacker").save_pretrained(tmp_path / "two")
    with pytest.raises(FoveateError, match="scale=2"):
        foveate.load(tmp_path / "two", device="cpu")
    small_processor("tokenpacker", scale=3).save_pretrained(tmp_path / "two")
    model, _ = foveate.load(tmp_path / "two", device="cpu")
    assert type(model) is FoveateLlavaForConditionalGeneration

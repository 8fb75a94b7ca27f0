"""LLaVA on images as several views: processor, model, plans and reports."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import ImageOps
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_clip import CLIPImageProcessor

import foveate
from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.llava import FoveateLlavaProcessor, ViewImageProcessor
from foveate.models.llava.layouts import LlavaUHDLayout, TokenPackerHDLayout
from foveate.models.llava.processing import pair
from foveate.models.llava_uhd import byte_tokenizer
from foveate.training.collate import Collator
from foveate.training.examples import Example
from foveate.training.training_model import TrainingModel
from tests.models.llava.small_llava import PATCH, SIDE, pictures, small_batch, small_llava
from tests.models.llava.test_llava_conversion import write_released

LAYOUTS = {
    "llava-uhd": LlavaUHDLayout(SIDE, PATCH),
    "tokenpacker-hd": TokenPackerHDLayout(SIDE, PATCH, max_crops=4),
}


def views_processor(layout, connector="mlp", tokenizer=None, encoder="clip", patch_size=PATCH, **options):
    return FoveateLlavaProcessor(
        ViewImageProcessor(layout),
        tokenizer or byte_tokenizer(),
        patch_size=patch_size,
        vision_feature_select_strategy="default" if encoder == "clip" else "full",
        num_additional_image_tokens=int(encoder == "clip"),
        connector_type=connector,
        connector_options=options,
    )


@pytest.fixture(params=list(LAYOUTS))
def layout(request):
    return LAYOUTS[request.param]


@pytest.fixture(scope="module")
def large():
    """Pictures of several proportions, some of one view and some of many."""
    return [picture.resize(size) for picture, size in zip(pictures(), ((130, 90), (30, 40), (60, 170)), strict=True)]


def batch_of(processor, images):
    text = ["<image> and <image>: compare", "<image>?"]
    return processor(images=[images[:2], images[2:]], text=text, return_tensors="pt", padding=True)


def test_prompts_have_the_tokens_of_views_and_the_text_between(layout, large):
    processor = views_processor(layout, "average", scale=2)
    inputs = processor(images=large[0], text="a<image>b", return_tensors="pt")
    expected = "a"
    for view in layout.views(90, 130):
        tokens = -(-view.height // PATCH // 2) * -(-view.width // PATCH // 2)
        expected += "<image>" * tokens + view.separator
    assert processor.decode(inputs["input_ids"][0]) == expected + "b"
    assert "," in expected and "original_sizes" not in inputs


def test_sizes_alone_give_the_number_of_placeholders(layout, large):
    processor = views_processor(layout)
    counted = processor._get_num_multimodal_tokens([[image.height, image.width] for image in large])
    inputs = batch_of(processor, large)
    placeholders = (inputs["input_ids"] == processor.image_token_id).sum(-1).tolist()
    assert placeholders == [sum(counted.num_image_tokens[:2]), counted.num_image_tokens[2]]
    assert sum(counted.num_image_patches) == len(inputs["pixel_values"])


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
def test_every_view_is_encoded_as_if_it_were_alone(encoder, layout, large):
    model = small_llava("tokenpacker", encoder, scale=1, layers=[1, 2])
    inputs = batch_of(views_processor(layout, "tokenpacker", encoder=encoder, scale=1, layers=[1, 2]), large)
    sizes = inputs["image_sizes"].tolist()
    with torch.no_grad():
        tokens = model.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"]).pooler_output
        for view, (height, width), own in zip(inputs["pixel_values"], sizes, tokens, strict=True):
            alone = model.get_image_features(view[None, :, :height, :width], interpolate_pos_encoding=True)
            torch.testing.assert_close(own, alone.pooler_output[0], atol=1e-5, rtol=1e-4)
            assert len(own) == height // PATCH * (width // PATCH)


def test_padding_is_not_encoded(large):
    model, processor = small_llava("mlp"), views_processor(LAYOUTS["llava-uhd"])
    inputs = batch_of(processor, large)
    pixels = inputs["pixel_values"].clone()
    for view, (height, width) in zip(pixels, inputs["image_sizes"].tolist(), strict=True):
        view[:, height:], view[:, :, width:] = 7.0, 7.0
    assert not torch.equal(pixels, inputs["pixel_values"])
    with torch.no_grad():
        assert torch.equal(model(**{**inputs, "pixel_values": pixels}).logits, model(**inputs).logits)


def test_a_batch_equals_single_prompts_and_generates(layout, large):
    model, processor = small_llava("mlp"), views_processor(layout)
    inputs = batch_of(processor, large)
    with torch.no_grad():
        logits = model(**inputs).logits
        singles = [(large[:2], "<image> and <image>: compare"), (large[2:], "<image>?")]
        for row, (images, text) in enumerate(singles):
            alone = model(**processor(images=images, text=text, return_tensors="pt")).logits[0]
            own = logits[row][inputs["attention_mask"][row].bool()]
            torch.testing.assert_close(own, alone, atol=1e-3, rtol=1e-3)
    cached = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(cached, model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False))
    beams = model.generate(**inputs, max_new_tokens=3, num_beams=2, do_sample=False)
    doubled = {name: torch.cat([value, value]) for name, value in inputs.items()}
    assert torch.equal(model.generate(**doubled, max_new_tokens=3, num_beams=2, do_sample=False)[:2], beams)


def test_saving_and_loading(layout, large, tmp_path):
    model, processor = small_llava("mlp"), views_processor(layout)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "processor_config.json").read_text())
    assert fields["image_processor"]["layout"]["name"] == layout.name
    again, reader = foveate.load(tmp_path, device="cpu")
    assert reader.layout == layout == AutoProcessor.from_pretrained(tmp_path).layout
    inputs, other = batch_of(processor, large), batch_of(reader, large)
    assert all(torch.equal(inputs[name], other[name]) for name in inputs)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is type(model)


def test_gradients_reach_the_pixels_of_every_view(large):
    model = small_llava("mlp").train()
    inputs = batch_of(views_processor(LAYOUTS["llava-uhd"]), large)
    pixels = inputs["pixel_values"].requires_grad_()
    model(**{**inputs, "pixel_values": pixels}, labels=inputs["input_ids"]).loss.backward()
    for gradient, (height, width) in zip(pixels.grad, inputs["image_sizes"].tolist(), strict=True):
        assert gradient[:, :height, :width].abs().sum() > 0
        assert not gradient[:, height:].any() and not gradient[:, :, width:].any()


@pytest.mark.parametrize("plan", ["divprune:25%", "fastervlm:25%", "visionzip:50%", "downsample:25%", "fastv:50%@1"])
def test_plans_act_on_every_view(plan, layout, large):
    model, processor = small_llava("mlp"), views_processor(layout)
    inputs = batch_of(processor, large)
    full = model(**inputs).logits
    counts = [height // PATCH * (width // PATCH) for height, width in inputs["image_sizes"].tolist()]
    with foveate.compress(model, plan) as handle:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        images = handle.report().images
        assert [image.tokens_in for image in images] == counts
        if "@" not in plan:
            share = 0.5 if "50" in plan else 0.25
            assert [image.tokens_kept for image in images] == [round(share * count) for count in counts]
    assert torch.equal(model(**inputs).logits, full)


@pytest.mark.parametrize("plan", ["fastervlm:25%", "vtc-cls:25%"])
def test_values_of_the_encoder_belong_to_their_view(plan, large):
    """What is kept of a view among views of several sizes is what is kept of the view alone.

    The tower reads views of one size together, so that the slices of both images come before the overviews.
    """
    model, processor = small_llava("mlp"), views_processor(LAYOUTS["llava-uhd"])
    images = [large[0], large[2], ImageOps.mirror(large[0])]
    inputs = processor(images=images, text="<image><image><image>", return_tensors="pt")
    sizes = inputs["image_sizes"].tolist()
    assert sizes[0] in sizes[-4:] and sizes[0] != sizes[-1]
    with foveate.compress(model, plan) as handle:
        model(**inputs)
        together = [image.selection.indices.tolist() for image in handle.report().images]
        for view, size, kept in zip(inputs["pixel_values"], sizes, together, strict=True):
            count = size[0] // PATCH * (size[1] // PATCH)
            ids = torch.tensor([[5, *[processor.image_token_id] * count, 6]])
            model(input_ids=ids, pixel_values=view[None], image_sizes=torch.tensor([size]))
            assert handle.report().images[0].selection.indices.tolist() == kept


def test_one_value_per_sequence_belongs_to_its_view(large):
    """[CLS] features come in the order in which the tower reads the views, and are returned in that of the prompt."""
    model = small_llava("mlp")
    family, core = foveate.families.family_of(model), model.model
    inputs = batch_of(views_processor(LAYOUTS["llava-uhd"]), [large[0], large[2], large[0]])
    read = []
    hook = core.vision_tower.register_forward_hook(lambda module, args, output: read.append(output.pooler_output))
    core.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"])
    hook.remove()
    for view, (height, width), own in zip(
        inputs["pixel_values"],
        inputs["image_sizes"].tolist(),
        family.per_image(core, dict(inputs), torch.cat(read)),
        strict=True,
    ):
        alone = core.vision_tower(view[None, :, :height, :width], interpolate_pos_encoding=True).pooler_output[0]
        torch.testing.assert_close(own, alone, atol=1e-4, rtol=1e-4)


def test_a_nested_connector_has_the_length_of_the_plan_for_every_view(large):
    model = small_llava("mqt", num_queries=36, num_heads=2)
    processor = views_processor(LAYOUTS["llava-uhd"], "mqt", num_queries=36, num_heads=2)
    inputs = batch_of(processor, large)
    with foveate.compress(model, "mqt:9") as handle:
        model(**inputs)
        assert {image.tokens_kept for image in handle.report().images} == {9}


def test_a_connector_that_reads_the_prompt_reads_it_for_every_view(large):
    layout = LAYOUTS["tokenpacker-hd"]
    model, processor = small_llava("quecc", scale=3), views_processor(layout, "quecc", scale=3)
    inputs = batch_of(processor, large)
    with torch.no_grad():
        logits = model(**inputs).logits
        alone = model(**processor(images=large[2], text="<image>?", return_tensors="pt")).logits[0]
        other = model(**processor(images=large[2], text="<image>!", return_tensors="pt")).logits[0]
    torch.testing.assert_close(logits[1][inputs["attention_mask"][1].bool()], alone, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(alone[0], other[0], atol=1e-3)  # the first token of the first view


def test_budgets_of_views_of_one_size_may_differ_from_those_of_another(large):
    model, processor = small_llava("tokenflex", tokens=4), views_processor(LAYOUTS["llava-uhd"], "tokenflex", tokens=4)
    inputs = batch_of(processor, large[2:] + large[:2])
    sizes = [tuple(size) for size in inputs["image_sizes"].tolist()]
    budgets = [1 if size == sizes[0] else 4 for size in sizes]
    encoded = model.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"], budget=budgets)
    assert set(budgets) == {1, 4} and [len(tokens) for tokens in encoded.pooler_output] == budgets


def test_asking_places_views_in_the_image(layout, large):
    model, processor = small_llava("mlp"), views_processor(layout)
    answer = foveate.ask(large[0], "?", model=(model, processor), plan="divprune:25%", max_new_tokens=1)
    views = layout.views(large[0].height, large[0].width)
    crops = [document["crops"][0] for document in answer.selection]
    assert [(crop["kind"], tuple(crop["box"])) for crop in crops] == [(view.kind, view.box) for view in views]
    full = sum(view.height // PATCH * (view.width // PATCH) for view in views)
    assert answer.tokens.full == full and answer.stages[0].tokens == full
    several = foveate.ask(large[:2], "?", model=(model, processor), plan="divprune:25%", max_new_tokens=1)
    assert len(several.selection) == len(views) + len(layout.views(large[1].height, large[1].width))


@pytest.mark.parametrize(
    ("connector", "config", "expected"),
    [
        ("spatial_resampler", {}, LlavaUHDLayout(SIDE, PATCH, max_slices=7)),
        ("resampler", {}, LlavaUHDLayout(SIDE, PATCH, max_slices=7)),
        ("tokenpacker", {"image_aspect_ratio": "slice", "patch_num": "16"}, TokenPackerHDLayout(SIDE, PATCH, 16)),
    ],
)
def test_released_folders_have_their_layout(connector, config, expected, large, tmp_path):
    write_released(tmp_path, connector, **config)
    model, processor = foveate.load(tmp_path, device="cpu")
    assert processor.layout == expected
    inputs = processor(images=large[0], text=f"{processor.image_token}?")
    views = expected.views(large[0].height, large[0].width)
    count = model.model.multi_modal_projector.output_grid(Grid(6, 6)).size
    assert inputs["input_ids"][0].count(model.config.image_token_id) == len(views) * count


def test_training_on_answers(layout, large):
    """The collator writes the prompt as the processor does, and a few steps learn the answers."""
    processor = views_processor(layout, "average")
    processor.chat_template = processor.tokenizer.chat_template
    conversation = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "it"}]
    examples = [Example((image,), conversation) for image in large]
    batch = Collator(processor)(examples)
    messages = [{"role": "user", "content": "<image>\nwhat?"}, {"role": "assistant", "content": "it"}]
    for example, ids, mask in zip(examples, batch["input_ids"], batch["attention_mask"], strict=True):
        text = processor.tokenizer.apply_chat_template(messages, tokenize=False)
        expected = processor(images=example.images[0], text=text, return_tensors="pt")["input_ids"][0]
        assert torch.equal(ids[mask.bool()], expected)
    model = TrainingModel(small_llava("average")).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        sums = model(**batch)
        loss = sums["answer_loss"] / sums["answer_tokens"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    for option in ({"cells": True}, {"answer_attention": True}, {"window": 2}, {"lengths": True}):
        with pytest.raises(FoveateError, match=f"images are views of the layout {layout.name}: train on answers alone"):
            Collator(processor, **option)


def test_the_axis_of_channels_can_be_named():
    """An array of 3 x 30 x 3 may be read in both ways."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, 30, 3), np.uint8)
    processor = ViewImageProcessor(LAYOUTS["llava-uhd"])
    for order, size in ((None, [3, 30]), ("channels_last", [3, 30]), ("channels_first", [30, 3])):
        assert processor(pixels, input_data_format=order, return_tensors="pt")["original_sizes"].tolist() == [size]


def test_what_does_not_fit_is_refused(large):
    layout = LAYOUTS["llava-uhd"]
    with pytest.raises(FoveateError, match="llava-uhd has patch_size 8, and the processor has 16"):
        views_processor(layout, patch_size=16)
    with pytest.raises(FoveateError, match="a layout is a mapping with one of the names"):
        ViewImageProcessor()
    processor = ViewImageProcessor(layout)
    with pytest.raises(FoveateError, match="crop_size has no effect on views"):
        processor(large[0], crop_size={"height": 4, "width": 4})
    with pytest.raises(FoveateError, match="do_resize cannot be switched off"):
        processor(large[0], do_resize=False)
    with pytest.raises(FoveateError, match="resample has no effect on views"):
        processor(large[0], resample=0)
    model = small_llava("mlp")
    for sizes in ([[48, 48]], [[48, 48], [48, 56]]):
        with pytest.raises(FoveateError, match="height and width of 2 views of at most 48 x 48 pixels"):
            model.get_image_features(torch.zeros(2, 3, SIDE, SIDE), image_sizes=torch.tensor(sizes))
    pair(model, views_processor(layout))
    with pytest.raises(FoveateError, match="llava_mini fuses text with images, which cannot be views"):
        views_processor(layout, "llava_mini", size=2, prefusion_layers=2)
    fused = small_llava("llava_mini", size=2, prefusion_layers=2)
    with pytest.raises(FoveateError, match="views of several sizes cannot be fused with text"):
        fused.get_image_features(torch.zeros(1, 3, SIDE, SIDE), image_sizes=torch.tensor([[SIDE, SIDE]]))


def test_text_between_views_must_be_one_token():
    """Older Llama tokenizers put a space before text after a placeholder."""
    tokenizer = Tokenizer(models.WordLevel({"▁": 0, ",": 1, "\n": 2, "<unk>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always", split=False), pre_tokenizers.Split("▁", "isolated")]
    )
    tokenizer.add_special_tokens(["<image>"])
    spaced = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    with pytest.raises(FoveateError, match=r"',' between views, which .* tokens \['▁', ','\] there: .*legacy=False"):
        views_processor(LAYOUTS["llava-uhd"], tokenizer=spaced)


def test_one_view_of_the_size_of_the_encoder_equals_a_plain_image():
    """A square image of the encoder's size is one view, which a processor without layout gives the same pixels."""
    square = pictures()[0].resize((SIDE, SIDE))
    plain = CLIPImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False)(square, return_tensors="pt")
    views = ViewImageProcessor(LAYOUTS["llava-uhd"])(square)
    assert views["image_sizes"].tolist() == [[SIDE, SIDE]]
    torch.testing.assert_close(views["pixel_values"], plain["pixel_values"], atol=1e-5, rtol=1e-5)


def test_inputs_are_those_of_the_model():
    inputs = small_batch(views_processor(LAYOUTS["tokenpacker-hd"]))
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values", "image_sizes"}

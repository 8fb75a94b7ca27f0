"""LLaVA-UHD with connectors that merge tokens."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoProcessor

import foveate
from foveate import cost as cost_of
from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.cost import flops
from foveate.cost.preprocessing import processed_image
from foveate.cost.shapes import shape_of
from foveate.models.connectors import all_connectors, connector_named
from foveate.models.llava_uhd import (
    LlavaUHDConfig,
    LlavaUHDForConditionalGeneration,
    LlavaUHDProcessor,
    byte_tokenizer,
)
from foveate.models.llava_uhd.image_processing import LlavaUHDImageProcessor
from foveate.models.llava_uhd.modeling import hidden_states_of_tokens
from foveate.models.llava_uhd.pairing import pair
from tests.models.connectors.small_options import options_of
from tests.models.llava_uhd.small_llava_uhd import small_text_config, small_vision_config

NAMES = [name for name, connector in all_connectors().items() if not connector.reads_text]


def made(name: str, multiple: int | None = None, **options) -> tuple:
    """A model with one stage, and its processor."""
    options = options or options_of(name)
    config = LlavaUHDConfig(
        vision_config=small_vision_config(merger_layer_index=[1], num_attention_heads=2),
        text_config=small_text_config("qwen2"),
        image_token_id=259,
        connector_type=name,
        connector_options=options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaUHDForConditionalGeneration(config).eval()
    images = LlavaUHDImageProcessor(
        patch_size=4,
        num_stages=1,
        scale_resolution=64,
        min_resolution=16,
        max_edge=128,
        token_multiple=connector_named(name).without_weights(**options).multiple if multiple is None else multiple,
    )
    processor = LlavaUHDProcessor(images, byte_tokenizer(), connector_type=name, connector_options=options)
    return model, processor


def batch_of(processor, pictures):
    images = [[pictures[0], pictures[1]], [pictures[2]]]
    return processor(images=images, text=["<image> and <image>", "<image>?"], return_tensors="pt", padding=True)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_all_sizes_generate_save_and_load(name, pictures, tmp_path):
    model, processor = made(name)
    pair(model, processor)
    batch = batch_of(processor, pictures)
    features = model.get_image_features(batch["pixel_values"], batch["grid_hws"])
    connector = model.model.multi_modal_projector
    grids = [connector.output_grid(Grid(rows // 2, columns // 2)) for rows, columns in batch["grid_hws"].tolist()]
    assert [tuple(grid) for grid in features.grid_hws.tolist()] == grids
    assert [len(tokens) for tokens in features.pooler_output] == [grid.size for grid in grids]
    sizes = [[picture.height, picture.width] for picture in pictures[:3]]
    assert processor._get_num_multimodal_tokens(sizes).num_image_tokens == [grid.size for grid in grids]
    generated = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert generated.shape == (2, batch["input_ids"].shape[1] + 3)
    beams = model.generate(**batch, max_new_tokens=2, num_beams=2, do_sample=False)
    assert beams.shape[0] == 2
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reader = LlavaUHDForConditionalGeneration.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)
    assert torch.equal(batch_of(reader, pictures)["input_ids"], batch["input_ids"])


@pytest.mark.parametrize("name", NAMES)
def test_packed_images_equal_each_alone(name, pictures):
    model, processor = made(name)
    batch = batch_of(processor, pictures)
    together = model.get_image_features(batch["pixel_values"], batch["grid_hws"]).pooler_output
    parts = batch["pixel_values"].split(batch["grid_hws"].prod(-1).tolist())
    for pixels, grid, tokens in zip(parts, batch["grid_hws"].split(1), together, strict=True):
        (alone,) = model.get_image_features(pixels, grid).pooler_output
        torch.testing.assert_close(alone, tokens, atol=1e-5, rtol=1e-5)


def test_hidden_states_before_a_stage_are_means_over_its_windows(pictures):
    model, processor = made("tokenpacker")
    batch = batch_of(processor, pictures)
    encoded = model.model.vision_tower(
        pixel_values=batch["pixel_values"], grid_hws=batch["grid_hws"], output_hidden_states=True
    )
    vision = model.config.vision_config
    found = hidden_states_of_tokens(encoded, (1, 2, -1), vision)
    rows, columns = batch["grid_hws"][0].tolist()
    first = encoded.hidden_states[1][: rows * columns].view(rows // 2, 2, columns // 2, 2, -1).mean(dim=(1, 3))
    torch.testing.assert_close(found[: rows * columns // 4, 0], first.flatten(0, 1))
    assert torch.equal(found[:, 1], encoded.hidden_states[2]) and torch.equal(found[:, 2], encoded.hidden_states[-1])
    with pytest.raises(FoveateError, match="hidden states 0 to 3, and the connector reads 4"):
        hidden_states_of_tokens(encoded, (4,), vision)


@pytest.mark.parametrize("plan", ["divprune:2", "downsample:4", "fastervlm:2"])
def test_plans_attach(plan, pictures):
    model, processor = made("tokenpacker")
    batch = batch_of(processor, pictures)
    full = model(**batch).logits
    counts = model.get_image_features(batch["pixel_values"], batch["grid_hws"]).grid_hws.prod(-1).tolist()
    with foveate.compress(model, plan) as handle:
        model(**batch)
        assert [image.tokens_in for image in handle.report().images] == counts
    assert torch.equal(model(**batch).logits, full)


def test_a_processor_that_does_not_fit_is_refused():
    model, processor = made("tokenpacker", multiple=1)
    with pytest.raises(FoveateError, match="set token_multiple of the image processor to 2"):
        pair(model, processor)
    with pytest.raises(FoveateError, match="of the connector average, and the model has tokenpacker"):
        pair(model, made("average")[1])


def test_vision_remember_needs_the_tokens_of_the_encoder():
    with pytest.raises(FoveateError, match="Vision Remember needs every token of the encoder, and the connector m3"):
        LlavaUHDConfig(
            vision_config=small_vision_config(),
            text_config=small_text_config("qwen2"),
            image_token_id=259,
            vision_remember_layers=[1],
            connector_type="m3",
        )


def test_costs_are_those_of_the_connector(pictures):
    model, processor = made("tokenpacker")
    counted = processed_image(model.config, pictures[0].width, pictures[0].height, processor.image_processor)
    batch = processor(images=pictures[0], text="<image>", return_tensors="pt")
    assert counted.tokens == int((batch["input_ids"] == 259).sum())
    shape = shape_of(model.config)
    cost = cost_of.cost(shape, cost_of.follow(None, shape, counted), batch["input_ids"].shape[1] - counted.tokens)
    with torch.inference_mode():
        _, by_module = flops.count_modules(lambda: model.requires_grad_(False)(**batch))
    assert cost.parts["connector"] == by_module[f"{type(model).__name__}.model.multi_modal_projector"]


def test_asking_names_the_connector(pictures):
    model, processor = made("average")
    answer = foveate.ask(pictures[0], "?", (model, processor), max_new_tokens=1)
    tokens = model.model.multi_modal_projector.output_grid(Grid(4, 6)).size
    assert [(stage.name, stage.tokens) for stage in answer.stages][-1] == ("connector", tokens)

"""LLaVA-UHD whose vision tower is an encoder of foveate: images of several sizes, plans, FLOPs, training."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
from foveate import cost as cost_of
from foveate.core.errors import FoveateError
from foveate.cost import flops
from foveate.cost.preprocessing import processed_image
from foveate.cost.shapes import shape_of
from foveate.models.connectors.registry import connector_of_sizes
from foveate.models.encoders import all_encoders
from foveate.models.llava.processing import encoder_fields
from foveate.models.llava_uhd import (
    LlavaUHDConfig,
    LlavaUHDForConditionalGeneration,
    LlavaUHDProcessor,
    byte_tokenizer,
)
from foveate.models.llava_uhd.configuration import token_multiple
from foveate.models.llava_uhd.image_processing import LlavaUHDImageProcessor
from foveate.models.llava_uhd.packed_encoder import PackedEncoder
from foveate.models.llava_uhd.pairing import pair
from foveate.training.recipe_file import parse_recipe
from foveate.training.run import Run
from tests.models.encoders.small_encoders import fields_of, small_config, small_encoder
from tests.models.llava_uhd.small_llava_uhd import small_text_config
from tests.training.small_training import TEXT, read_log, recipe, small_stage, write_conversations

#: By default an encoder of each kind: a grid that follows the image, a fixed one, and tokens without a place.
FAST = ("lookupvit", "sit", "stvit")
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in sorted(all_encoders())]


def made(name: str, connector: str = "mlp", options: dict[str, Any] | None = None, **changes: Any) -> tuple[Any, Any]:
    """A model and its processor; images of 48 x 48 to 64 x 64 pixels."""
    vision = small_config(name, **changes)
    config = LlavaUHDConfig(
        vision_config=vision,
        text_config=small_text_config("qwen2"),
        image_token_id=259,
        connector_type=connector,
        connector_options=options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaUHDForConditionalGeneration(config).eval()
    images = LlavaUHDImageProcessor(
        patch_size=vision.multiple,
        num_stages=0,
        scale_resolution=64,
        min_resolution=48,
        token_multiple=token_multiple(vision, connector_of_sizes(connector, options)),
    )
    fields: dict[str, Any] = {"connector_type": connector, "connector_options": options, **encoder_fields(vision)}
    return model, LlavaUHDProcessor(images, byte_tokenizer(), **fields)


@pytest.fixture(scope="module")
def noise() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(64, 48), (48, 48), (64, 48), (48, 64)]
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def batch_of(processor: Any, noise: list[Image.Image]) -> Any:
    text = ["<image> and <image>: compare", "<image><image>?"]
    return processor(images=[noise[:2], noise[2:]], text=text, return_tensors="pt", padding=True)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_several_sizes_are_encoded_as_each_alone(name, noise, tmp_path):
    model, processor = made(name)
    pair(model, processor)
    batch = batch_of(processor, noise)
    encoded = model.model.vision_tower(batch["pixel_values"], batch["grid_hws"], output_hidden_states=True)
    config, encoder = model.config.vision_config, model.model.vision_tower.encoder
    grids = [config.output_grid(image.height, image.width) for image in noise]
    assert [tuple(grid) for grid in encoded.grid_hws.tolist()] == grids
    tokens = encoded.last_hidden_state.split([grid.size for grid in grids])
    assert torch.equal(encoded.hidden_states[-1], encoded.last_hidden_state)
    for image, own in zip(noise, tokens, strict=True):
        pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
        alone = encoder(pixels, **config.tower_options()).last_hidden_state[0]
        torch.testing.assert_close(own, alone, rtol=1e-4, atol=1e-4)

    placeholders = (batch["input_ids"] == processor.image_token_id).sum(-1)
    assert placeholders.tolist() == [sum(grid.size for grid in grids[:2]), sum(grid.size for grid in grids[2:])]
    sizes = [[image.height, image.width] for image in noise]
    counted = processor._get_num_multimodal_tokens(sizes)
    assert counted.num_image_tokens == [grid.size for grid in grids]
    answer = model.generate(**batch, max_new_tokens=4, do_sample=False)
    beams = model.generate(**batch, max_new_tokens=2, num_beams=2, do_sample=False)
    assert len(beams) == 2
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, other = foveate.load(tmp_path, dtype="float32", device="cpu")
    assert type(again.model.vision_tower) is PackedEncoder
    assert torch.equal(again.generate(**batch_of(other, noise), max_new_tokens=4, do_sample=False), answer)


def test_plans_act_on_the_tokens_after_the_connector(noise):
    model, processor = made("plain_vit")
    batch = batch_of(processor, noise)
    plain = model(**batch).logits
    with foveate.compress(model, "divprune:5", processor=processor) as handle:
        kept = model(**batch).logits.shape[1]
        assert [report.tokens_kept for report in handle.report().images] == [5, 5, 5, 5]
        assert [report.tokens_in for report in handle.report().images] == [48, 36, 48, 48]
    assert kept < plain.shape[1] and torch.equal(model(**batch).logits, plain)
    with foveate.compress(model, "divprune:100%", processor=processor):
        torch.testing.assert_close(model(**batch).logits, plain)
    for plan, words in (
        ("tome:50%", "tome merges inside the encoder, which needs every patch to become one token"),
        ("downsample:25%", "downsample acts on or measures the encoder, and plain_vit is not built as ViT-UHD is"),
        ("fastervlm:8", "fastervlm"),
        ("hiprune:8", "hiprune acts on or measures the encoder, and plain_vit is not built as ViT-UHD is"),
    ):
        with pytest.raises(FoveateError, match=words):
            foveate.compress(model, plan, processor=processor)


def test_lengths_of_an_encoder_are_chosen_by_a_plan(noise):
    model, processor = made("lookupvit", training_sides=[2, 3])
    batch = batch_of(processor, noise)
    with foveate.compress(model, "nested:4", processor=processor) as handle:
        output = model.generate(**batch, max_new_tokens=2, do_sample=False)
        assert [report.tokens_kept for report in handle.report().images] == [4, 4, 4, 4]
    other, small = made("lookupvit", compressed_side=2)
    other.load_state_dict(model.state_dict())
    expected = other.generate(**batch_of(small, noise), max_new_tokens=2, do_sample=False)
    assert torch.equal(output[:, -2:], expected[:, -2:])


def test_connectors_merge_the_tokens_or_say_why_not(noise):
    model, processor = made("plain_vit", "average", {"scale": 2})
    batch = batch_of(processor, noise)
    assert model.get_image_features(batch["pixel_values"], batch["grid_hws"]).grid_hws.tolist() == [
        [3, 4], [3, 3], [3, 4], [4, 3],
    ]  # fmt: skip
    model, processor = made("plain_vit", "tokenpacker", {"layers": (1, 2, 3)})
    model(**batch_of(processor, noise))
    model, processor = made("stvit", "pixel_unshuffle", {"scale": 2})  # a token has 16 pixels, and squares have 4
    assert processor.image_processor.token_multiple == 8
    batch = batch_of(processor, noise)
    assert batch["grid_hws"].tolist() == [[8, 16], [8, 8], [8, 16], [16, 8]]
    assert model.get_image_features(batch["pixel_values"], batch["grid_hws"]).grid_hws.tolist() == [
        [1, 2], [1, 1], [1, 2], [2, 1],
    ]  # fmt: skip
    processor.image_processor.token_multiple = 2
    with pytest.raises(FoveateError, match="set token_multiple of the image processor to 8"):
        pair(model, processor)
    model, processor = made("stvit", "tokenpacker", {"layers": (1, 2, 3)})
    with pytest.raises(FoveateError, match=r"reads the 28 tokens that stvit makes .* hidden state 1 is of shape"):
        model(**batch_of(processor, noise))


@pytest.mark.parametrize("name", ["lookupvit", "stvit"])
def test_flops_and_tokens_are_those_of_the_model(name, noise):
    model, processor = made(name)
    for picture in noise[:2]:
        counted = processed_image(model.config, picture.width, picture.height, processor.image_processor)
        batch = processor(images=picture, text="<image>", return_tensors="pt")
        assert counted.tokens == int((batch["input_ids"] == 259).sum())
        shape = shape_of(model.config)
        cost = cost_of.cost(shape, cost_of.follow(None, shape, counted), batch["input_ids"].shape[1] - counted.tokens)
        with torch.inference_mode():
            _, by_module = flops.count_modules(lambda batch=batch: model.requires_grad_(False)(**batch))
        for part, module in (("encoder", "vision_tower"), ("connector", "multi_modal_projector")):
            assert cost.parts[part] == by_module[f"{type(model).__name__}.model.{module}"] > 0


def test_parts_join_and_what_does_not_fit_is_refused():
    model, processor = made("plain_vit")
    text = copy.deepcopy(model)
    from transformers import Qwen2ForCausalLM

    tower = small_encoder("plain_vit")
    joined = LlavaUHDForConditionalGeneration.from_parts(tower, Qwen2ForCausalLM(text.config.text_config), 259)
    pair(joined, processor)
    assert joined.model.vision_tower.encoder is tower
    assert {name for name, _ in joined.named_parameters()} == {name for name, _ in model.named_parameters()}

    with pytest.raises(FoveateError, match="the processor counts the tokens of plain_vit, and the model has stvit"):
        pair(made("stvit")[0], processor)
    with pytest.raises(FoveateError, match="counts 4 x 4 tokens of the encoder lookupvit .* and the model has 3 x 3"):
        pair(made("lookupvit", compressed_side=3)[0], made("lookupvit")[1])
    fields = encoder_fields(model.config.vision_config)
    with pytest.raises(FoveateError, match="set patch_size 8 and num_stages 0 of the image processor"):
        LlavaUHDProcessor(LlavaUHDImageProcessor(), byte_tokenizer(), **fields)
    remembering = LlavaUHDConfig(**model.config.to_dict() | {"vision_remember_layers": [1]})
    with pytest.raises(FoveateError, match="Vision Remember reads features before the stages of ViT-UHD"):
        LlavaUHDForConditionalGeneration(remembering)
    with pytest.raises(FoveateError, match="no encoder"):
        LlavaUHDConfig(vision_config={"model_type": "resnet"})
    with pytest.raises(FoveateError, match="describes 9 squares of 8 x 8 pixels, but pixel_values has the shape"):
        model.model.vision_tower(torch.zeros(4, 3, 8, 8), torch.tensor([[3, 3]]))


# The other encoders train in tests/training/test_encoders.py.
def test_a_recipe_trains_and_the_model_answers(tmp_path):
    data = [{"files": {"path": str(write_conversations(tmp_path))}}]
    train = dict.fromkeys(("vision_tower", "connector", "language_model"), 3e-3)
    stage = small_stage(data, steps=4, train=train, lengths="sampled")
    vision = {"type": "lookupvit", **fields_of("lookupvit", training_sides=[2, 3])}
    new = {"architecture": "llava-uhd", "vision": vision, "text": TEXT}
    new |= {"images": {"scale_resolution": 64, "min_resolution": 48}}
    run = Run(parse_recipe(recipe(tmp_path / "out", stage, model={"new": new})), workers=0)
    assert run.train().finished
    log = read_log(run.output)
    assert log[-1]["answer_loss"] < 6 and set(log[0]["lengths"]) <= {"4", "9", "16"}
    answer = foveate.ask(Image.new("RGB", (64, 32), "white"), "Read.", model=str(run.output / "model"))
    assert answer.tokens.read == 16

"""LLaVA on encoders of foveate: sizes, answers, folders, plans and recipes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig

import foveate
from foveate.core.errors import FoveateError
from foveate.models.encoders import all_encoders, encoder_named
from foveate.models.llava import FoveateLlavaConfig
from foveate.models.llava.processing import pair
from foveate.training.building import export, new_model
from foveate.training.collate import Collator
from foveate.training.recipe import NewModel
from foveate.training.training_model import TrainingModel
from tests.models.encoders.small_encoders import SIDE, fields_of, small_config
from tests.models.llava.small_encoder_llava import llava
from tests.models.llava.small_llava import TEXT, small_batch, small_llava, small_processor
from tests.training.test_architectures import EXAMPLES
from tests.training.test_architectures import TEXT as RECIPE_TEXT


@pytest.fixture(params=sorted(all_encoders()))
def name(request) -> str:
    return request.param


def test_it_generates_saves_and_loads(name, tmp_path):
    model, processor = llava(name)
    pair(model, processor)
    batch = small_batch(processor)
    count = model.config.vision_config.output_grid(SIDE, SIDE).size
    assert (batch["input_ids"] == 259).sum(-1).tolist() == [2 * count, count]
    assert processor._get_num_multimodal_tokens([[480, 640]]).num_image_tokens == [count]
    generated = model.generate(**batch, max_new_tokens=4, do_sample=False)
    uncached = model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(generated, uncached)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reader = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(again.model.vision_tower) is encoder_named(name)
    pair(again, reader)
    assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)
    assert torch.equal(small_batch(reader)["input_ids"], batch["input_ids"])


def test_the_connector_reads_the_last_hidden_state(name):
    model, processor = llava(name)
    pixels = small_batch(processor)["pixel_values"]
    with torch.no_grad():
        expected = model.model.multi_modal_projector.project(model.model.vision_tower(pixels).last_hidden_state)
        tokens = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(torch.stack(tokens), expected)


def test_plans_act_after_the_connector(name):
    model, processor = llava(name)
    batch = small_batch(processor)
    with foveate.compress(model, "random:3") as handle:
        model(**batch)
        assert [image.tokens_kept for image in handle.report().images] == [3, 3, 3]
    for plan in ("fastervlm:3", "downsample:50%", "tome:3"):
        with pytest.raises(FoveateError) as error:
            foveate.compress(model, plan)
        assert error.value.refusal is not None


def recipe_of(name: str) -> NewModel:
    return NewModel(architecture="llava", vision={"type": name, **fields_of(name)}, text=RECIPE_TEXT)


def test_a_recipe_builds_trains_and_answers(name, tmp_path):
    model, processor = new_model(recipe_of(name), seed=0)
    assert type(model.model.vision_tower) is encoder_named(name)
    training_model = TrainingModel(model).train()
    spatial = model.config.vision_config.spatial
    batch = Collator(processor, cells=spatial, colours=spatial)(EXAMPLES)
    count = model.config.vision_config.output_grid(SIDE, SIDE).size
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == 2 * count
    assert not spatial or len(batch["cells"]) == 2 * count
    optimizer = torch.optim.AdamW(training_model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        sums = training_model(**batch)
        loss = sums["answer_loss"] / sums["answer_tokens"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    parts = {training_model.part_of(key) for key, value in training_model.named_parameters() if value.grad is not None}
    assert parts == {"vision_tower", "connector", "language_model"}
    folder = export(model, processor, tmp_path / "model", torch.float32)
    answer = foveate.ask(EXAMPLES[0].images[0], "What is written?", model=str(folder))
    assert answer.tokens.read == count


def test_impossible_recipes():
    new = recipe_of("lookupvit")
    for vision, message in (
        ({"type": "eyes"}, "model.new.vision.type: there is no encoder 'eyes'; possible are .*lookupvit"),
        ({**new.vision, "spokes": 3}, "model.new.vision: unknown keys spokes"),
        ({**new.vision, "compressed_side": 7}, "7 x 7 compressed tokens, and this image has 6 x 6 patches"),
    ):
        with pytest.raises(FoveateError, match=message):
            new_model(replace(new, vision=vision), seed=0)
    with pytest.raises(FoveateError, match="qwen2.5-vl is its own; an encoder can be chosen with .*: llava-uhd, llava"):
        new_model(replace(new, architecture="qwen2.5-vl"), seed=0)
    _, processor = new_model(new, seed=0)
    with pytest.raises(FoveateError, match="leave it out for the encoder lookupvit"):
        Collator(processor, answers=False, window=2)(EXAMPLES)


def test_losses_on_places_need_tokens_with_places():
    _, processor = new_model(recipe_of("sit"), seed=0)
    for loss in ("cells", "colours", "answer_attention", "question_attention"):
        with pytest.raises(FoveateError, match="tokens of the encoder sit stand for no part of the image"):
            Collator(processor, **{loss: True})


def test_hidden_states_of_other_numbers_of_tokens_are_refused():
    model, processor = llava("sit")
    pixels = small_batch(processor)["pixel_values"]
    with pytest.raises(FoveateError, match="the 4 tokens that sit makes of an image, and one of its hidden states 0 "):
        model.get_image_features(pixels, vision_feature_layer=0)


def test_configurations_and_processors_that_do_not_fit():
    vision = small_config("lookupvit")
    with pytest.raises(FoveateError, match="the encoder lookupvit gives .* must be 'full'"):
        FoveateLlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT))
    model, processor = llava("lookupvit")
    other = llava("lookupvit", compressed_side=3)[1]
    for wrong, message in (
        (other, "counts 3 x 3 tokens of the encoder lookupvit, and the model has 4 x 4"),
        (small_processor("mlp", "siglip"), "of a tower with one token per patch, and the model has lookupvit"),
    ):
        with pytest.raises(FoveateError, match=message):
            pair(model, wrong)
    with pytest.raises(FoveateError, match="of the encoder lookupvit, and the model has siglip_vision_model"):
        pair(small_llava("mlp", "siglip"), processor)


def test_views_of_the_size_of_the_encoder_are_its_images():
    model, processor = llava("lookupvit")
    pixels = small_batch(processor)["pixel_values"]
    sizes = torch.tensor([[SIDE, SIDE]] * len(pixels))
    plain, views = model.get_image_features(pixels), model.get_image_features(pixels, image_sizes=sizes)
    for own, view in zip(plain.pooler_output, views.pooler_output, strict=True):
        assert torch.equal(own, view)

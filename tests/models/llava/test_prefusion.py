"""LLaVA-Mini: compression and pre-fusion inside a model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import foveate
from foveate import compat
from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import build_connector
from foveate.models.connectors.llava_mini import LlavaMini
from foveate.models.connectors.prompts import Prompts
from foveate.models.llava.conversion import convert_released_config
from foveate.models.llava.prefusion import build_prefusion, fuse, stitched
from foveate.models.llava.processing import LLAMA_3_TEMPLATE
from foveate.models.llava_uhd import LlavaUHDConfig, byte_tokenizer
from foveate.training.training_model import TrainingModel
from tests.models.llava.released_llava_mini import (
    CASES,
    GRID,
    IMAGE,
    LAYERS,
    TEXT,
    TEXT_WIDTH,
    WIDTH,
    embeddings,
    expanded,
    features,
    weights,
)
from tests.models.llava.small_llava import pictures, small_llava, small_processor

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "llava_mini.json").read_text(encoding="utf-8"))
OPTIONS = {"size": 2, "prefusion_layers": 2}
TEXTS = ["a<image> and <image>: compare them", "<image>so?"]


def released(size: int) -> tuple:
    """The connector, the decoder layers and the embedding with the authors' weights."""
    connector = build_connector("llava_mini", WIDTH, TEXT_WIDTH, size=size, prefusion_layers=LAYERS).eval()
    layers, embedding = build_prefusion(TEXT, LAYERS).eval(), nn.Embedding(TEXT.vocab_size, TEXT_WIDTH)
    ours, fusion = {}, {}
    for name, weight in weights(size).items():
        if name.startswith("prefusion_layers."):
            fusion[name.replace("prefusion_", "")] = weight
        elif name.startswith("embed"):
            embedding.weight = nn.Parameter(weight)
        else:
            full = f"model.{name}"
            ((target, rest),) = [
                (target, re.sub(pattern, "", full))
                for key, target in LlavaMini.released_keys.items()
                if re.search(pattern := key if key.startswith("^") else rf"^model\.mm_projector\.{key}", full)
            ]
            ours |= (
                {target + rest: weight} if isinstance(target, str) else dict(zip(target, weight.chunk(3), strict=True))
            )
    connector.load_state_dict(ours)
    layers.load_state_dict(fusion)
    return connector, layers, embedding


@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_code(case):
    connector, layers, embedding = released(CASES[case]["size"])
    ids, mask, answers = expanded(case)
    images, grid = features(case).flatten(0, 1), Grid(GRID, GRID)
    with torch.no_grad():
        if CASES[case]["parts"] > 1:
            fine, whole, grid = stitched(images, grid)
            patches = torch.cat([fine, whole], dim=1)
        else:
            fine = patches = images[:, 0]
        tokens, _ = connector(fine, grid)
        prompts = Prompts(embedding(ids), ids == IMAGE, mask, answers)
        fused = fuse(layers, prompts, connector.project(patches), tokens)
    torch.testing.assert_close(embeddings(case, fused), torch.tensor(GOLDEN["cases"][case]), atol=5e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def parts():
    return small_llava("llava_mini", **OPTIONS), small_processor("llava_mini", **OPTIONS)


@pytest.fixture
def model(parts):
    yield parts[0].eval()
    parts[0].eval().zero_grad()


def batch_of(processor, texts=TEXTS):
    return processor(images=[pictures()[:2], pictures()[2:]], text=list(texts), return_tensors="pt", padding=True)


@pytest.fixture
def batch(parts):
    return batch_of(parts[1])


@pytest.fixture
def read(model):
    """What the language model reads in every pass, `(B, L, d)`."""
    inputs = []
    layer = model.model.language_model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().clone()))
    yield inputs
    handle.remove()


def test_exactly_the_tokens_of_the_connector_stand_for_an_image(batch, model, read):
    assert (batch["input_ids"] == 259).sum(-1).tolist() == [8, 4]
    model(**batch)
    assert read[0].shape[:2] == batch["input_ids"].shape


def test_one_image_against_the_sequence_by_hand(parts, model, read):
    """[36 patches, 4 tokens, text] through the decoder layers; patches are dropped, and tokens read no text."""
    batch = parts[1](images=pictures()[:1], text="<image>what?", return_tensors="pt")
    model(**batch)
    core = model.model
    with torch.no_grad():
        output = core.vision_tower(batch["pixel_values"], output_hidden_states=True)
        patches = output.hidden_states[core.config.vision_feature_layer][:, 1:]
        tokens, _ = core.multi_modal_projector(patches, Grid(6, 6))
        text = core.get_input_embeddings()(batch["input_ids"][batch["input_ids"] != 259])[None]
        sequence = torch.cat([core.multi_modal_projector.project(patches), tokens, text], dim=1)
        hidden = core.prefusion(inputs_embeds=sequence, use_cache=False).last_hidden_state
        alone = core.prefusion(inputs_embeds=sequence[:, :40], use_cache=False).last_hidden_state
    torch.testing.assert_close(read[0], hidden[:, 36:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(read[0][:, :4], alone[:, 36:], atol=1e-4, rtol=1e-4)


def test_a_batch_equals_single_prompts(parts, model, batch):
    logits = model(**batch).logits
    for row, (images, text) in enumerate(zip((pictures()[:2], pictures()[2:]), TEXTS, strict=True)):
        alone = model(**parts[1](images=images, text=text, return_tensors="pt")).logits[0]
        torch.testing.assert_close(logits[row][batch["attention_mask"][row].bool()], alone, atol=1e-4, rtol=1e-4)


def test_text_of_a_prompt_without_images_is_not_fused(parts, model, batch, read):
    inputs = parts[1](images=[pictures()[:1], []], text=["<image>?", "only text"], return_tensors="pt", padding=True)
    model(**inputs)
    torch.testing.assert_close(read[0][1], model.get_input_embeddings()(inputs["input_ids"])[1])


def test_answers_are_raw_embeddings_and_do_not_change_instructions(model, batch, read):
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -2:] = batch["input_ids"][:, -2:]
    ids = batch["input_ids"].clone()
    ids[:, -2:] = torch.tensor([[65, 66], [67, 68]])
    model.train()
    model(**batch, labels=labels).loss.backward()
    model(**{**batch, "input_ids": ids}, labels=torch.where(labels == -100, -100, ids))
    assert torch.equal(read[0][:, :-2], read[1][:, :-2])
    embedding = model.get_input_embeddings()
    for one, inputs in zip(read, (batch["input_ids"], ids), strict=True):
        assert torch.equal(one[:, -2:], embedding(inputs[:, -2:]))
        assert not torch.allclose(one[:, -4:-2], embedding(inputs[:, -4:-2]), atol=1e-2)
    new = [p for name, p in model.named_parameters() if "multi_modal_projector" in name or "prefusion" in name]
    assert new and all(parameter.grad is not None for parameter in new)
    read.clear()
    TrainingModel(model)(labels=labels, **batch)
    model(**batch, labels=labels)
    assert torch.equal(read[0], read[1])


def test_generate_with_and_without_a_cache_and_for_beams(model, batch):
    cached = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert torch.equal(model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=False), cached)
    assert torch.equal(cached[:, batch["input_ids"].shape[1]], model(**batch).logits[:, -1].argmax(-1))
    beams = model.generate(**batch, max_new_tokens=3, num_beams=2, do_sample=False)
    doubled = {name: torch.cat([value, value]) for name, value in batch.items()}
    assert torch.equal(model.generate(**doubled, max_new_tokens=3, num_beams=2, do_sample=False)[:2], beams)


def test_frames_of_a_video_are_averaged_in_the_text(parts, model, read):
    frames = pictures()
    batch = parts[1](images=frames, text="<image>" * 3 + "what?", return_tensors="pt")
    model(**batch)
    together, singles = read.pop(), []
    for frame in frames:
        model(**parts[1](images=frame, text="<image>what?", return_tensors="pt"))
        singles.append(read.pop())
    torch.testing.assert_close(together[:, 12:], torch.stack(singles).mean(0)[:, 4:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[:, :12], torch.cat([one[:, :4] for one in singles], 1), atol=1e-4, rtol=1e-4)


def test_sub_images_are_stitched():
    large = torch.arange(6 * 8).view(6, 8)
    parts = large.view(2, 3, 2, 4).transpose(1, 2).reshape(1, 4, 12, 1)
    whole = torch.zeros(1, 1, 12, 1, dtype=parts.dtype)
    fine, last, grid = stitched(torch.cat([parts, whole], dim=1), Grid(3, 4))
    assert grid == Grid(6, 8) and torch.equal(fine[0, :, 0], large.flatten()) and torch.equal(last, whole[:, 0])
    with pytest.raises(FoveateError, match="2, 5, 10, ... and not 4"):
        stitched(torch.zeros(1, 4, 12, 1), Grid(3, 4))


def test_a_model_reads_sub_images(parts, model, batch, read):
    pixels = batch["pixel_values"]
    halves = pixels.repeat_interleave(2, -1).repeat_interleave(2, -2)  # twice as large
    crops = [halves[..., i : i + 48, j : j + 48] for i in (0, 48) for j in (0, 48)]
    inputs = {**batch, "pixel_values": torch.stack([*crops, pixels], dim=1)}
    model(**inputs)
    assert read[0].shape[:2] == batch["input_ids"].shape
    images = model.get_image_features(inputs["pixel_values"])
    assert [len(patches) for patches in images.deepstack_features[0]] == [5 * 36] * 3
    assert model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False).shape[0] == 2
    with pytest.raises(FoveateError, match="sub-images need pre-fusion"):
        small_llava("m3").get_image_features(inputs["pixel_values"])


def test_what_is_refused(model, batch):
    with pytest.raises(FoveateError, match="fuses text with all patches in 2 layers"):
        foveate.compress(model, "divprune:1")
    with pytest.raises(FoveateError, match="in training must know which tokens are answers"):
        model.train()(**batch)
    model.eval()
    cache = DynamicCache(config=model.config.get_text_config())
    start = torch.full((2, 1), 65)
    model(input_ids=start, attention_mask=torch.ones_like(start), **compat.cache_argument(cache))
    with pytest.raises(FoveateError, match="a part of these is in the cache"):
        model(**batch, **compat.cache_argument(cache))
    with pytest.raises(FoveateError, match="LLaVA-UHD has no pre-fusion"):
        LlavaUHDConfig(connector_type="llava_mini")


def test_llama_3_marks_images_by_a_reserved_token():
    fields = TEXT.to_dict() | {
        "model_type": "llava_mini_llama",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "clip-vit-large-patch14-336",
    }
    assert convert_released_config(fields)["image_token_index"] == 0
    converted = convert_released_config(fields | {"vocab_size": 128256, "compressor_size": 1, "prefusion_layer_num": 3})
    assert converted["image_token_index"] == 128002
    assert converted["connector_type"] == "llava_mini"
    assert converted["connector_options"] == {"size": 1, "prefusion_layers": 3}


def test_the_template_of_llama_3():
    tokenizer = byte_tokenizer()
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    prompt = tokenizer.apply_chat_template(
        messages, chat_template=LLAMA_3_TEMPLATE, add_generation_prompt=True, tokenize=False
    )
    turn = "<|start_header_id|>user<|end_header_id|>\n\nIMAGE_TOKEN\nWhat?<|eot_id|>"
    assert prompt.endswith(f"{turn}<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert prompt.startswith("<|start_header_id|>system<|end_header_id|>\n\n") and "assist the user" in prompt

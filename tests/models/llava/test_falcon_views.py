"""FALCON's crops inside a LLaVA: the authors' crops, and registers that read the other crops of their image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from packaging.version import Version
from transformers import LlamaConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

import foveate
from foveate.core.errors import FoveateError
from foveate.models.encoders.falcon import crop_positions
from foveate.models.llava import (
    FoveateLlavaConfig,
    FoveateLlavaForConditionalGeneration,
    FoveateLlavaProcessor,
    ViewImageProcessor,
)
from foveate.models.llava.layouts import FalconLayout
from foveate.models.llava.processing import encoder_fields
from foveate.models.llava_uhd import byte_tokenizer
from foveate.training.building import export, new_model
from foveate.training.collate import Collator
from foveate.training.recipe import NewModel
from foveate.training.training_model import TrainingModel
from tests.models.encoders.small_encoders import SIDE, fields_of, small_config
from tests.models.llava.released_oryx import image as formula_image
from tests.models.llava.small_llava import TEXT, pictures
from tests.training.test_architectures import EXAMPLES
from tests.training.test_architectures import TEXT as RECIPE_TEXT

IMAGE_ARGUMENTS = ("pixel_values", "image_sizes", "image_grids")
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "falcon.json").read_text(encoding="utf-8"))["views"]
LAYOUT = FalconLayout(side=SIDE, patch_size=8, max_crops=4)
REGISTERS = 5


@pytest.fixture(scope="module")
def falcon():
    """A model with the same weights every time, and its processor."""
    vision = small_config("falcon_vision")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(LAYOUT.special_tokens), special_tokens=True)
    processor = FoveateLlavaProcessor(
        ViewImageProcessor(LAYOUT),
        tokenizer,
        vision_feature_select_strategy="full",
        **encoder_fields(vision),
    )
    config = FoveateLlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**{**TEXT, "vocab_size": len(tokenizer)}),
        image_token_index=259,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FoveateLlavaForConditionalGeneration(config).eval(), processor


@pytest.fixture(scope="module")
def two():
    """Images of 1 x 2 and 2 x 2 crops: views 0 to 2, and 3 to 7."""
    first, second = pictures(2)
    return [first.resize((96, 48)), second.resize((90, 94))]


@pytest.fixture(scope="module")
def inputs(falcon, two):
    return falcon[1](images=two, text="<image> and <image>?", return_tensors="pt")


def tokens_of(model: Any, inputs: Any, **changes: Any) -> torch.Tensor:
    read = {name: inputs[name] for name in IMAGE_ARGUMENTS} | changes
    with torch.no_grad():
        return torch.stack(model.get_image_features(**read).pooler_output)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['size'][0]}x{case['size'][1]}")
def test_the_crops_are_the_authors(case):
    layout = FalconLayout(side=32, patch_size=8, max_crops=9)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    image = formula_image(case["image"])
    views = layout.cut(image, lambda part: (torch.from_numpy(np.array(part)).permute(2, 0, 1) / 255 - mean) / std)
    ours = torch.stack(views).flatten()[::397]
    level = 1.01 / 255 / min(OPENAI_CLIP_STD)  # Pillow 12 resizes some pixels to the next one of 256 levels
    bounds = {"atol": 2e-5, "rtol": 1e-4} if Version(PIL.__version__) >= Version("13") else {"atol": level, "rtol": 0}
    torch.testing.assert_close(ours, torch.tensor(case["pixels"]), **bounds)
    assert crop_positions(layout.crop_grid(image.height, image.width), 9).tolist() == case["positions"]
    text = "".join(f"{view.prefix}<image>" for view in layout.views(image.height, image.width))
    assert f"a{text}b" == case["text"]


def test_positions_and_crops_reach_the_encoder(falcon, inputs):
    model, _ = falcon
    assert inputs["image_grids"].tolist() == [[1, 2], [2, 2]] and len(inputs["pixel_values"]) == 3 + 5
    positions = torch.tensor([[4, 4], [0, 0], [0, 1], [4, 4], [0, 0], [0, 1], [1, 0], [1, 1]])
    with torch.no_grad():
        call = {"crop_positions": positions, "crops_per_image": [3, 5]}
        features = model.model.vision_tower(inputs["pixel_values"], **call).last_hidden_state
        expected = model.model.multi_modal_projector.project(features)
        torch.testing.assert_close(tokens_of(model, inputs), expected)
        features = {"image": model.get_image_features(**{name: inputs[name] for name in IMAGE_ARGUMENTS})}
        text = {name: value for name, value in inputs.items() if name not in IMAGE_ARGUMENTS}
        encoded = model(**text, mm_encoder_outputs=features).logits
    # A forward pass and the prompt of `generate` read them, too.
    written = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
    torch.testing.assert_close(model(**inputs).logits, encoded)
    torch.testing.assert_close(written.logits[0], encoded[:, -1])


def test_they_matter(falcon, inputs):
    """A crop reads the other crops of its image and none of another image; without grids every view is alone."""
    model, _ = falcon
    pixels = inputs["pixel_values"].clone()
    pixels[2] += 1.0  # a crop of the first image
    full = tokens_of(model, inputs)
    moved = (tokens_of(model, inputs, pixel_values=pixels) - full).abs().amax(dim=(1, 2))
    assert bool((moved[:3] > 1e-3).all()) and not bool(moved[3:].any())
    alone = tokens_of(model, inputs, image_grids=None)
    moved = (tokens_of(model, inputs, image_grids=None, pixel_values=pixels) - alone).abs().amax(dim=(1, 2))
    assert moved.nonzero().flatten().tolist() == [2]
    swapped = tokens_of(model, inputs, image_grids=torch.tensor([[2, 1], [2, 2]]))
    assert bool((swapped[:3] - full[:3]).abs().amax() > 1e-3) and torch.equal(swapped[3:], full[3:])


def test_a_prompt_names_every_crop(falcon, inputs):
    _, processor = falcon
    assert processor.tokens_of(SIDE, SIDE) == REGISTERS
    placeholders = "<image>" * REGISTERS
    first = f"<global_img>{placeholders}<crop_img_row0_col0>{placeholders}<crop_img_row0_col1>{placeholders} and "
    assert processor.decode(inputs["input_ids"][0]).startswith(first)
    counted = processor._get_num_multimodal_tokens([[48, 96], [94, 90]])
    assert counted.num_image_tokens == [15, 25] and counted.num_image_patches == [3, 5]


def test_a_batch_equals_single_prompts_and_generates(falcon, two):
    model, processor = falcon
    texts = ["<image>: compare", "<image>?"]
    batch = processor(images=[[one] for one in two], text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**batch).logits
        for row, (one, text) in enumerate(zip(two, texts, strict=True)):
            alone = model(**processor(images=one, text=text, return_tensors="pt")).logits[0]
            own = logits[row][batch["attention_mask"][row].bool()]
            torch.testing.assert_close(own, alone, atol=1e-3, rtol=1e-3)
    cached = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert torch.equal(cached, model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=False))


def test_plans_and_answers(falcon, two, inputs):
    model, processor = falcon
    with foveate.compress(model, "divprune:2") as handle:
        length = model(**inputs).logits.shape[1]
        assert [one.tokens_kept for one in handle.report().images] == [2] * 8
    assert length == inputs["input_ids"].shape[1] - 8 * (REGISTERS - 2)
    with foveate.compress(model, "divprune:100%"), torch.no_grad():
        kept = model(**inputs).logits
    with torch.no_grad():
        assert torch.equal(kept, model(**inputs).logits)
    answer = foveate.ask(two[0], "?", model=(model, processor), plan="divprune:2", max_new_tokens=1)
    assert [document["crops"][0]["kind"] for document in answer.selection] == ["thumbnail", "tile", "tile"]
    assert answer.tokens.full == 15


def test_a_recipe_trains_across_crops(tmp_path):
    new = NewModel(
        architecture="llava",
        vision={"type": "falcon_vision", **fields_of("falcon_vision")},
        text=RECIPE_TEXT,
        images={"layout": {"name": "falcon", "max_crops": 4}},
    )
    model, processor = new_model(new, seed=0)
    assert processor.layout == LAYOUT
    training_model = TrainingModel(model).train()
    batch = Collator(processor)(EXAMPLES)
    training_model(**batch)["answer_loss"].backward()
    tower = model.model.vision_tower
    assert bool(tower.crop_positions.columns.grad.any()) and bool(tower.blocks[0].re_attention.q_proj.weight.grad.any())
    loaded, reader = foveate.load(export(model, processor, tmp_path / "model", torch.float32), device="cpu")
    assert reader.layout == LAYOUT
    again = Collator(reader)(EXAMPLES)
    assert all(torch.equal(again[name], batch[name]) for name in batch)
    assert type(loaded) is type(model)


def test_bad_input(falcon, inputs):
    model, _ = falcon
    with pytest.raises(FoveateError, match="an image has 6 crops, and falcon_vision has positions for 4"):
        tokens_of(model, inputs, image_grids=torch.tensor([[2, 3], [1, 1]]))
    with pytest.raises(FoveateError, match="crop_positions of falcon_vision must be .* for each of the 8 crops"):
        tokens_of(model, inputs, image_grids=torch.tensor([[1, 2]]))
    sizes = inputs["image_sizes"].clone()
    sizes[0] -= 8
    with pytest.raises(FoveateError, match="crops of image_grids have one size, and image_sizes has 2"):
        tokens_of(model, inputs, image_sizes=sizes)
    for options in ({"indicators": 1}, {"max_crops": 0}):
        with pytest.raises(FoveateError, match=next(iter(options))):
            FalconLayout(**options)

"""Padded images and LLaVA-Mini's sub-images: the authors' pixels, released configurations, models and plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

import foveate
from foveate.core.errors import FoveateError
from foveate.models.llava import FoveateLlavaProcessor, ViewImageProcessor
from foveate.models.llava.layouts import FalconLayout, LlavaMiniLayout, PadLayout, released_layout
from foveate.models.llava_uhd import byte_tokenizer
from foveate.training.building import export, new_model
from foveate.training.collate import Collator
from foveate.training.recipe import NewModel
from foveate.training.training_model import TrainingModel
from tests.models.llava.released_oryx import image as formula_image
from tests.models.llava.small_llava import GRID, PATCH, SIDE, pictures, small_llava
from tests.models.llava.test_llava_conversion import write_released
from tests.training.test_architectures import EXAMPLES
from tests.training.test_architectures import TEXT as RECIPE_TEXT

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "llava_mini.json").read_text(encoding="utf-8"))["images"]
MINI = {"size": 2, "prefusion_layers": 2}


def processor_of(layout: Any, connector: str = "mlp", **options: Any) -> FoveateLlavaProcessor:
    return FoveateLlavaProcessor(
        ViewImageProcessor(layout),
        byte_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        connector_type=connector,
        connector_options=options,
    )


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['image']}-{case['ratio']}-{case['fit']}")
def test_pixels_are_the_authors(case):
    layout = PadLayout(32, 8) if case["ratio"] == 1 else LlavaMiniLayout(32, 8, case["ratio"], case["fit"])
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    views = layout.cut(
        formula_image(case["image"]),
        lambda part: (torch.from_numpy(np.array(part)).permute(2, 0, 1) / 255 - mean) / std,
    )
    ours = torch.stack(views).flatten()[::601]
    torch.testing.assert_close(ours, torch.tensor(case["pixels"]), atol=2e-5, rtol=1e-4)


def test_padding_gives_the_tokens_of_one_image_and_its_place():
    model, processor = small_llava("mlp"), processor_of(PadLayout(SIDE, PATCH))
    image = pictures()[0].resize((90, 40))
    inputs = processor(images=image, text="<image>?", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, SIDE, SIDE) and "image_sizes" not in inputs
    count = GRID * GRID
    assert int((inputs["input_ids"] == 259).sum()) == count
    assert processor._get_num_multimodal_tokens([[40, 90]]).num_image_tokens == [count]
    (view,) = processor.views_of(40, 90)
    assert view.box == (0.0, -25 / 40, 1.0, 65 / 40)
    answer = foveate.ask(image, "?", model=(model, processor), plan="divprune:25%", max_new_tokens=1)
    assert answer.selection[0]["crops"][0]["box"] == list(view.box)
    assert answer.tokens.full == count


@pytest.mark.parametrize("connector", ["mlp", "llava_mini"])
def test_a_released_folder_pads(connector, tmp_path):
    write_released(tmp_path, connector)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "SiglipImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    model, processor = foveate.load(tmp_path, device="cpu")
    assert processor.layout == PadLayout(SIDE, PATCH, (127, 127, 127))
    inputs = processor(images=pictures()[0].resize((90, 40)), text=f"{processor.image_token}?", return_tensors="pt")
    assert torch.allclose(inputs["pixel_values"][0, :, 0], torch.tensor(127 / 127.5 - 1), atol=1e-6)
    model.generate(**inputs, max_new_tokens=2)


def test_sub_images_are_one_image_of_the_prompt():
    model, processor = (
        small_llava("llava_mini", **MINI),
        processor_of(LlavaMiniLayout(SIDE, PATCH), "llava_mini", **MINI),
    )
    images = [pictures()[0].resize((90, 64)), pictures()[1].resize((50, 120))]
    batch = processor(
        images=[[one] for one in images], text=["<image>?", "a<image>: why"], return_tensors="pt", padding=True
    )
    assert batch["pixel_values"].shape == (2, 5, 3, SIDE, SIDE)
    assert (batch["input_ids"] == 259).sum(-1).tolist() == [4, 4]
    with torch.no_grad():
        logits = model(**batch).logits
        for row, (one, text) in enumerate(zip(images, ["<image>?", "a<image>: why"], strict=True)):
            alone = model(**processor(images=one, text=text, return_tensors="pt")).logits[0]
            own = logits[row][batch["attention_mask"][row].bool()]
            torch.testing.assert_close(own, alone, atol=1e-3, rtol=1e-3)
        changed = batch["pixel_values"].clone()
        changed[0, 2] += 1.0  # one sub-image
        assert not torch.allclose(model(**{**batch, "pixel_values": changed}).logits[0, -1], logits[0, -1])
    cached = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert torch.equal(cached, model.generate(**batch, max_new_tokens=3, do_sample=False, use_cache=False))
    answer = foveate.ask(images[0], "?", model=(model, processor), max_new_tokens=1)
    assert answer.tokens.full == 4


def test_high_resolution_releases_cut(tmp_path):
    write_released(tmp_path, "llava_mini", resolution_ratio=2, image_aspect_ratio=None)
    model, processor = foveate.load(tmp_path, device="cpu")
    assert processor.layout == LlavaMiniLayout(SIDE, PATCH)
    inputs = processor(images=pictures()[0], text=f"{processor.image_token}?", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 5, 3, SIDE, SIDE)
    model.generate(**inputs, max_new_tokens=2)
    processor.save_pretrained(tmp_path / "ours")
    assert FoveateLlavaProcessor.from_pretrained(tmp_path / "ours").layout == processor.layout


def test_a_recipe_trains_on_sub_images(tmp_path):
    new = NewModel(
        architecture="llava",
        vision={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
                "image_size": 32, "patch_size": 8},
        text=RECIPE_TEXT,
        images={"layout": {"name": "llava-mini", "fit": "pad"}},
        connector={"type": "llava_mini", "num_heads": 2, "prefusion_layers": 1},
    )  # fmt: skip
    model, processor = new_model(new, seed=0)
    training_model = TrainingModel(model).train()
    batch = Collator(processor)(EXAMPLES)
    assert batch["pixel_values"].shape[1:] == (5, 3, 32, 32)
    training_model(**batch)["answer_loss"].backward()
    assert bool(model.model.multi_modal_projector.queries.grad.any())
    _, reader = foveate.load(export(model, processor, tmp_path / "model", torch.float32), device="cpu")
    assert reader.layout == LlavaMiniLayout(32, 8, fit="pad")


def test_layouts_of_releases():
    mini = {"mm_projector_type": "mlp2x_gelu", "compressor_size": 1}
    assert released_layout(mini | {"resolution_ratio": 1}, 336, 14) is None
    assert released_layout(mini | {"resolution_ratio": 1, "image_aspect_ratio": "pad"}, 336, 14) == PadLayout()
    assert released_layout(mini | {"resolution_ratio": 2}, 336, 14) == LlavaMiniLayout()
    padded = mini | {"resolution_ratio": 3, "image_aspect_ratio": "pad"}
    assert released_layout(padded, 336, 14) == LlavaMiniLayout(ratio=3, fit="pad")
    assert released_layout({"mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "square"}, 336, 14) is None
    for ratio in ("anyres", "slice", 3):
        with pytest.raises(FoveateError, match=f"image_aspect_ratio {ratio!r} of config.json is not supported"):
            released_layout({"mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": ratio}, 336, 14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LlavaMiniLayout(ratio=1), "ratio must be a whole number from 2 on"),
        (lambda: LlavaMiniLayout(fit="stretch"), "fit must be crop or pad, not 'stretch'"),
        (lambda: PadLayout(background=(0, 0)), "background must be three whole numbers from 0 to 255"),
        (lambda: PadLayout(background=[0, 0, 256]), "background must be three whole numbers from 0 to 255"),
        (lambda: LlavaMiniLayout(ratio=4).views(3, 100), "100 x 3 pixels has no 4 x 4 sub-images"),
        (lambda: processor_of(LlavaMiniLayout(SIDE, PATCH)), "which the connector llava_mini reads, and not mlp"),
        (
            lambda: processor_of(FalconLayout(SIDE, PATCH), "llava_mini", **MINI),
            "cannot be views of several sizes: the layout falcon has them",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(FoveateError, match=message):
        make()

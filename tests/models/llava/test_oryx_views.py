"""Images in the layout of Oryx: the sequence that the language model reads, plans, folders and recipes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig

import foveate
from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import build_connector
from foveate.models.llava import (
    FoveateLlavaConfig,
    FoveateLlavaForConditionalGeneration,
    FoveateLlavaProcessor,
    ViewImageProcessor,
)
from foveate.models.llava.layouts import OryxLayout
from foveate.models.llava.processing import encoder_fields, pair
from foveate.models.llava_uhd import byte_tokenizer
from foveate.training.building import export, new_model
from foveate.training.collate import Collator
from foveate.training.recipe import NewModel
from foveate.training.training_model import TrainingModel
from tests.models.connectors.released_tokenpacker import wave
from tests.models.connectors.test_oryx import GOLDEN, WEIGHTS
from tests.models.encoders.small_encoders import fields_of, small_config
from tests.models.llava.small_llava import TEXT, pictures
from tests.training.test_architectures import EXAMPLES
from tests.training.test_architectures import TEXT as RECIPE_TEXT

LAYOUT = OryxLayout(side=32, patch_size=8, max_side=96)
#: Ids after those of the byte tokenizer.
BEGIN, NEWLINE, SEPARATOR, END = range(260, 264)
PLACEHOLDER = 259


def processor_of(**options: Any) -> FoveateLlavaProcessor:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(LAYOUT.special_tokens), special_tokens=True)
    return FoveateLlavaProcessor(
        ViewImageProcessor(LAYOUT, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer,
        vision_feature_select_strategy="full",
        connector_type="oryx",
        connector_options=options,
        **encoder_fields(small_config("oryx_vit")),
    )


def model_of(**options: Any) -> Any:
    """A model with the same weights every time."""
    config = FoveateLlavaConfig(
        vision_config=small_config("oryx_vit"),
        text_config=LlamaConfig(**{**TEXT, "vocab_size": 264}),
        image_token_index=PLACEHOLDER,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        connector_type="oryx",
        connector_options=options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FoveateLlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def image():
    """Of 90 x 50 pixels: the native view has 48 x 80 pixels, and the overview 16 x 32."""
    return pictures()[0].resize((90, 50))


def pixels(view: Image.Image) -> torch.Tensor:
    """Pixels (3, H, W) from -1 to 1."""
    return torch.from_numpy(np.array(view)).permute(2, 0, 1) / 127.5 - 1


def sequence_of(model: Any, inputs: Any) -> torch.Tensor:
    """The embeddings (L, D) that the language model reads."""
    read = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return read[0][0]


@pytest.mark.parametrize("scale", [1, 2])
def test_the_language_model_reads_the_sequence_of_the_paper(scale, image):
    """Begin, overview, separator, native view, end, with a newline after every row, each view encoded alone."""
    model, processor = model_of(scale=scale), processor_of(scale=scale)
    pair(model, processor)
    learned = model.get_input_embeddings().weight.detach()
    expected = [learned[BEGIN]]
    views = LAYOUT.cut(image, pixels)
    assert [tuple(view.shape[-2:]) for view in views] == [(16, 32), (48, 80)]
    for view, last in zip(views, (SEPARATOR, END), strict=True):
        with torch.no_grad():
            tokens = model.get_image_features(view[None]).pooler_output[0]
        rows, columns = (side // 8 // scale for side in view.shape[-2:])
        assert len(tokens) == rows * columns
        for row in range(rows):
            expected += [*tokens[row * columns : (row + 1) * columns], learned[NEWLINE]]
        expected.append(learned[last])
    inputs = processor(images=image, text="a<image>b", return_tensors="pt")
    torch.testing.assert_close(sequence_of(model, inputs)[1:-1], torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_equals_the_authors_sequence():
    """Tokens of the authors' compressor and projector for both views, in the order of the prompt here.

    Features of 2 x 4 and 6 x 10 patches, and vectors of the begin, newline, separator and end, are the formulas that
    `source` of the golden values names.
    """
    connector = build_connector("oryx", 16, 6).eval()
    names = [f"{layer}.{part}" for layer in WEIGHTS.values() for part in ("weight", "bias")]
    shapes = {name: weight.shape for name, weight in connector.state_dict().items()}
    connector.load_state_dict({name: wave(number, shapes[name], 0.3) for number, name in enumerate(names, 1)})
    with torch.no_grad():
        views = [connector(wave(21, (1, 8, 16), 1.0), Grid(2, 4)), connector(wave(22, (1, 60, 16), 1.0), Grid(6, 10))]
    processor = processor_of()
    order = (BEGIN, NEWLINE, SEPARATOR, END)
    table = torch.zeros(264, 6)
    table[list(order)] = torch.stack([wave(30 + place, (6,), 1.0) for place in range(4)])
    ids = torch.tensor(processor.tokenizer.encode(processor.text_of(50, 90), add_special_tokens=False))
    sequence = table[ids]
    sequence[ids == PLACEHOLDER] = torch.cat([tokens[0] for tokens, _ in views])
    torch.testing.assert_close(sequence, torch.tensor(GOLDEN["sequence"]), atol=2e-5, rtol=1e-4)


def test_sizes_alone_give_the_number_of_placeholders(image):
    processor = processor_of()
    inputs = processor(images=[image, image], text="<image><image>", return_tensors="pt")
    counted = processor._get_num_multimodal_tokens([[50, 90]] * 2)
    assert counted.num_image_tokens == [2 * 4 + 6 * 10] * 2 and counted.num_image_patches == [2, 2]
    ids = inputs["input_ids"][0]
    assert int((ids == PLACEHOLDER).sum()) == 2 * 68 and int((ids == NEWLINE).sum()) == 2 * (2 + 6)


def test_learned_tokens_stay_with_plans(image):
    model, processor = model_of(), processor_of()
    inputs = processor(images=image, text="<image>?", return_tensors="pt")
    text = int((inputs["input_ids"] != PLACEHOLDER).sum())
    for plan in ("divprune:25%", "oryx:25%"):
        with foveate.compress(model, plan) as handle:
            length = model(**inputs).logits.shape[1]
            assert [one.tokens_kept for one in handle.report().images] == [2, 15]
        assert length == text + 2 + 15


def test_it_answers_and_is_saved_and_loaded(image, tmp_path):
    model, processor = model_of(), processor_of()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reader = foveate.load(tmp_path, device="cpu")
    assert reader.layout == LAYOUT
    inputs, other = (one(images=image, text="<image>?", return_tensors="pt") for one in (processor, reader))
    assert all(torch.equal(inputs[name], other[name]) for name in inputs)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    cached = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(cached, model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False))
    answer = foveate.ask(image, "?", model=(model, processor), plan="divprune:25%", max_new_tokens=1)
    crops = [document["crops"][0] for document in answer.selection]
    assert [(crop["kind"], tuple(crop["box"])) for crop in crops] == [
        ("thumbnail", (0, 0, 1, 1)),
        ("tile", (0, 0, 1, 1)),
    ]
    assert answer.tokens.full == 68


def test_a_tokenizer_without_the_learned_tokens_is_refused():
    processor = processor_of()
    with pytest.raises(FoveateError, match="oryx needs the special tokens <image_begin>, .* lacks <image_begin>: add"):
        FoveateLlavaProcessor(
            processor.image_processor,
            byte_tokenizer(),
            vision_feature_select_strategy="full",
            connector_type="oryx",
            encoder=processor.encoder,
        )


def test_a_recipe_adds_the_learned_tokens_and_trains_them(tmp_path):
    new = NewModel(
        architecture="llava",
        vision={"type": "oryx_vit", **fields_of("oryx_vit", image_size=32)},
        text=RECIPE_TEXT,
        images={"layout": {"name": "oryx", "max_side": 48}},
        connector={"type": "oryx"},
    )
    model, processor = new_model(new, seed=0)
    layout = OryxLayout(side=32, patch_size=8, max_side=48)
    assert processor.layout == layout
    ids = processor.tokenizer.convert_tokens_to_ids(list(layout.special_tokens))
    assert model.config.text_config.vocab_size > max(ids) > PLACEHOLDER
    training_model = TrainingModel(model).train()
    batch = Collator(processor)(EXAMPLES)
    training_model(**batch)["answer_loss"].backward()
    gradient = model.get_input_embeddings().weight.grad
    assert all(bool(gradient[place].any()) for place in ids)
    loaded, reader = foveate.load(export(model, processor, tmp_path / "model", torch.float32), device="cpu")
    assert type(loaded) is type(model) and reader.layout == layout
    again = Collator(reader)(EXAMPLES)
    assert torch.equal(again["input_ids"], batch["input_ids"])

"""What is learned is every answer with its end token, and nothing else."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import FoveateError
from foveate.models.llava_uhd.processing import LlavaUHDProcessor
from foveate.synthetic import Character
from foveate.training.collate import IGNORED, Collator
from foveate.training.dense_labels import UNKNOWN, cell_targets, usual_cells
from foveate.training.examples import Example


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def turns(*values: tuple[str, str]) -> list[dict]:
    return [{"from": who, "value": value} for who, value in values]


ONE = Example.of_question(picture(64, 32), "What?", "A cat.")
MANY = Example(
    [picture(64, 64), picture(32, 64)],
    turns(
        ("system", "Be brief."), ("human", "<image><image>\nSame?"), ("gpt", "No."), ("human", "Why?"), ("gpt", "Size.")
    ),
)
TEXT = Example([], turns(("human", "Hello"), ("gpt", "Hi.")))


def learned_text(processor, batch, row) -> str:
    labels = batch["labels"][row]
    return processor.tokenizer.decode(labels[labels != IGNORED], skip_special_tokens=False)


def test_labels_are_the_answers_and_their_end(processor):
    batch = Collator(processor)([ONE, MANY, TEXT])
    assert learned_text(processor, batch, 0) == "A cat.<|im_end|>"
    assert learned_text(processor, batch, 1) == "No.<|im_end|>Size.<|im_end|>"
    assert learned_text(processor, batch, 2) == "Hi.<|im_end|>"
    learned = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
    # Nothing of images or padding is learned.
    assert not learned[batch["input_ids"] == processor.image_token_id].any()
    assert not learned[batch["attention_mask"] == 0].any()


def test_each_answer_follows_its_prompt(processor):
    """The first learned token comes right after what `generate` would be given."""
    batch = Collator(processor)([ONE])
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": "<image>\nWhat?"}], add_generation_prompt=True, tokenize=False
    )
    ids = processor(images=ONE.images, text=prompt, return_tensors="pt")["input_ids"][0]
    assert torch.equal(batch["input_ids"][0, : len(ids)], ids)
    assert (batch["labels"][0, : len(ids)] == IGNORED).all()
    assert batch["labels"][0, len(ids)] == ord("A")


def test_images_and_placeholders_agree(processor):
    batch = Collator(processor)([ONE, MANY, TEXT])
    assert batch["grid_hws"].tolist() == [[4, 8], [8, 8], [8, 4]]
    assert len(batch["pixel_values"]) == 32 + 64 + 32
    placeholders = (batch["input_ids"] == processor.image_token_id).sum(1)
    assert placeholders.tolist() == [2, 4 + 2, 0]
    lengths = batch["attention_mask"].sum(1)
    for row, length in enumerate(lengths.tolist()):
        assert (batch["attention_mask"][row, :length] == 1).all()  # padded on the right


def test_the_model_takes_the_batch_and_labels_mean_the_same(processor, model):
    """The model's own loss over these labels is the mean over the learned tokens."""
    batch = Collator(processor)([ONE, MANY])
    with torch.no_grad():
        output = model(**batch)
    targets = batch["labels"][:, 1:]
    losses = torch.nn.functional.cross_entropy(output.logits[:, :-1].transpose(1, 2), targets, reduction="none")
    assert float(output.loss) == pytest.approx(float(losses[targets != IGNORED].mean()), rel=1e-5)


def test_text_alone_needs_no_images(processor):
    batch = Collator(processor, cells=True)([TEXT])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_only_what_is_asked_for_is_made(processor):
    assert set(Collator(processor, answers=False)([ONE])) == {"pixel_values", "grid_hws"}
    written = Example.of_question(picture(64, 32), "?", "x", [Character("x", 3, 3)])
    assert set(Collator(processor, answers=False, cells=True)([written])) == {"pixel_values", "grid_hws", "cells"}


def test_cells_follow_the_images_and_unknown_pictures_are_left_out(processor):
    characters = [Character("a", 3.0, 5.0), Character("b", 60.0, 30.0)]
    written = Example.of_question(picture(70, 40), "?", "x", characters)
    blank = Example.of_question(picture(32, 32), "?", "x", [])
    cells = Collator(processor, cells=True)([ONE, written, blank])["cells"]
    assert cells.shape == (2 + 2 + 1, 32)
    assert (cells[:2] == UNKNOWN).all()
    # 70 x 40 pixels became 64 x 32.
    assert np.array_equal(cells[2:4].numpy(), cell_targets(characters, (70, 40), (1, 2), usual_cells(2)))
    assert (cells[2:4] > 0).sum() == 2
    assert (cells[4] == 0).all()


def test_colours_are_those_of_the_quarters_of_tokens(processor):
    image = picture(64, 32).convert("RGB")
    colours = Collator(processor, answers=False, colours=True)([Example.of_question(image, "?", "x")])["colours"]
    assert colours.shape == (2, 12) and colours.dtype == torch.float32
    pixels = np.asarray(image, dtype=np.float64) / 127.5 - 1
    for token in range(2):
        for quarter in range(4):
            top, left = 16 * (quarter // 2), 32 * token + 16 * (quarter % 2)
            mean = pixels[top : top + 16, left : left + 16].mean((0, 1))
            assert colours[token, 3 * quarter : 3 * quarter + 3].numpy() == pytest.approx(mean, abs=0.01)


def with_template(processor, template: str) -> LlavaUHDProcessor:
    return LlavaUHDProcessor(processor.image_processor, processor.tokenizer, chat_template=template)


def test_a_template_without_an_end_token_is_refused(processor):
    endless = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(FoveateError, match="end token"):
        Collator(with_template(processor, endless))([ONE])


def test_a_template_that_rewrites_the_past_is_refused(processor):
    counting = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    with pytest.raises(FoveateError, match="only appends"):
        Collator(with_template(processor, counting))([ONE])


def test_a_conversation_without_an_answer_is_refused(processor):
    with pytest.raises(FoveateError, match="no turn of `gpt`"):
        Collator(processor)([Example([], turns(("human", "Hello")))])

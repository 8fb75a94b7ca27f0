"""Where the language model is told to look."""

import math
import random

import pytest
import torch

from foveate import FoveateError
from foveate.models.llava_uhd.modeling import LlavaUHDForConditionalGeneration
from foveate.synthetic import Character, render
from foveate.training.attention_supervision import (
    NO_TARGET,
    AttentionSupervision,
    answer_thing_index,
    answer_token_indices,
    question_token_indices,
    thing_token_indices,
)
from foveate.training.building import new_model
from foveate.training.collate import Collator
from foveate.training.examples import Example
from foveate.training.recipe import NewModel
from foveate.training.recipe_file import parse_recipe
from foveate.training.training_model import TrainingModel
from tests.training.small_training import TEXT, VISION

IMAGES = {"scale_resolution": 128, "min_resolution": 32, "max_edge": 256}


def small(**text) -> tuple[LlavaUHDForConditionalGeneration, Collator]:
    model, processor = new_model(NewModel(vision=dict(VISION), text={**TEXT, **text}, images=dict(IMAGES)), seed=0)
    return model, Collator(processor, answer_attention=True)


def spelled(text: str, y: float, step: float = 10.0) -> list[Character]:
    return [Character(char, 5 + step * i, y) for i, char in enumerate(text) if char != " "]


def test_places_of_an_answer() -> None:
    characters = [*spelled("Total", 10), *spelled("12 50", 40)]
    # 2 x 3 tokens of 32 px: "12 50" is in the lower row, at x = 5, 15, (25), 35, 45.
    assert answer_token_indices("12 50", characters, (96, 64), (2, 3)) == [3, 3, NO_TARGET, 4, 4]
    assert answer_token_indices("Total", characters, (96, 64), (2, 3)) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("answer", ["yes", "", " ", "total"])
def test_what_is_not_written_has_no_place(answer: str) -> None:
    assert answer_token_indices(answer, spelled("Total", 10), (96, 64), (2, 3)) is None


def test_what_is_written_twice_has_no_place() -> None:
    assert answer_token_indices("ab", [*spelled("ab", 10), *spelled("ab", 40)], (96, 64), (2, 3)) is None


# 2 x 3 tokens of 32 px: the circle is in token 4, the stars in 0 and 2.
SHAPES = [Character("circle", 40, 40), Character("star", 5, 5), Character("star", 90, 5)]


def test_a_shape_that_a_question_names_has_a_place_at_the_end_of_its_name() -> None:
    question = "Is the Circle above a star?"
    assert thing_token_indices(question, SHAPES, (96, 64), (2, 3)) == {question.index("e above"): 4}
    assert thing_token_indices("How many circles?", SHAPES, (96, 64), (2, 3)) == {}


@pytest.mark.parametrize(
    ("question", "answer", "things", "place"),
    [
        ("What colour is the circle?", "red", SHAPES, 4),
        ("Which shape is red?", "circle", SHAPES, 4),
        ("What colour is the shape?", "red", SHAPES[1:2], 0),
        ("What colour is the star?", "red", SHAPES, None),
        ("Which shape is red?", "star", SHAPES, None),
        ("How many circles?", "1", SHAPES, None),
        ("What is written?", "red", [], None),
    ],
)
def test_the_colour_and_the_kind_of_one_shape_have_its_place(question, answer, things, place) -> None:
    assert answer_thing_index(question, answer, things, (96, 64), (2, 3)) == place


def test_pointers_of_questions_about_shapes() -> None:
    _, collator = small()
    sample = render("shape_colour", 0, size=(128, 96), most=1)
    thing = sample.things[0]
    example = Example.of_question(sample.image, f"What colour is the {thing.char}?", sample.answer, [], things=[thing])
    batch = collator([example])
    ids, pointers = batch["input_ids"][0], batch["answer_targets"][0]
    first = int((ids == collator.processor.image_token_id).nonzero()[0])
    rows, columns = (int(side) // 4 for side in batch["grid_hws"][0])
    token = int(thing.y * rows / 96) * columns + int(thing.x * columns / 128)
    supervised = (pointers != NO_TARGET).nonzero().flatten().tolist()
    assert len(supervised) == len(sample.answer)
    assert {int(pointers[position]) for position in supervised} == {first + token}


def test_pointers_of_a_conversation() -> None:
    """Every predicted character points at the placeholder of the token at its place in the middle of its line."""
    _, collator = small()
    sample = render("read_field", 3, size=(192, 128))
    example = Example.of_question(
        sample.image, sample.question, sample.answer, sample.characters, sample.task, sample.more
    )
    batch = collator([example])
    ids, labels, pointers = (batch[name][0] for name in ("input_ids", "labels", "answer_targets"))
    image_token = collator.processor.image_token_id
    first = int((ids == image_token).nonzero()[0])
    rows, columns = (int(side) // 4 for side in batch["grid_hws"][0])
    supervised = (pointers != NO_TARGET).nonzero().flatten().tolist()
    assert len(supervised) >= len(sample.answer.replace(" ", ""))
    for position in supervised:
        assert labels[position + 1] != -100
        assert ids[pointers[position]] == image_token
        row, column = divmod(int(pointers[position]) - first, columns)
        predicted = collator.processor.tokenizer.decode([int(ids[position + 1])])
        inside = [
            c.char
            for c in sample.characters
            if int(c.middle * rows / sample.image.height) == row and int(c.x * columns / sample.image.width) == column
        ]
        assert predicted in inside


def test_nothing_is_pointed_at_without_characters() -> None:
    _, collator = small()
    image = render("read_word", 1, size=(64, 64)).image
    batch = collator([Example.of_question(image, "What?", "word")])
    assert (batch["answer_targets"] == NO_TARGET).all()


@pytest.mark.parametrize("heads", [2, 4])
def test_the_score_is_the_attention_of_the_model_itself(heads: int) -> None:
    """The recomputed head against the attention matrices that the eager implementation returns."""
    model, _ = small(num_attention_heads=heads, num_key_value_heads=heads // 2)
    language_model = model.model.language_model
    with torch.no_grad():
        for parameter in language_model.parameters():
            parameter.normal_(std=0.2)
    teacher = AttentionSupervision(language_model, [0, 1])
    generator = random.Random(0)
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, 9:] = 0
    pointers = torch.full((3, 12), NO_TARGET)
    for row, position in ((0, 5), (0, 11), (1, 8), (2, 1)):
        pointers[row, position] = generator.randrange(position + 1)
    language_model.set_attn_implementation("eager")
    output = language_model(
        input_ids=torch.arange(36).view(3, 12), attention_mask=mask, output_attentions=True, use_cache=False
    )
    loss, count, right = teacher.score(pointers, mask)
    expected, hits = 0.0, 0
    for attention in output.attentions:
        for row, position in (pointers != NO_TARGET).nonzero().tolist():
            weights = attention[row, 0, position]
            expected -= math.log(float(weights[pointers[row, position]].detach()))
            hits += int(weights.argmax() == pointers[row, position])
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert int(count) == 8
    assert int(right) == hits
    loss.backward()
    assert language_model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_answer_attention_is_learned(tmp_path) -> None:
    model, collator = small()
    training_model = TrainingModel(model)
    training_model.supervise_answer_attention([1])
    samples = [render("read_word", seed, size=(96, 64), difficulty=0.0) for seed in range(4)]
    batch = collator([Example.of_question(s.image, s.question, s.answer, s.characters, s.task) for s in samples])
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        sums = training_model(**batch)
        loss = sums["answer_attention_loss"] / sums["answer_attention_count"]
        losses.append(float(loss))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]


def test_telling_other_layers_leaves_nothing_of_the_first() -> None:
    model, _ = small()
    training_model = TrainingModel(model)
    attentions = [layer.self_attn for layer in model.model.language_model.layers]
    training_model.supervise_answer_attention([0])
    training_model.supervise_answer_attention([1])
    assert [len(attention.q_proj._forward_hooks) for attention in attentions] == [0, 1]
    assert len(model.model.language_model.rotary_emb._forward_hooks) == 1


def test_models_that_cannot_be_told_are_named() -> None:
    model, _ = small(model_type="qwen3", num_key_value_heads=2, head_dim=16)
    with pytest.raises(FoveateError, match="which Qwen3Model lacks"):
        AttentionSupervision(model.model.language_model, [0])
    model, _ = small()
    with pytest.raises(FoveateError, match=r"layers from 0 to 1, not \[0, 5\]"):
        AttentionSupervision(model.model.language_model, [0, 5])


def test_attention_supervision_needs_the_language_model() -> None:
    stage = {
        "name": "read",
        "steps": 1,
        "data": [{"easy_vqa": True}],
        "train": {"vision_tower": 1e-3, "heads": 1e-3},
        "loss": {"answer": 0, "cells": 1, "answer_attention": 1},
    }
    with pytest.raises(FoveateError, match="answer_attention: needs the language model"):
        parse_recipe({"output": "out", "model": {"from": "somewhere"}, "stages": [stage]})


def test_places_of_a_question() -> None:
    characters = [*spelled("Total", 10), *spelled("12 50", 40), *spelled("due due", 60)]
    places = question_token_indices("The total: 12, due?", characters, (96, 64), (2, 3))
    # "The" is not written, "12" is too short, "due" stands there twice.
    assert places == [NO_TARGET] * 4 + [0, 0, 0, 1, 1] + [NO_TARGET] * 10


def test_matches_of_a_conversation() -> None:
    """Every character of a word of a question that is written once points at a token that holds this character."""
    new = NewModel(
        vision=dict(VISION), text=dict(TEXT), images=dict(IMAGES), phrases=["What is the ", "<|im_start|>user\n"]
    )
    collator = Collator(new_model(new, seed=0)[1], question_attention=True)
    found = 0
    for seed in range(6):
        sample = render("read_field", seed, size=(192, 128))
        example = Example.of_question(
            sample.image, sample.question, sample.answer, sample.characters, sample.task, sample.more
        )
        batch = collator([example])
        ids, matches = batch["input_ids"][0], batch["question_targets"][0]
        first = int((ids == collator.processor.image_token_id).nonzero()[0])
        rows, columns = (int(side) // 4 for side in batch["grid_hws"][0])
        for position in (matches != NO_TARGET).nonzero()[:, 0].tolist():
            assert batch["labels"][0, position] == -100
            row, column = divmod(int(matches[position]) - first, columns)
            held = [
                c.char.lower()
                for c in sample.characters
                if int(c.x * columns / 192) == column and int(c.middle * rows / 128) == row
            ]
            assert chr(ids[position]).lower() in held
            found += 1
    assert found > 20


def test_phrases_are_one_token_and_nothing_is_lost() -> None:
    new = NewModel(vision=dict(VISION), text=dict(TEXT), phrases=["What is the ", "<|im_start|>user\n"])
    model, processor = new_model(new, seed=0)
    text = "<|im_start|>user\nWhat is the total?<|im_end|>\n"
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == 2 + len("total?") + 2
    assert processor.tokenizer.decode(ids) == text
    assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer) > max(ids)

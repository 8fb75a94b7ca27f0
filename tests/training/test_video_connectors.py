"""Video connectors in recipes: batches, gradients, a training, and the recipes of the repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveate
from foveate import FoveateError
from foveate.answering.conversations import inputs_of_batch
from foveate.core.tokens import Grid
from foveate.models.video_connectors import all_video_connectors
from foveate.synthetic.clips.captions import END, WORDS, captions, word_ids
from foveate.training.building import export, new_model
from foveate.training.clip_source import ClipSource
from foveate.training.collate import Collator
from foveate.training.losses import IGNORED, TERMS, counts_of
from foveate.training.recipe import Clips, Losses, NewModel, Sizes
from foveate.training.recipe_file import parse_recipe, read_recipe
from foveate.training.run import Run
from foveate.training.training_model import TrainingModel
from tests.training.small_training import read_log, recipe, small_stage
from tests.training.small_video import SIDE, TRAIN, new_fields

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "video").glob("*.yaml"))
CLIPS: dict[str, Any] = {
    "sizes": {"width": [SIDE, SIDE], "height": [SIDE, SIDE]}, "seconds": [3, 4], "fps": [1.0], "questions": 1
}  # fmt: skip
CONNECTORS = sorted(all_video_connectors())
#: Place of the captions among the terms of the loss.
CAPTIONS = [term.weight for term in TERMS].index("captions")


def examples_of(count: int, questions: int = 1) -> list[Any]:
    source = ClipSource(
        Clips(sizes=Sizes((SIDE, SIDE), (SIDE, SIDE)), seconds=(3, 4), fps=[1.0], questions=questions), 14
    )
    return [draw() for draw in source.draws(range(count), 0.0, np.random.default_rng(0))]


def test_an_encoder_of_pvc_is_made_of_a_siglip(tmp_path: Path) -> None:
    fields = new_fields("average")
    fields["vision"] |= {"type": "siglip_vision_model"}
    source, processor = new_model(NewModel(**fields), seed=1)
    folder = str(export(source, processor, tmp_path / "source", torch.float32))
    fields = new_fields("temporal_pvc")
    made = {"cls_token": False, "final_norm": True, "hidden_act": "gelu_pytorch_tanh"}
    model, _ = new_model(NewModel(**fields | {"vision": fields["vision"] | made, "vision_tower": folder}), seed=2)
    pixels = torch.randn(3, 3, SIDE, SIDE)
    with torch.no_grad():
        ours = model.model.vision_tower.eval()(pixels, frame_counts=[3]).last_hidden_state
        theirs = source.model.vision_tower.eval()(pixels).last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with pytest.raises(FoveateError, match="needs hidden_act gelu_pytorch_tanh, cls_token False, final_norm True"):
        new_model(NewModel(**fields, vision_tower=folder), seed=2)
    fields = new_fields("average")
    source, processor = new_model(NewModel(**fields), seed=1)
    folder = str(export(source, processor, tmp_path / "clip", torch.float32))
    fields = new_fields("temporal_pvc")
    with pytest.raises(FoveateError, match="is made of a SigLIP, or of an InternViT .* not of this clip_vision_model"):
        new_model(NewModel(**fields, vision_tower=folder), seed=2)


@pytest.mark.parametrize("name", CONNECTORS)
def test_training_inputs_are_those_of_a_question(name: str) -> None:
    model, processor = new_model(NewModel(**new_fields(name)), seed=0)
    first, second = examples_of(2)
    batch = Collator(processor)([first, second])
    question = first.conversations[0]["value"].removeprefix("<video>\n")
    content = [{"type": "video", "video": first.clips[0]}, {"type": "text", "text": question}]
    inputs = inputs_of_batch(model.eval(), processor, [[{"role": "user", "content": content}]])
    length, frames = inputs["input_ids"].shape[1], len(first.clips[0].frames)
    assert torch.equal(batch["input_ids"][:1, :length], inputs["input_ids"])
    for key in ("pixel_values_videos", "video_timestamps"):
        assert torch.equal(batch[key][:1, :frames], inputs[key]), key
    assert ("video_instruction_ids" in batch) == ("video_instruction_ids" in inputs) == processor.connector.reads_text
    if processor.connector.reads_text:
        words = inputs["video_instruction_ids"][0]
        assert torch.equal(batch["video_instruction_ids"][0, : len(words)], words)

    trained = TrainingModel(model)
    sums = trained(**batch)
    answers = [example.conversations[1]["value"] for example in (first, second)]
    assert int(sums["answer_tokens"]) == sum(len(answer) + 1 for answer in answers)
    sums["answer_loss"].backward()
    moved = {trained.part_of(f"model.{key}") for key, value in model.named_parameters() if value.grad is not None}
    assert moved == {"vision_tower", "connector", "language_model"}


def test_a_recipe_trains_a_connector_and_the_model_answers(tmp_path: Path) -> None:
    content = recipe(tmp_path / "run", small_stage([{"clips": CLIPS}], train=TRAIN, steps=2, batch_size=2))
    content["model"] = {"new": new_fields("slow_fast")}
    result = Run(parse_recipe(content), output=tmp_path / "run").train()
    assert result.finished
    model, processor = foveate.load(tmp_path / "run" / "model")
    (example,) = examples_of(1)
    answer = foveate.ask(example.clips[0], "What moves?", (model, processor), max_new_tokens=3)
    # Frames of 6 x 6 patches, pooled to 3 x 3; one of two frames is in the sequence.
    assert answer.frames == len(example.clips[0].frames) and answer.tokens.read == answer.frames // 2 * 9
    assert answer.tokens.generated == 3 or answer.text


def captioned_fields() -> dict[str, Any]:
    """A small langdc whose words are those of captions of rendered clips."""
    fields = new_fields("langdc")
    fields["connector"] |= {"clip_frames": 2, "vocabulary": len(WORDS), "stop": [END], "before": [], "after": []}
    return fields


def test_captions_train_the_small_language_model() -> None:
    model, processor = new_model(NewModel(**captioned_fields()), seed=0)
    first, second = examples_of(2)
    batch = Collator(processor, captions=True)([first, second])
    texts = [text for one in (first, second) for text in captions(one.scene, one.clips[0].timestamps, 2)]
    rows = [row[row != IGNORED].tolist() for row in batch["captions"]]
    assert rows == [word_ids(text) for text in texts] and len(rows) == sum(
        -(-len(one.clips[0].frames) // 2) for one in (first, second)
    )
    trained = TrainingModel(model.eval())
    sums = trained(**batch)
    connector, start, losses = model.model.multi_modal_projector, 0, []
    read = {name: batch[name] for name in ("pixel_values_videos", "frame_counts")}
    tower = model.model.vision_tower(read["pixel_values_videos"].flatten(0, 1), output_hidden_states=True)
    features = tower.hidden_states[-2][:, 1:].unflatten(0, (2, -1))
    for clip, count in zip(features, read["frame_counts"].tolist(), strict=True):
        stop = start + -(-count // 2)
        references = [torch.tensor(row) for row in rows[start:stop]]
        losses.append(connector.caption_scores(clip[:count], Grid(6, 6), references)[0])
        start = stop
    torch.testing.assert_close(sums["caption_loss"], torch.cat(losses).sum(), rtol=1e-4, atol=1e-4)
    assert int(sums["caption_tokens"]) == sum(map(len, rows)) == int(counts_of(batch, Losses())[CAPTIONS])
    assert 0 <= int(sums["caption_right"]) <= int(sums["caption_tokens"])
    sums["caption_loss"].backward()
    assert connector.captioner.embed_tokens.weight.grad is not None and model.lm_head.weight.grad is None
    with torch.no_grad():  # the next pass has no captions
        assert "caption_loss" not in trained(**{name: value for name, value in batch.items() if name != "captions"})


def test_captions_of_a_stage_need_rendered_clips_and_their_words(tmp_path: Path) -> None:
    loss = {"answer": 1, "captions": 0.5}
    content = recipe(tmp_path / "run", small_stage([{"clips": CLIPS}], train=TRAIN, steps=2, batch_size=2, loss=loss))
    content["model"] = {"new": captioned_fields()}
    result = Run(parse_recipe(content), output=tmp_path / "run").train()
    last = read_log(tmp_path / "run")[-1]
    assert result.finished and last["caption_loss"] > 0 and 0 <= last["caption_accuracy"] <= 1
    _, processor = new_model(NewModel(**new_fields("langdc")), seed=0)
    with pytest.raises(FoveateError, match=f"give the connector langdc `vocabulary: {len(WORDS)}`"):
        Collator(processor, captions=True)
    _, processor = new_model(NewModel(**new_fields("average")), seed=0)
    with pytest.raises(FoveateError, match="of the connector langdc, which this model does not have"):
        Collator(processor, captions=True)
    content["stages"][0]["data"] = [{"easy_vqa": True}]
    with pytest.raises(FoveateError, match="which only rendered clips have"):
        Run(parse_recipe(content), output=tmp_path / "other").train()


def test_what_is_not_possible_is_refused() -> None:
    for change, message in (
        ({"connector": {"type": "averag"}}, "averag"),
        (
            {"architecture": "llava", "connector": {}, "instruction": {"model_type": "clip_text_model"}},
            "no place for it",
        ),
        ({"instruction": {"model_type": "bert"}}, "possible are clip_text_model"),
    ):
        with pytest.raises(FoveateError, match=message):
            new_model(NewModel(**new_fields("average") | change), seed=0)
    _, processor = new_model(NewModel(**new_fields("b_vllm")), seed=0)
    with pytest.raises(FoveateError, match="read by the video connector b_vllm: train on answers, without losses"):
        Collator(processor, colours=True)
    with pytest.raises(FoveateError, match="those of b_vllm do not"):
        Collator(processor, answer_attention=True)
    several = [one for one in examples_of(8, questions=3) if len(one.conversations) > 2]
    with pytest.raises(FoveateError, match="one question for each image or clip"):
        Collator(processor)(several[:1])


def test_every_connector_has_a_recipe() -> None:
    assert {path.stem for path in RECIPES} == {*CONNECTORS, "base"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_repository_can_be_built(path: Path) -> None:
    chosen = read_recipe(path).model.new
    assert chosen is not None and chosen.connector["type"] in all_video_connectors()
    processor: Any = new_model(replace(chosen, language_model=None), seed=0)[1]
    batch = Collator(processor)(examples_of(1))
    placeholders = int((batch["input_ids"] == processor.video_token_id).sum())
    assert 0 < placeholders < 64 * int(batch["frame_counts"])  # fewer than patches

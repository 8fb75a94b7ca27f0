"""Rendered clips in training: batches, model inputs, and recipes that are refused."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate import FoveateError
from foveate.answering.conversations import inputs_of_batch
from foveate.synthetic.clips import render_clip
from foveate.synthetic.shapes import COLOURS
from foveate.training.attention_supervision import NO_TARGET
from foveate.training.batch_stream import BatchStream
from foveate.training.building import new_model
from foveate.training.clip_source import ClipSource, clip_of
from foveate.training.collate import Collator
from foveate.training.recipe import Clips, NewModel, Sizes
from foveate.training.recipe_file import parse_recipe, read_recipe
from foveate.training.run import Run
from tests.training.small_training import recipe, small_stage
from tests.training.small_video import SIDE, new_fields

NEW = {
    "architecture": "qwen2.5-vl",
    "vision": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    },
    "text": {
        "model_type": "qwen2",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    },
    "images": {"min_pixels": 3136, "max_pixels": 50176, "clips": {"min_pixels": 3136, "max_pixels": 50176}},
}
CLIPS = {"clips": {"sizes": {"width": [84, 140], "height": [84, 112]}, "seconds": [3, 4], "fps": [2, 4]}}
TRAIN = {"vision_tower": 1e-3, "language_model": 1e-3}


@pytest.fixture(scope="module")
def small():
    return new_model(NewModel(**copy.deepcopy(NEW)), seed=0)


def small_recipe(output: Path, *stages: dict) -> dict:
    return recipe(output, *stages, model={"new": copy.deepcopy(NEW)})


def stage_of(**changes):
    return parse_recipe(small_recipe(Path("out"), small_stage([CLIPS], train=TRAIN, **changes))).stages[0]


def test_clips_of_a_group_have_one_size_duration_and_rate():
    source = ClipSource(Clips(sizes=Sizes((84, 140), (84, 112)), seconds=(3, 5), fps=[1.0, 2.0]), unit=28)
    seen = set()
    for number in range(12):
        clips = [draw().clips[0] for draw in source.draws(range(3), 0.5, np.random.default_rng(number))]
        (shape,) = {clip.frames.shape for clip in clips}
        (fps,) = {clip.metadata["fps"] for clip in clips}
        assert shape[1] % 28 == shape[2] % 28 == 0
        assert 3 <= shape[0] / fps <= 5 + 1e-9
        seen.add((shape, fps))
    assert len(seen) > 8


def test_durations_and_difficulties_grow():
    settings = Clips(seconds=(3, 3), final_seconds=(9, 9), difficulty=(0, 0), final_difficulty=(1, 1), growth=0.5)
    source = ClipSource(settings, unit=28)
    for progress, seconds in ((0.0, 3), (0.25, 6), (0.5, 9), (1.0, 9)):
        (draw,) = source.draws(range(1), progress, np.random.default_rng(0))
        assert len(draw().clips[0].frames) == 2 * seconds


def test_a_stream_of_clips_can_start_anywhere(small):
    stage = stage_of(steps=3, groups=2)
    whole, tail = (
        list(BatchStream(stage, [(ClipSource(stage.data[0].clips, 28), 1.0)], Collator(small[1]), seed=1, start=start))
        for start in (0, 2)
    )
    assert len(whole) == 3 and len(tail) == 1
    assert all(torch.equal(whole[2][name], value) for name, value in tail[0].items())
    assert not torch.equal(whole[0]["input_ids"], whole[1]["input_ids"])


def test_training_inputs_are_those_of_a_question(small):
    """Pixels, times, ids and kinds of tokens are what the processor makes of the same clip at inference."""
    model, processor = small
    sample = render_clip("clip_moving", 3, size=(84, 112), seconds=5, fps=4, most=1)
    source = ClipSource(Clips(tasks={"clip_moving": 1.0}, questions=1, fps=[4.0], seconds=(5, 5)), 28)
    (draw,) = source.draws(range(1), 0.0, np.random.default_rng(0))
    example = draw()
    batch = Collator(processor)([example])
    question = example.conversations[0]["value"].removeprefix("<video>\n")
    content = [{"type": "video", "video": example.clips[0]}, {"type": "text", "text": question}]
    inputs = inputs_of_batch(model, processor, [[{"role": "user", "content": content}]])
    for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
        assert torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(inputs[name])), name
    length = inputs["input_ids"].shape[1]
    for name in ("input_ids", "mm_token_type_ids"):
        assert torch.equal(batch[name][:, :length], inputs[name]), name
    assert (batch["input_ids"] == processor.video_token_id).sum() == 10 * 4 * 4
    learned = batch["labels"][0] != -100
    text = processor.tokenizer.decode(batch["labels"][0][learned])
    assert text == example.conversations[1]["value"] + "<|im_end|>"
    assert not learned[:length].any()
    clip = clip_of(sample)
    assert clip.metadata["duration"] == pytest.approx(5)
    assert clip.timestamps == sample.timestamps
    assert np.array_equal(clip.frames, sample.frames)


def test_the_frames_reach_the_loss(small, tmp_path):
    path = small_recipe(tmp_path / "run", small_stage([CLIPS], train=TRAIN, steps=2, batch_size=2))
    result = Run(parse_recipe(path), cpu=True, workers=0).train()
    assert result.finished and result.progress.samples == 4
    model, processor = small
    (draw,) = ClipSource(Clips(), 28).draws(range(1), 0.0, np.random.default_rng(0))
    batch = Collator(processor)([draw()])
    with torch.inference_mode():
        logits = model(**batch).logits
        batch["pixel_values_videos"] = batch["pixel_values_videos"].flip(0)
        assert not torch.allclose(logits, model(**batch).logits)


@pytest.mark.parametrize("kind", ["qwen2.5-vl", "average"])
def test_attention_is_supervised_at_the_tokens_that_show_the_answer(small, kind):
    """Targets of answers and of names in questions are tokens whose pixels, in one of their frames, show the shape."""
    processor = small[1]
    if kind == "average":  # tokens of 28 x 28 pixels of two frames, as those of Qwen2.5-VL
        fields = new_fields("average") | {"connector": {"type": "average", "frames_per_token": 2}}
        processor = new_model(NewModel(**fields), seed=0)[1]
    tasks, sizes = {"clip_order": 1, "clip_moving": 1, "clip_sign": 1}, Sizes((SIDE, SIDE), (SIDE, SIDE))
    settings = Clips(tasks=tasks, sizes=sizes, difficulty=(0, 0), questions=3)
    examples = [draw() for draw in ClipSource(settings, 28).draws(range(12), 0.0, np.random.default_rng(4))]
    batch = Collator(processor, answer_attention=True, question_attention=True)(examples)
    checked = 0
    for row, example in enumerate(examples):
        ids, frames = batch["input_ids"][row].tolist(), example.clips[0].frames
        start, rows, columns = ids.index(processor.video_token_id), frames.shape[1] // 28, frames.shape[2] // 28
        for name in ("answer_targets", "question_targets"):
            for at in (batch[name][row] != NO_TARGET).nonzero()[:, 0].tolist():
                # A question's target is at the end of a name, an answer's before each of its characters.
                text = processor.tokenizer.decode(
                    ids[at - 16 : at + 1] if name == "question_targets" else ids[at + 1 : at + 9]
                )
                names = [
                    c for c in COLOURS if (text.startswith(f"{c} ") if name == "answer_targets" else f" {c} " in text)
                ]
                if len(names) != 1:
                    continue
                (colour,) = names
                token = int(batch[name][row][at]) - start
                pair, place = divmod(token, rows * columns)
                down, across = divmod(place, columns)
                shown = frames[2 * pair : 2 * pair + 2, 28 * down : 28 * down + 28, 28 * across : 28 * across + 28]
                distance = np.abs(shown.astype(int) - np.array(COLOURS[colour])).max(axis=-1)
                assert (distance < 12).sum() > 20, (colour, example.conversations)
                checked += 1
    assert checked > 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"clip_none": 1}}, "unknown task 'clip_none'"),
        ({"tasks": {"clip_sign": 0}}, "tasks.clip_sign: the weight 0.0 is not positive"),
        ({"sizes": {"width": [56, 60], "height": [84, 84]}}, "clip_sign needs frames of at least 84 x 84 pixels"),
        ({"seconds": [1, 4]}, r"seconds: \[1, 4\] is not a range from 3 to 60 seconds"),
        ({"seconds": [4, 60], "fps": [30]}, "with at most 256 frames"),
        ({"fps": [0.5]}, "not frame rates of at least 1"),
        ({"difficulty": [0.5, 2]}, "not a range between 0 and 1"),
        ({"growth": 0}, "not a fraction between 0 and 1"),
        ({"questions": 0}, "questions: 0 must be at least 1"),
    ],
)
def test_impossible_clips_are_refused(changes, message):
    def source():
        stage = parse_recipe(small_recipe(Path("out"), small_stage([{"clips": changes}], train=TRAIN))).stages[0]
        return ClipSource(stage.data[0].clips, 28)

    with pytest.raises(FoveateError, match=message):
        source()


@pytest.mark.parametrize("changes", [{"loss": {"cells": 1}}, {"loss": {"page": 1}}, {"window": 8}])
def test_losses_of_image_tokens_are_refused_for_clips(changes):
    with pytest.raises(FoveateError, match="clips are trained on answers, with attention supervision or without"):
        stage_of(**changes)


def test_models_without_clips_are_refused(processor, tmp_path):
    with pytest.raises(FoveateError, match="stage one: llava-uhd reads no clips"):
        Run(parse_recipe(recipe(tmp_path, small_stage([CLIPS], train=TRAIN))), cpu=True).train()
    (draw,) = ClipSource(Clips(), 28).draws(range(1), 0.0, np.random.default_rng(0))
    with pytest.raises(FoveateError, match="llava-uhd reads no clips"):
        Collator(processor)([draw()])


def test_the_recipe_of_the_measuring_model_can_be_read():
    recipe_of_model = read_recipe(Path(__file__).parents[2] / "recipes" / "measure-video.yaml")
    for stage in recipe_of_model.stages:
        for data in stage.data:
            assert data.clips is not None
            ClipSource(data.clips, 28)

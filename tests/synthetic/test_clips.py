"""What is asked about a clip is true of its frames."""

import math
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest

from foveate import FoveateError
from foveate.synthetic import families_of
from foveate.synthetic.clips import CLIP_TASKS, render_clip
from foveate.synthetic.clips.captions import END, WORDS, captions, word_ids
from foveate.synthetic.shapes import COLOURS
from foveate.synthetic.words import split_of


def seen(sample, name: str) -> np.ndarray:
    """For every frame the centre (x, y) of a shape, found by its colour alone; NaN where it is not."""
    colour = np.array(COLOURS[name.split()[0]])
    near = np.abs(sample.frames.astype(int) - colour).max(axis=-1) < 25
    return np.array(
        [[np.nan] * 2 if mask.sum() < 20 else [axis.mean() for axis in mask.nonzero()[::-1]] for mask in near]
    )


def shown(sample, name: str) -> np.ndarray:
    return ~np.isnan(seen(sample, name)[:, 0])


@cache
def rendered(task: str):
    """Easy clips, in which every shape has a colour of its own and no sign stands above."""
    samples = (render_clip(task, seed, difficulty=0.0, seconds=6) for seed in range(100))
    return [sample for sample in samples if sample.meta["scene"].sign is None]


def easy(task: str, count: int = 25, what: str | None = None):
    fits = [sample for sample in rendered(task) if what in (None, sample.meta["what"])]
    assert len(fits) >= count
    return fits[:count]


def test_the_first_shape_came_first():
    for sample in easy("clip_order", what="order"):
        first = {name: int(shown(sample, name).argmax()) for name in sample.meta["slots"].values()}
        assert all(shown(sample, name).any() for name in first)
        assert sample.answer == min(first, key=lambda name: first[name])
        assert len(set(first.values())) == 2


def test_shapes_are_counted_once():
    answers = Counter()
    for sample in easy("clip_count", 40):
        names = {actor.name for actor in sample.meta["scene"].actors}
        assert sample.answer == str(sum(shown(sample, name).any() for name in names))
        answers[sample.answer] += 1
    assert len(answers) == 4


def test_shapes_move_as_it_is_said():
    answers = Counter()
    for sample in easy("clip_direction"):
        places = seen(sample, sample.meta["slots"]["what"])
        dx, dy = places[-1] - places[0]
        way = ("left", "right") if abs(dx) > abs(dy) else ("up", "down")
        assert sample.answer == way[int((dx if abs(dx) > abs(dy) else dy) > 0)]
        assert max(abs(dx), abs(dy)) > 20
        answers[sample.answer] += 1
    assert len(answers) == 4


def test_only_what_is_said_to_move_moves():
    for sample in easy("clip_moving"):
        for actor in sample.meta["scene"].actors:
            places = seen(sample, actor.name)
            still = np.nanmax(np.ptp(places[~np.isnan(places[:, 0])], axis=0)) < 2
            assert still == (actor.name != sample.answer)


def test_things_happen_at_the_second_that_is_said():
    answers = Counter()
    for what in ("when.appear", "when.vanish"):
        for sample in easy("clip_when", what=what):
            there = shown(sample, sample.meta["slots"]["what"])
            change = int(np.flatnonzero(there[1:] != there[:-1])[0]) + 1
            assert there[0] == (what == "when.vanish")
            assert (there[1:] != there[:-1]).sum() == 1
            assert sample.timestamps[change] == int(sample.answer)
            answers[sample.answer] += 1
    assert set(answers) == set("12345")


def test_the_sign_changes_when_and_as_often_as_it_is_said():
    for seed in range(30):
        sample = render_clip("clip_sign", seed, difficulty=0.3, seconds=8)
        texts = sample.meta["scene"].sign.texts
        assert sample.answer in (texts[0][1], texts[-1][1])
        assert (sample.answer == texts[0][1]) == (sample.meta["what"] in ("sign.before", "sign.first"))
    sample = next(
        s
        for s in (render_clip("clip_when", seed, difficulty=0.0) for seed in range(50))
        if s.meta["what"] == "when.sign"
    )
    plate = sample.frames[:, : int(sample.meta["scene"].sign.box[3])].reshape(len(sample.frames), -1)
    changes = np.flatnonzero((plate[1:] != plate[:-1]).any(axis=1)) + 1
    assert [sample.timestamps[number] for number in changes] == [int(sample.answer)]


@pytest.mark.parametrize("what", ["blink", "appear", "vanish", "enter", "leave"])
def test_only_one_shape_does_what_is_asked_for(what):
    for sample in easy("clip_change", 8, what):
        there = {actor.name: shown(sample, actor.name) for actor in sample.meta["scene"].actors}
        changes = {name: int((frames[1:] != frames[:-1]).sum()) for name, frames in there.items()}
        assert [name for name, count in changes.items() if count] == [sample.answer]
        assert (changes[sample.answer] > 1) == (what == "blink")


@pytest.mark.parametrize("task", CLIP_TASKS)
def test_a_clip_follows_from_its_arguments(task):
    one, again = (render_clip(task, 5, difficulty=0.7, seconds=5, fps=4) for _ in range(2))
    assert np.array_equal(one.frames, again.frames)
    assert (one.question, one.answer, one.more) == (again.question, again.answer, again.more)
    assert not np.array_equal(one.frames, render_clip(task, 6, difficulty=0.7, seconds=5, fps=4).frames)
    assert one.frames.shape == (20, 112, 112, 3)
    assert one.timestamps == tuple(number / 4 for number in range(20))


def test_later_questions_are_not_answered_by_earlier_ones():
    for seed in range(60):
        sample = render_clip(CLIP_TASKS[seed % len(CLIP_TASKS)], seed, difficulty=0.5, most=5)
        text = ""
        for question, answer in [(sample.question, sample.answer), *sample.more]:
            assert len(answer) < 3 or answer not in text
            text += f"{question} {answer}\n"


def test_held_out_parts_are_never_in_training_clips():
    train, heldout = (
        [render_clip(task, seed, split, difficulty=0.5) for task in CLIP_TASKS for seed in range(8)]
        for split in ("train", "heldout")
    )
    texts = {text for sample in train if sample.meta["scene"].sign for _, text in sample.meta["scene"].sign.texts}
    assert {split_of(text) for text in texts if len(text) > 2} == {"train"}
    plates = [
        {s.meta["scene"].sign.plate for s in samples if s.meta["scene"].sign is not None}
        for samples in (train, heldout)
    ]
    assert not plates[0] & plates[1]
    assert families_of("train") != families_of("heldout")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "clip_none"}, "unknown task 'clip_none'; possible are clip_order"),
        ({"split": "test"}, "unknown split 'test'"),
        ({"difficulty": 2}, "difficulty must lie between 0 and 1"),
        ({"size": (40, 112)}, "clip_order needs frames of at least 56 x 56 pixels, got 40 x 112"),
        ({"size": (2000, 112)}, "at most 1024 pixels a side"),
        ({"seconds": 1}, "must last from 3 to 60 seconds, got 1"),
        ({"fps": 0.5}, "at least 1 frame per second"),
        ({"seconds": 60, "fps": 30}, "at most 256 in all"),
    ],
)
def test_impossible_clips_are_refused(arguments, message):
    with pytest.raises(FoveateError, match=message):
        render_clip(**{"task": "clip_order", **arguments})


@pytest.mark.parametrize("task", CLIP_TASKS)
def test_captions_say_what_is_shown_and_what_it_does(task: str) -> None:
    for seed in range(12):
        sample = render_clip(task, seed, seconds=4, difficulty=seed / 11)
        scene, times = sample.meta["scene"], sample.timestamps
        texts = captions(scene, times, 3)
        assert len(texts) == math.ceil(len(times) / 3)
        for part, text in enumerate(texts):
            seconds = times[3 * part : 3 * part + 3]
            said = [] if text == "nothing" else re.sub(r'"[^"]*"', "TEXT", text).split(", ")
            shown = {actor.name for actor in scene.actors if any(actor.visible(second) for second in seconds)}
            named = [" ".join(one.split()[:2]) for one in said if not one.startswith("sign")]
            assert sorted(named) == sorted(shown)
            assert any(one.startswith("sign") for one in said) == (scene.sign is not None)
            for one in said:
                actor = next((actor for actor in scene.actors if one.startswith(actor.name)), None)
                if actor is None:
                    continue
                rest = one.removeprefix(actor.name).strip()
                frames = [actor.visible(second) for second in seconds]
                assert ("appears" in rest.split()) <= (not all(frames)) and (rest == "disappears") <= (not frames[-1])
                if rest.startswith("moves"):
                    assert rest == f"moves {actor.direction}" and all(frames)
            words = word_ids(text)
            assert words[-1] == END and END not in words[:-1] and max(words) < len(WORDS)
    assert [WORDS[word] for word in word_ids('red star moves up, sign "A 1" then "b,"')] == [
        "red", "star", "moves", "up", ",", "sign", "A", "1", "then", "b", ",", "</s>",
    ]  # fmt: skip
    with pytest.raises(FoveateError, match="no word 'violet'"):
        word_ids("violet star")

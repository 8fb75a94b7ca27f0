"""Times of the frames of a clip: from the model's arguments, and from prompts as processors write them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import foveate
from foveate import FoveateError, compat
from foveate.core.video import VideoMethod
from foveate.families import families
from foveate.methods.video.evs import EVS
from foveate.runtime.frame_times import written_times
from foveate.runtime.question_tokens import PromptReader
from foveate.testing.visual_tokens import frames, plain, tiled
from tests.families.reference import answers, logits
from tests.families.zoo import END, IMAGE, START, VIDEO, zoo

CLIP = (3, 2, 2)


def tokenizer(time: str) -> PreTrainedTokenizerFast:
    """A word a number, the seventh of them a time."""
    words = {f"w{n}": n for n in range(120) if n not in (7, START, END, IMAGE, VIDEO)} | {time: 7}
    words |= {"<start>": START, "<end>": END, "<image>": IMAGE, "<video>": VIDEO}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<start>", "<end>", "<image>", "<video>"]
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0", additional_special_tokens=special)


def characters() -> PromptReader:
    """Reads prompts in which every character is a token, and marks of frames are one special token each."""
    marks = ["<|vision_start|>", "<|vision_end|>", "<|video|>", "<boi>", "<eoi>"]
    words = {chr(n): n for n in range(128)} | {mark: 128 + n for n, mark in enumerate(marks)}
    made = Tokenizer(models.WordLevel(words, unk_token="\x00"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PromptReader(
        PreTrainedTokenizerFast(tokenizer_object=made, unk_token="\x00", additional_special_tokens=marks)
    )


PROMPTS: dict[str, tuple[str, str, list[float] | None]] = {
    "qwen3-vl": (
        "Look: <0.3 seconds><|vision_start|>{}<|vision_end|><2.0 seconds><|vision_start|>{}<|vision_end|>What?",
        "before",
        [0.3, 2.0],
    ),
    "gemma4": ("Two 00:05 <boi>{}<eoi> 01:07 <boi>{}<eoi> words", "before", [5.0, 67.0]),
    "gemma4, hours": ("59:59 <boi>{}<eoi> 100:05 <boi>{}<eoi>", "before", [3599.0, 6005.0]),
    "hours": ("01:00:00.500<boi>{}<eoi>01:00:01.250<boi>{}<eoi>", "before", [3600.5, 3601.25]),
    "glm-4v": ("8<boi>{}<eoi>0<boi>{}<eoi>12<|video|>5", "after", [0.0, 12.0]),
    "glm-4.6v": ("<boi>{}<eoi>0.5 seconds<boi>{}<eoi>12.0 seconds<|video|>", "after", [0.5, 12.0]),
    "a frame without a time": ("<0.3 seconds><|vision_start|>{}<|vision_end|>then<boi>{}<eoi>", "before", None),
    "no text behind": ("0<boi>{}<eoi>1<boi>{}<eoi>", "after", None),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_times_as_processors_write_them(prompt: str) -> None:
    text, side, expected = PROMPTS[prompt]
    reader = characters()
    parts = [reader.tokenizer(part)["input_ids"] for part in text.split("{}")]
    video = reader.tokenizer.convert_tokens_to_ids("<|video|>")
    ids, spans = list(parts[0]), []
    for part in parts[1:]:
        spans.append((len(ids), len(ids) + 4))
        ids += [video] * 4 + part
    assert written_times(reader, ids, spans, side) == expected  # ty: ignore[invalid-argument-type]


def timestamps(model: Any, inputs: dict[str, Any], **options: Any) -> list[list[float] | None]:
    with foveate.compress(model, "evs:60%", **options) as handle:
        logits(model, inputs)
        images = handle.report().images
        assert ("0.5 to 4.5 s" in str(handle.report())) == (images[0].layout.timestamps is not None and not options)
        kind = model.config.model_type
        beams = compat.QWEN35_BEAMS_HAVE_IMAGES or not kind.startswith("qwen3_5")
        if beams and not kind.startswith("glm"):  # in transformers 5.24 it repeats no clips for beams
            answers(model, inputs, num_beams=2)
        repeated = handle.report().images
    for first, second in zip(images, repeated, strict=True):
        assert first.as_json()["crops"] == second.as_json()["crops"]
    return [None if one.layout.timestamps is None else one.layout.timestamps.tolist() for one in images]


def test_seconds_per_grid_are_the_mean_of_the_frames_of_a_raster() -> None:
    """Two frames a second apart and 2 seconds a raster: the first stands for 0 and 1 s, their mean being 0.5."""
    specimen = zoo()["qwen2.5-vl"]
    model = specimen.model()
    inputs = specimen.prompts(model, ((CLIP,), (CLIP,)))
    assert timestamps(model, inputs) == [None, None]
    inputs["second_per_grid_ts"] = torch.tensor([2.0, 1.0])
    assert timestamps(model, inputs) == [[0.5, 2.5, 4.5], [0.25, 1.25, 2.25]]
    with foveate.compress(model, "evs:60%") as handle:
        logits(model, inputs)
        crops = handle.report().as_json()["images"][0]["crops"]  # ty: ignore[not-subscriptable]
    assert [crop["seconds"] for crop in crops] == [0.5, 2.5, 4.5]


@pytest.mark.parametrize(
    ("name", "time", "expected"),
    [("qwen3-vl", "<2.5▁seconds>", 2.5), ("qwen3.5", "<2.5▁seconds>", 2.5), ("glm-4v", "3", None)],
)
def test_times_in_the_prompt_of_a_live_model(name: str, time: str, expected: float | None) -> None:
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, ((CLIP,),))
    times = timestamps(model, inputs, processor=tokenizer(time))
    if name == "glm-4v":  # of the last frame the prompt of the zoo says nothing
        assert times == [None]
    else:
        assert times == [[expected] * 3]
        assert timestamps(model, inputs) == [None]


def test_where_times_are_written_is_known_of_every_family_that_writes_them() -> None:
    assert {name: one.written_times for name, one in families().items() if one.written_times} == {
        "qwen3-vl": "before",
        "qwen3.5": "before",
        "gemma4": "before",
        "glm-4v": "after",
    }


def test_a_method_that_needs_times_refuses_clips_without() -> None:
    with pytest.raises(FoveateError, match="evs needs the time of every frame") as error:
        EVS().seconds(frames())
    assert error.value.code == "needs-timestamps"
    assert EVS().seconds(frames(timestamps=torch.tensor([0.0, 1.0, 2.0]))).tolist() == [0.0, 1.0, 2.0]


def test_frames_of_a_clip_and_of_an_image() -> None:
    clip = frames(3, 2, 4, timestamps=torch.arange(3.0))
    assert clip.is_clip and clip.frames.shape == (3, 8, 8)
    assert torch.equal(clip.frames.flatten(0, 1), clip.features)
    part = clip.part(clip.crops[1])
    assert part.timestamps is not None and part.timestamps.tolist() == [1.0] and part.frames.shape == (1, 8, 8)
    image = plain(2, 4)
    assert not image.is_clip and torch.equal(image.frames[0], image.features)
    with pytest.raises(FoveateError, match="all of them have all of their tokens"):
        _ = tiled().frames


def test_crops_of_a_tiled_image_are_clips_of_their_own() -> None:
    image = tiled()
    assert issubclass(EVS, VideoMethod)
    selection = EVS()(image, 20)
    kept = [sum(int(i) in set(selection.indices.tolist()) for i in crop.present) for crop in image.crops]
    assert len(selection) == 20 and min(kept) > 0

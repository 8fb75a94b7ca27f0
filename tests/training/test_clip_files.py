"""Files of conversations about clips: rows, frames, batches, and a training from the command line."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from foveate import FoveateError
from foveate.answering.conversations import inputs_of_batch
from foveate.cli import main
from foveate.clips import open_clip
from foveate.clips.pyav import PyAVSource
from foveate.core.plan import Plan
from foveate.synthetic.clips import render_clip
from foveate.training.batch_stream import BatchStream
from foveate.training.building import new_model
from foveate.training.collate import Collator
from foveate.training.dataset import read_conversations
from foveate.training.examples import ClipFile, Example
from foveate.training.recipe import Data, Files, NewModel
from foveate.training.recipe_file import parse_recipe, read_recipe
from foveate.training.sources import open_source
from tests.training.small_training import read_log, recipe, small_stage
from tests.training.small_video import SIDE, TRAIN, new_fields
from tests.training.test_clip_source import NEW
from tests.video_files import save_frames

FRAMES = "uniform-frames:4"
SAMPLER = Plan.of(FRAMES).frame_step
#: Numbers of the frames that it chooses among 16.
CHOSEN = [2, 6, 10, 14]


def turns(question: str, answer: str = "A red circle.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def row(**changes: Any) -> dict[str, Any]:
    return {"video": "clips/a.mkv", "conversations": turns("<video>\nWhat moves?")} | changes


#: Of all kinds: `<image>` for a clip is how LLaVA-Video's files have it.
ROWS = [
    row(),
    row(conversations=turns("<image>\nWhat moves?")),
    row(video=None, videos=["clips/a.mkv", "clips/b.mkv"], conversations=turns("<video>\n<video>\nWhich is longer?")),
    row(image="good.png", conversations=turns("<image>\n<video>\nIs it there?")),
    row(image="good.png", conversations=turns("<video>\n<image>\nIs it there?")),
    {"video": "", "conversations": turns("What is a clip?")},
]


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """16 frames of four seconds."""
    return render_clip("clip_moving", 3, size=(SIDE, SIDE), seconds=4, fps=4, most=1).frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, frames: np.ndarray) -> Path:
    """Two clips of other lengths, and an image."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "clips").mkdir()
    save_frames(folder / "clips" / "a.mkv", frames)
    save_frames(folder / "clips" / "b.mkv", frames[:8])
    Image.fromarray(frames[0]).save(folder / "good.png")
    (folder / "text.mp4").write_text("no video", encoding="utf-8")
    return folder


def write(folder: Path, rows: list[dict[str, Any]], name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def read(folder: Path, rows: list[dict[str, Any]], videos: Path | None = None) -> list[Example]:
    return read_conversations(write(folder, rows), videos=videos, sampler=SAMPLER, no_clips=None)


def test_rows_name_clips_and_images(folder: Path) -> None:
    examples = read(folder, ROWS)
    a, b = (ClipFile(folder / "clips" / name, SAMPLER) for name in ("a.mkv", "b.mkv"))
    assert [example.clips for example in examples] == [[a], [a], [a, b], [a], [a], []]
    assert [len(example.images) for example in examples] == [0, 0, 0, 1, 1, 0]
    assert examples[1].conversations == examples[0].conversations == ROWS[0]["conversations"]
    assert examples[4].conversations == ROWS[4]["conversations"]
    (other,) = read(folder, [row(video="a.mkv")], videos=folder / "clips")
    assert other.clips == [a]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (row(video="clips/none.mp4"), ["no video file at", "none.mp4"]),
        (row(video="text.mp4"), ["text.mp4", "cannot be decoded as a video"]),
        (row(video="a\0b"), ["no video file at"]),
        (row(video="good.png"), ["good.png", "cannot be decoded as a video"]),
        (row(conversations=turns("What moves?")), ["0 <video>", "1 videos"]),
        (row(conversations=turns("<video><video> What moves?")), ["2 <video>", "1 videos"]),
        (row(conversations=turns("<image><image> What moves?")), ["2 <video>", "1 videos"]),
        (row(video=None), ["1 <video>", "0 videos"]),
        (row(conversations=turns("<image><video> What moves?")), ["1 <image>", "0 images"]),
        (row(image="good.png"), ["0 <image>", "1 images"]),
        (row(conversations=turns("What moves?", "<video>")), ["turn 2 is from gpt", "only human shows videos"]),
        (row(system="<video>"), ["`system` holds <video>; only human shows videos"]),
        (row(video=7), ["`video` must be a path"]),
        (row(videos=["clips/b.mkv"]), ["`video` and `videos` stand together"]),
        (row(audio="a.wav"), ["`audio` cannot", "possible are `image`, `video` and text"]),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(folder: Path, bad: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(FoveateError, match="1 problem:\n") as error:
        read(folder, [row(), bad])
    assert f"{folder / 'data.jsonl'}, line 2: " in str(error.value) and str(error.value).count("\n") == 1
    for word in words:
        assert word in str(error.value)


def test_a_clip_is_decoded_once_and_only_where_it_is_read(
    folder: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[list[float]] = []
    decode = PyAVSource.read

    def counted(self: PyAVSource, wanted: Any = None, max_side: int | None = None) -> Any:
        times.append(wanted)
        return decode(self, wanted, max_side)

    monkeypatch.setattr(PyAVSource, "read", counted)
    examples = read(folder, ROWS[:3])
    assert times == []
    _, processor = new_model(NewModel(**new_fields("average")), seed=0)
    batch = Collator(processor)(examples)
    whole, half = [0.5, 1.5, 2.5, 3.5], [0.25, 0.75, 1.25, 1.75]
    assert times == [whole, whole, whole, half]
    assert batch["frame_counts"].tolist() == [4] * 4
    assert torch.equal(batch["pixel_values_videos"][0], batch["pixel_values_videos"][2])
    (clip,) = examples[0].read_clips()
    assert np.array_equal(clip.frames, frames[CHOSEN]) and clip.timestamps == tuple(whole)


@pytest.mark.parametrize("fields", [new_fields("average"), NEW], ids=["llava-video", "qwen2.5-vl"])
def test_training_inputs_are_those_of_a_question(folder: Path, fields: dict[str, Any]) -> None:
    """Pixels and ids are what the processor makes of the same clips and images, in the order of the text."""
    model, processor = new_model(NewModel(**copy.deepcopy(fields)), seed=0)
    examples = read(folder, ROWS[2:5])
    for example in examples:
        batch = Collator(processor)([example])
        clips: Any = iter(example.clips)
        images: Any = iter(example.images)
        content: list[dict[str, Any]] = []
        for line in example.conversations[0]["value"].split("\n"):
            if line == "<video>":
                content.append({"type": "video", "video": open_clip(next(clips).path, sampler=SAMPLER)})
            elif line == "<image>":
                content.append({"type": "image", "image": Image.open(next(images)).convert("RGB")})
            else:
                content.append({"type": "text", "text": line})
        inputs = inputs_of_batch(model, processor, [[{"role": "user", "content": content}]])
        length = inputs["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][:, :length], inputs["input_ids"])
        kinds = ["pixel_values_videos"] + ["pixel_values"] * len(example.images)
        for name in kinds:
            assert torch.equal(batch[name], inputs[name]), name
    together = Collator(processor)(examples)
    with torch.inference_mode():
        assert torch.isfinite(model.eval()(**together).loss)


def test_a_stream_of_clips_can_start_anywhere(folder: Path) -> None:
    data = Data(files=Files(str(write(folder, ROWS)), frames=FRAMES))
    stage = parse_recipe(recipe(folder, small_stage([{"files": {"path": "x"}}], steps=4, batch_size=2))).stages[0]
    _, processor = new_model(NewModel(**new_fields("average")), seed=0)
    whole, tail = (
        list(BatchStream(stage, [(open_source(data, 14, 3, None), 1.0)], Collator(processor), seed=1, start=start))
        for start in (0, 3)
    )
    (last,) = tail
    assert len(whole) == 4 and last.keys() == whole[3].keys()
    assert all(torch.equal(whole[3][name], value) for name, value in last.items())
    assert any("pixel_values_videos" in batch for batch in whole)


def small_recipe(folder: Path, rows: list[dict[str, Any]], files: dict[str, Any], **changes: Any) -> Path:
    """A recipe file that trains two steps on rows."""
    write(folder, rows)
    stage = small_stage([{"files": {"path": "data.jsonl", **files}}], train=TRAIN, steps=2, batch_size=2)
    content = recipe(folder / "run", stage | changes.pop("stage", {}), save_every=1, log_every=1)
    content["model"] = {"new": new_fields("slow_fast") | changes}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_recipe_trains_on_clips_of_a_file_and_resumes(folder: Path, tmp_path: Path) -> None:
    path = small_recipe(folder, ROWS[:3], {"frames": "fps(rate=1):4"})
    output = tmp_path / "run"
    command = ["train", str(path), "--output", str(output), "--workers", "0", "--cpu"]
    assert main(command) == 0
    whole = [entry["loss"] for entry in read_log(output)]
    assert len(whole) == 2 and all(np.isfinite(whole))
    weights = (output / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(output / "model")
    shutil.rmtree(next(output.glob("stages/*/checkpoint-2")))
    assert main(command) == 0
    assert [entry["loss"] for entry in read_log(output)] == whole
    assert (output / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "llava", "connector": {}},
            "line 1: `video` cannot be learned from here; llava reads no clips: train it on images, or choose",
        ),
        (
            {"stage": {"loss": {"colours": 1}, "train": {"vision_tower": 1e-3, "heads": 1e-3}}},
            "line 1: `video` cannot be learned from here; clips are trained on answers",
        ),
    ],
)
def test_what_cannot_train_on_clips_is_refused_before_training(
    changes: dict[str, Any], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_recipe(folder, ROWS[:1], {}, **changes)
    assert main(["train", str(path), "--output", str(tmp_path / "run"), "--workers", "0", "--cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ("divprune:25%", "frames: divprune:25% is not one step that chooses frames, such as uniform-frames:8"),
        ("uniform-frames:4 + divprune:25%", "is not one step that chooses frames"),
        ("uniform-frames", "frames: .*budget"),
        ("uniform:4", "frames: .*uniform-frames"),
    ],
)
def test_impossible_frames_are_refused(frames: str, message: str) -> None:
    stage = small_stage([{"files": {"path": "a.jsonl", "frames": frames}}])
    with pytest.raises(FoveateError, match=message):
        parse_recipe(recipe(Path("out"), stage))


def test_folders_of_files_are_relative_to_the_recipe(folder: Path) -> None:
    path = small_recipe(folder, ROWS[:1], {"videos": "clips", "frames": FRAMES})
    (data,) = read_recipe(path).stages[0].data
    assert data.files == Files(str(folder / "data.jsonl"), None, str(folder / "clips"), FRAMES)
    assert data.files.sampler == SAMPLER

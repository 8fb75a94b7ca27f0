"""Open the data sources of a recipe."""

from __future__ import annotations

from pathlib import Path

from foveate.core.errors import FoveateError
from foveate.training.batch_stream import ListSource, RenderedSource, Source
from foveate.training.clip_source import ClipSource
from foveate.training.dataset import NO_CLIPS, read_conversations
from foveate.training.examples import Example
from foveate.training.recipe import Data


def open_source(data: Data, unit: int, seed: int, no_clips: str | None = NO_CLIPS) -> Source:
    """Open and check the source of examples that `data` describes.

    Args:
        data: One entry of a stage's `data`.
        unit: Pixels on the side of a final token; sizes of rendered images and clips follow it.
        seed: Seed of the order of finite data.
        no_clips: Why rows of files with a video are refused; None: they are learned from.

    Raises:
        FoveateError: files have problems (all are named), a rendered task does not exist, or a package is missing.
    """
    if data.rendered is not None:
        return RenderedSource(data.rendered, unit)
    if data.clips is not None:
        return ClipSource(data.clips, unit)
    if data.files is not None:
        files = data.files
        for name in ("videos", "frames"):
            if no_clips is not None and getattr(files, name) is not None:
                raise FoveateError(f"files.{name} is for clips, which are not read here; {no_clips}.")
        examples = read_conversations(files.path, files.images, files.videos, sampler=files.sampler, no_clips=no_clips)
        return ListSource(examples.__getitem__, len(examples), seed)
    try:
        import easy_vqa
    except ImportError as error:
        raise FoveateError("easy-VQA needs a package; install it with `pip install foveate[train]`.") from error
    paths = {number: Path(path) for number, path in easy_vqa.get_train_image_paths().items()}
    rows = list(zip(*easy_vqa.get_train_questions(), strict=True))

    def read(index: int) -> Example:
        question, answer, image = rows[index]
        # There are no characters; the positions of the shapes are unknown.
        return Example.of_question(paths[image], question, answer, None, "easy_vqa")

    return ListSource(read, len(rows), seed)

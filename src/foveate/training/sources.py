"""Opens the data of a recipe."""

from __future__ import annotations

from functools import cache

from foveate.training.dataset import read_conversations
from foveate.training.examples import Example
from foveate.training.recipe import Data
from foveate.training.streams import ListSource, RenderedSource, Source


def open_source(data: Data, unit: int, seed: int) -> Source:
    """The source of examples that `data` describes, checked.

    Args:
        data: One entry of a stage's `data`.
        unit: Pixels on the side of a final token; sizes of rendered images follow it.
        seed: Seed of the order of finite data.

    Raises:
        FoveateError: files have problems (all are named), a rendered task does not exist, or a package is missing.
    """
    if data.rendered is not None:
        return RenderedSource(data.rendered, unit)
    if data.files is not None:
        examples = read_conversations(data.files.path, data.files.images)
        return ListSource(examples.__getitem__, len(examples), seed)
    return ListSource(easy_vqa_example, len(_easy_vqa()), seed)


@cache
def _easy_vqa() -> list:
    from foveate.training.data import easy_vqa

    return easy_vqa("train")


def easy_vqa_example(index: int) -> Example:
    """Question number `index` of the training split of easy-VQA; its characters are not known, there are none."""
    sample = _easy_vqa()[index]
    return Example.of_question(sample.image, sample.question, sample.answer, [], sample.task)

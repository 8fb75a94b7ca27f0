"""The public easy-VQA questions, from the installed package `easy-vqa`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from PIL import Image

from foveate.core.errors import FoveateError


def easy_vqa(split: str = "train", *, upscale: int = 1) -> Iterator[tuple[Image.Image, str, str]]:
    """Every question of easy-VQA as (RGB image, question, answer), in the order of the package.

    Args:
        split: "train" (38,575 questions) or "test" (9,673).
        upscale: whole factor; the images are 64 x 64 pixels, with 3 they are 192 x 192 (bicubic).

    Raises FoveateError with what to install when the package is missing. Images are kept in memory once opened
    (about 12 kB each times the square of `upscale`) and shared by the questions about them: do not draw on them.
    """
    if split not in ("train", "test"):
        raise FoveateError(f'easy-VQA has the splits "train" and "test", not {split!r}.')
    if upscale < 1:
        raise FoveateError(f"upscale must be 1 or more, got {upscale}.")
    try:
        import easy_vqa as package
    except ImportError as error:
        raise FoveateError("easy-VQA needs a package; install it with `pip install easy-vqa`.") from error
    if split == "train":
        questions, paths = package.get_train_questions(), package.get_train_image_paths()
    else:
        questions, paths = package.get_test_questions(), package.get_test_image_paths()

    @cache
    def opened(number: int) -> Image.Image:
        with Image.open(paths[number]) as image:
            rgb = image.convert("RGB")
        return (
            rgb if upscale == 1 else rgb.resize((rgb.width * upscale, rgb.height * upscale), Image.Resampling.BICUBIC)
        )

    for question, answer, number in zip(*questions, strict=True):
        yield opened(number), question, answer

"""Images and clips that rows in LLaVA's format name, and whether they can be read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.clips import check_clip
from foveate.core.errors import FoveateError
from foveate.images import FORMATS, MAX_PIXELS

#: Fields of a row that name files, by what these hold.
FIELDS = {"image": ("image", "images"), "video": ("video", "videos")}


@dataclass(frozen=True)
class RowFiles:
    """The files that rows name: where they are, and whether they can be read.

    Args:
        folders: Of the paths of images and of clips.
        no_clips: Why rows with a video are refused; None: they are read.
    """

    folders: Mapping[str, Path]
    no_clips: str | None
    _problems: dict[tuple[str, Path], str | None] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of files that a row can have."""
        return ("image", "video") if self.no_clips is None else ("image",)

    def paths(self, entry: Mapping[str, Any], kind: str) -> list[Path]:
        """The files that an entry names."""
        named = next((entry[name] for name in FIELDS[kind] if not is_empty(entry.get(name))), [])
        return [self.folders[kind] / name for name in ([named] if isinstance(named, str) else named)]

    def problem(self, kind: str, path: Path) -> str | None:
        """Why a file cannot be used; looked up once."""
        if (kind, path) not in self._problems:
            self._problems[kind, path] = _image_problem(path) if kind == "image" else _clip_problem(path)
        return self._problems[kind, path]


def is_empty(value: Any) -> bool:
    """Whether a field holds nothing."""
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _image_problem(path: Path) -> str | None:
    """Why an image cannot be used, from its header and checksums, without decoding all of it."""
    try:
        if not path.is_file():
            return f"the image {path} does not exist"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large sizes, which are an error here
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    return f"the image {path} has more than {MAX_PIXELS / 1e6:.3g} megapixels"
                image.verify()
    except Exception as error:  # Pillow's readers raise any error for a broken file
        return f"the image {str(path)[:200]} cannot be read: {str(error)[:200]}"
    return None


def _clip_problem(path: Path) -> str | None:
    """Why a clip cannot be used; its first frame is decoded."""
    try:
        check_clip(path)
    except FoveateError as error:
        return str(error).rstrip(".")
    return None

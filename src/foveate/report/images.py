"""Images that show which tokens every plan keeps of the same six images; drawn once and cached with the report."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.benchmark.results import read_results
from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

#: The images: task of the generator, number of the page in the held-out split, size in pixels, what they show.
#: `benchmarks/examples.py` chooses the first of 100 pages that the embedded model reads when no plan is followed.
IMAGES: tuple[tuple[str, int, tuple[int, int], str], ...] = (
    ("read_word", 1, (448, 288), "a word"),
    ("receipt_total", 0, (288, 448), "a receipt"),
    ("table_cell", 0, (448, 320), "a table"),
    ("bar_chart", 0, (448, 352), "a chart"),
    ("sign", 0, (416, 320), "a sign"),
    ("count_shapes", 1, (448, 352), "shapes"),
)
#: Difficulty, and least height of capitals in pixels.
DIFFICULTY, LEAST = 0.2, 12
EMBEDDED = "embedded"
#: Longer side of an image in pixels; maximum number of tokens of an answer.
SIDE, ANSWER = 448, 16
#: Budget of plans that need one.
BUDGET = "25%"
_FORM = 4  # version of the files; changing it redraws all images
_OURS = re.compile(r"[a-z0-9+-]+-[0-9a-f]{10}(-\d)?\.(webp|json)")


@dataclass(frozen=True)
class Picture:
    """One image under one plan.

    Args:
        file: File name.
        size: Its width and height in pixels.
        shows: What the image shows.
        question: That was asked about it.
        expected: The right answer.
        answer: Answer of the model.
        tokens_in: Tokens of the image.
        tokens_kept: That the language model read.
        last: That its last layers still had, where tokens leave inside it.
        merged: Tokens that went into others.
        dropped: Tokens that were removed.
    """

    file: str
    size: tuple[int, int]
    shows: str
    question: str
    expected: str
    answer: str
    tokens_in: int
    tokens_kept: int
    last: int | None = None
    merged: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class Album:
    """The images of one plan.

    Args:
        plan: As text; "" for the images themselves.
        model: The model that was used; of several the first that can follow the plan.
        pictures: Six, or none.
        reason: Why there are none.
    """

    plan: str
    model: str = ""
    pictures: tuple[Picture, ...] = ()
    reason: str = ""


class Gallery:
    """Cache of albums, which draws missing ones.

    Args:
        folder: Folder of the images.
        models: Folders, Hub ids or "embedded"; the embedded model by default. Each plan is shown on the first
            model that can follow it.
        again: Draw everything anew.
        report: Called with a line about every plan that is drawn.
    """

    def __init__(
        self, folder: Path, models: Sequence[str] = (), *, again: bool = False,
        report: Callable[[str], object] = lambda line: None,
    ) -> None:  # fmt: skip
        self.folder, self.again, self.report = folder, again, report
        # The embedded model is asked for by its name, or by none.
        self.models = tuple(None if name == "embedded" else name for name in models) or (None,)
        self.drawn = self.found = 0
        self._used: set[str] = set()
        self._loaded: dict[str | None, Any] = {}

    def album(self, plan: str) -> Album:
        """Return the album of a plan; "" stands for the original images.

        Raises:
            FoveateError: a model cannot be loaded.
        """
        albums = []
        for model in self.models:
            albums.append(self._album(plan, model))
            if albums[-1].pictures:
                return albums[-1]
        if len(albums) == 1:
            return albums[0]
        return Album(plan, albums[0].model, reason=" ".join(f"{album.model}: {album.reason}" for album in albums))

    def _album(self, plan: str, model: str | None) -> Album:
        stem = self._stem(plan, model)
        described = self.folder / f"{stem}.json"
        album = None if self.again else _stored(described)
        if album is None:
            self.report(f"images of {plan or 'the images'} on {model or EMBEDDED}")
            album = self._draw(plan, model, stem)
            write(described, json.dumps(asdict(album), indent=1, ensure_ascii=False).encode() + b"\n")
            self.drawn += 1
        else:
            self.found += 1
        self._used |= {described.name, *(picture.file for picture in album.pictures)}
        return album

    def sweep(self) -> None:
        """Remove images of earlier reports that this one does not show."""
        for path in self.folder.glob("*-*.*"):
            if _OURS.fullmatch(path.name) and path.name not in self._used:
                path.unlink()

    def _stem(self, plan: str, model: str | None) -> str:
        from foveate import __version__
        from foveate.report.charts import slug

        key = [_FORM, __version__, model, plan, IMAGES, DIFFICULTY, LEAST, SIDE, ANSWER]
        number = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:10]
        return f"{slug(re.split(r'[:(@]', plan)[0]) or 'image'}-{number}"

    def _draw(self, plan: str, model: str | None, stem: str) -> Album:
        from foveate.answering import ask
        from foveate.loading import load
        from foveate.visualization.selection import draw_tokens, joined

        if model not in self._loaded:
            self._loaded[model] = load(model)
        self.folder.mkdir(parents=True, exist_ok=True)
        pictures = []
        for number, (sample, (*_, shows)) in enumerate(zip(_samples(), IMAGES, strict=True), 1):
            try:
                answer = ask(sample.image, sample.question, self._loaded[model], plan or None, max_new_tokens=ANSWER)
            except FoveateError as error:
                return Album(plan, model or EMBEDDED, reason=str(error))
            counts: dict[str, int] = {"tokens_in": answer.tokens.read, "tokens_kept": answer.tokens.read}
            image = sample.image
            if plan and answer.selection:
                [document, *_] = joined(answer.selection)
                image = draw_tokens(document, image, (SIDE, SIDE))
                counts = {name: document[name] for name in ("tokens_in", "tokens_kept")}
                merged = sum(len(group["tokens"]) for group in document["merged"])
                counts |= {"merged": merged, "dropped": len(document["dropped"])}
                if document["layers"]:
                    counts["last"] = document["layers"][-1]["tokens_kept"]
            file = f"{stem}-{number}.webp"
            write(self.folder / file, _webp(image))
            texts = (sample.question, sample.answer, answer.text)
            pictures.append(Picture(file, image.size, shows, *texts, **counts))
        return Album(plan, model or EMBEDDED, tuple(pictures))


def plan_of(method: str, entry: Any) -> str:
    """Return the plan shown for a method."""
    return method if entry.budget == "none" else f"{method}:{BUDGET}"


def write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_write(path) as partial:
        partial.write_bytes(content)


@cache
def page(task: str, number: int, size: tuple[int, int]) -> Any:
    """Render a page of the held-out split as one of the images."""
    from foveate.synthetic import render

    return render(task, number, split="heldout", size=size, difficulty=DIFFICULTY, least=LEAST)


def _samples() -> tuple[Any, ...]:
    return tuple(page(task, number, size) for task, number, size, _ in IMAGES)


def _webp(image: Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "WEBP", quality=82, method=6)
    return written.getvalue()


def _stored(path: Path) -> Album | None:
    """Return the album that a file describes, if all its images exist."""
    try:
        document: Mapping[str, Any] = read_results(path)
        pictures = [Picture(**entry | {"size": tuple(entry["size"])}) for entry in document["pictures"]]
        album = Album(document["plan"], document["model"], tuple(pictures), document["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    there = all(_OURS.fullmatch(entry.file) and (path.parent / entry.file).is_file() for entry in pictures)
    return album if there else None

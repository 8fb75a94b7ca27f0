"""Gives every trap to the library and prints, as JSON, what each ended in; run by `test_fuzz` in a process of its own.

The process may take so much memory and computing time and no more: a trap that is not refused early ends it.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

import foveate
from foveate.batch import answer_questions, read_questions
from foveate.core.errors import FoveateError
from foveate.core.plan import parse_plan
from foveate.images import open_image
from foveate.training.dataset import read_conversations
from foveate.training.recipe_file import read_recipe
from tests.fuzz.traps import bad_data, bad_plans, bad_recipes
from tests.serving.hostile import bad_images, png

#: Memory beyond what stands when the first trap comes, in bytes, and seconds of computing for all of them.
SPARE, SECONDS = 2**30, 240


def surroundings(folder: Path) -> None:
    """The files that traps name."""
    (folder / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "bomb.png").write_bytes(png(100_000, 100_000))
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "pickle.png").write_bytes(b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.")
    (folder / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    os.mkfifo(folder / "pipe.png")


def traps(folder: Path) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(kind, name, what to do) of each."""
    model, processor = foveate.load(plan=None)

    def written(name: str, content: str | bytes) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    def batch(path: Path) -> None:
        (row,) = answer_questions(model, processor, read_questions(path), max_new_tokens=1)
        if "error" in row:  # how a question that cannot be answered ends
            raise FoveateError(row["error"])

    for name, content in bad_images():
        yield "image", name, lambda content=content: open_image(content)
        yield "image file", name, lambda content=content: open_image(written("trap.png", content))
        yield "image object", name, lambda content=content: open_image(io.BytesIO(content))
    yield "image", "a PIL image of no pixels", lambda: open_image(Image.new("RGB", (0, 4)))
    yield "image", "a way out", lambda: open_image("../" * 30 + "etc/passwd")
    for name, text in bad_plans():
        yield "plan", name, lambda text=text: parse_plan(text)
    for name, text in bad_recipes():
        yield "recipe", name, lambda text=text: read_recipe(written("trap.yaml", text))
    for name, text in bad_data():
        kind = "questions" if '"question"' in text else "conversations"
        read = batch if kind == "questions" else read_conversations
        yield kind, name, lambda text=text, read=read: read(written("trap.jsonl", text))


def main() -> None:
    """See the module."""
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        surroundings(folder)
        steps = list(traps(folder))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + SPARE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        spent = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(spent.ru_utime + spent.ru_stime) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        for kind, name, step in steps:
            try:
                found = f"no error: {step()!r:.100}"
            except FoveateError as error:
                found = str(error)
            except BaseException as error:
                found = f"{type(error).__name__}: {error}"[:300]
                print(json.dumps({"kind": kind, "name": name, "fault": found}), flush=True)
                continue
            fault = found.startswith("no error")
            print(json.dumps({"kind": kind, "name": name, "fault" if fault else "error": found}), flush=True)


if __name__ == "__main__":
    sys.exit(main())

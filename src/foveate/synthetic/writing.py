"""Rendered questions as files, in the format that LLaVA is trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write, write_json, write_text
from foveate.core.text_files import read_json, read_text
from foveate.synthetic.fonts import families_of
from foveate.synthetic.rendering import TASKS, check, render

_SETTINGS = "settings.json"


def write_split(
    folder: str | Path,
    split: str,
    count_per_task: int,
    seed: int = 0,
    *,
    tasks: Sequence[str] | None = None,
    difficulty: float = 1.0,
    sides: tuple[int, int] | None = None,
) -> Path:
    """Render a split into a folder and return the path of its JSON lines file, `folder/<split>.jsonl`.

    Every line has `id`, `image` (a PNG, relative to `folder`), `conversations` (one question, one answer) and `task`.
    Interrupted at any moment, the same call goes on where it stopped: images and lists appear under their names only
    when they are whole, tasks that are finished are not drawn again, and the result is what one run would have left.

    Args:
        folder: made if missing.
        split: "train" or "heldout".
        count_per_task: questions of each task, seeds `seed` to `seed + count_per_task - 1`.
        seed: the first seed.
        tasks: names of `TASKS`; None: all.
        difficulty: see `render`.
        sides: see `render`.

    Raises:
        FoveateError: bad arguments, or the folder holds a split that was written with other settings or other fonts.
    """
    folder = Path(folder)
    names = tuple(TASKS if tasks is None else dict.fromkeys(tasks))
    if count_per_task < 1:
        raise FoveateError(f"count_per_task must be 1 or more, got {count_per_task}.")
    for name in names:
        check(name, split, None, sides, difficulty)
    settings = {
        "split": split,
        "count_per_task": count_per_task,
        "seed": seed,
        "tasks": list(names),
        "difficulty": difficulty,
        "sides": None if sides is None else list(sides),
        "fonts": sorted({font.family for family in families_of(split) for font in family}),
    }
    settings_file = folder / split / _SETTINGS
    _same_settings(settings_file, settings)
    lists = []
    for name in names:
        part = folder / split / f"{name}.jsonl"
        lists.append(part)
        if part.exists():
            continue
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(seed, seed + count_per_task):
            sample = render(name, number, split, sides=sides, difficulty=difficulty)
            image = folder / split / name / f"{number}.png"
            with atomic_write(image) as partial:
                sample.image.save(partial, "PNG")
            line = {
                "id": f"{split}-{name}-{number}",
                "image": image.relative_to(folder).as_posix(),
                "conversations": [
                    {"from": "human", "value": f"<image>\n{sample.question}"},
                    {"from": "gpt", "value": sample.answer},
                ],
                "task": name,
            }
            lines.append(json.dumps(line))
        write_text(part, "\n".join(lines) + "\n")
    target = folder / f"{split}.jsonl"
    write_text(target, "".join(read_text(part) for part in lists))
    return target


def _same_settings(file: Path, settings: dict[str, Any]) -> None:
    """Note the settings, or hold them against those noted before."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, settings, indent=1)
        return
    before = read_json(file)
    different = [key for key in settings if before.get(key) != settings[key]]
    if different:
        raise FoveateError(
            f"{file.parent} was begun with other settings ({', '.join(different)}); choose another folder or delete it."
        )

"""What a checkpoint was trained with, so that a run that goes on with something else says so."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foveate.core.text_files import read_json
from foveate.training.recipe import Recipe, Stage

#: Name of the file in a checkpoint.
FILE = "recipe.json"
#: Fields of a stage that say where it is and how long it lasts, not what it learns.
_FREE = ("name", "steps")
#: Fields of models, which may be folders.
_MODELS = ("pretrained", "language_model", "vision_tower", "tokenizer")


def provenance(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """What the weights of a stage follow from besides its steps, in plain values, by key of the recipe.

    Files of conversations count by their content, wherever they are.
    """
    values: dict[str, Any] = {"seed": recipe.seed, "cells": recipe.cells, "model": _located(asdict(recipe.model))}
    values |= {name: value for name, value in asdict(stage).items() if name not in _FREE}
    values["teacher"] = _place(stage.teacher)
    for data in values["data"]:
        if data["files"] is not None:
            data["files"] = {"content": _digest(Path(data["files"]["path"])), "frames": data["files"]["frames"]}
    return json.loads(json.dumps(values))  # as a file has them: lists in place of tuples


def differences(checkpoint: Path, current: dict[str, Any]) -> dict[str, Any]:
    """Earlier values of what has changed since a checkpoint, by key of the recipe; none for one of an older version."""
    try:
        before = read_json(checkpoint / FILE)
    except (OSError, ValueError):
        return {}
    return {key: before[key] for key in sorted(current) if key in before and before[key] != current[key]}


def _located(model: dict[str, Any]) -> dict[str, Any]:
    """The fields of a model and, inside of it, of a new one, with the places of folders."""
    return {
        name: _located(value) if name == "new" and value is not None else _place(value) if name in _MODELS else value
        for name, value in model.items()
    }


def _place(name: str | None) -> str | None:
    """The place of a folder, however a recipe writes it; a name as it is."""
    return os.path.realpath(name) if name is not None and Path(name).is_dir() else name


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

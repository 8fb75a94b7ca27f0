"""Kinds of drafts by name, and loading of saved drafts."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json
from foveate.methods.decoding.draft import CONFIG, WEIGHTS, Draft
from foveate.methods.decoding.flash import Flash
from foveate.methods.decoding.specvlm import SpecVLM


def draft_kinds() -> dict[str, type[Draft]]:
    """The kinds of drafts by name."""
    return {kind.kind: kind for kind in (SpecVLM, Flash)}


def load_draft(folder: str | os.PathLike[str]) -> Draft:
    """A draft from the folder that `Draft.save` wrote, in evaluation mode on the CPU.

    Raises:
        FoveateError: there is none, or its files do not fit together.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise FoveateError(f"{folder} holds no draft: {CONFIG} and {WEIGHTS} are what `foveate train-method` writes.")
    try:
        document = read_json(folder / CONFIG)
        kind = draft_kinds()[document.pop("kind")]
        draft = kind.new(kind.config_class(**document))
        draft.load_state_dict(load_file(folder / WEIGHTS))
    except FoveateError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).split("\n")[0]
        raise FoveateError(f"the draft in {folder} cannot be read ({type(error).__name__}: {reason}).") from error
    return draft.eval()

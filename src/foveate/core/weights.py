"""Safe reading of files from others: tensors and data, never code.

A pickle can run any program while it is read, and so can the Python files that a folder of a model may hold. Weights
are read from safetensors only; the states that a training run leaves for itself are read as torch's plain tensors
(`weights_only`), which refuses everything else; and no code of a folder is run.
"""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json

#: Given to every `from_pretrained` of a name that a user typed.
DATA_ONLY: dict[str, Any] = {"trust_remote_code": False}
#: And to those that read weights.
SAFE: dict[str, Any] = {**DATA_ONLY, "use_safetensors": True}
#: Keywords of `from_pretrained` that say where files come from.
WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

_QUIET: dict[str, Any] = {
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}
_CONVERT = "load it with transformers where you trust it, and save_pretrained writes safetensors"


def file_of(location: str | PathLike[str], file: str, **where: Any) -> str | None:
    """A file of a folder or Hub id, as a path of this machine; None where there is none, or it cannot be reached.

    `where` is what `from_pretrained` takes to find and get files, see `WHERE`.
    """
    return cached_file(location, file, **where, **_QUIET)


def check_weights(location: str, config: Any = None, **where: Any) -> None:
    """Refuse a model whose weights transformers would read from a pickle though safetensors were asked for.

    Args:
        location: Folder or Hub id.
        config: Of the model, where it is known.
        where: As `file_of` takes it: what is checked must be what is loaded.

    Raises:
        FoveateError: its adapter, its distributed checkpoint, the file that its configuration names or a shard of its
            index is no safetensors file.
    """
    if Path(location).is_dir() and ((Path(location) / ".metadata").exists() or any(Path(location).glob("*.distcp"))):
        raise FoveateError(f"{location!r} holds a distributed checkpoint, which is pickled: {_CONVERT}.")
    has_adapter = file_of(location, "adapter_config.json", **where)
    if has_adapter and not file_of(location, "adapter_model.safetensors", **where):
        raise FoveateError(f"the adapter in {location!r} is not in the safetensors format: {_CONVERT}.")
    named = getattr(config, "transformers_weights", None)
    names = [] if named is None else [named]
    index = file_of(location, "model.safetensors.index.json", **where)
    if index is not None:
        try:
            names += read_json(index)["weight_map"].values()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FoveateError(f"the list of weights {index} cannot be read: {type(error).__name__}.") from error
    for name in names:
        if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
            raise FoveateError(
                f"{location!r} names weights that are no safetensors file ({str(name)[:80]!r}): {_CONVERT}."
            )
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise FoveateError(f"{location!r} names weights outside its folder ({name[:80]!r}).")


def read_state(path: Path, keys: Iterable[str], device: Any = "cpu") -> dict[str, Any]:
    """The state of a training run that `torch.save` wrote: tensors, numbers, texts, lists and dictionaries.

    Args:
        path: The file.
        keys: What it must hold.
        device: Where its tensors go.

    Raises:
        FoveateError: the file is damaged, or holds anything else.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises its own, pickle's, zipfile's and those of any broken structure
        raise FoveateError(
            f"{path} is no state of a training run that can be read; remove it to begin anew. ({_line(error)})"
        ) from error
    if not isinstance(state, dict) or any(key not in state for key in keys):
        raise FoveateError(f"{path} is the state of no such training run; remove it to begin anew.")
    return state


def _line(error: Exception) -> str:
    return next((line.strip()[:120] for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""`foveate convert-scorer`: extract FocusUI's scorer and marker from a released checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.commands.options import Json
from foveate.console import console, notes, print_json
from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json

EXAMPLES = """
    foveate convert-scorer yyyang/FocusUI-7B focusui
    foveate ask screen.png "Click Save." --plan "pospad(selector=focusui(weights=focusui/focusui.safetensors)):50%"
"""

SCORER, MARKER = "focusui.safetensors", "marker.safetensors"


def convert_scorer(
    source: Annotated[str, typer.Argument(help="Folder or Hub id of a released checkpoint.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="Output folder.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Extract FocusUI's trained scorer and marker embedding from a checkpoint of its authors.

    Only the tensors of the scorer and the marker embedding are read. The scorer fits models with the vision encoder and
    the embeddings of that checkpoint.
    """
    with notes.status("loading foveate"):
        from safetensors.torch import save_file

        from foveate.methods.pre_llm.focusui import released_scorer
    with notes.status(f"reading {source}"):
        scorer = released_scorer(tensors_of(source, "patch_scorer."))
        marker = marker_of(source)
    output.mkdir(parents=True, exist_ok=True)
    scorer.save(output / SCORER)
    written = [SCORER]
    if marker is not None:
        save_file({"marker": marker}, output / MARKER)
        written.append(MARKER)
    document: dict[str, Any] = {"source": source, "output": str(output), "size": scorer.size, "files": written}
    if as_json:
        print_json(document)
    else:
        console.print(f"{output}: {' and '.join(written)}, for embeddings of {scorer.size} dimensions")


def tensors_of(source: str, part: str) -> dict[str, Any]:
    """Read the tensors whose names contain `part`, from one safetensors file or from shards.

    Raises:
        FoveateError: there is no checkpoint, or none in the safetensors format.
    """
    from safetensors import SafetensorError, safe_open

    from foveate.core.weights import file_of

    try:
        index = file_of(source, "model.safetensors.index.json")
        if index is not None:
            shards: dict[str, str] = read_json(index)["weight_map"]
            names = sorted({shard for name, shard in shards.items() if part in name})
        else:
            names = ["model.safetensors"]
        paths = [file_of(source, name) for name in names]
    except (OSError, ValueError, KeyError) as error:
        raise FoveateError(f"cannot read {source!r}: {error}") from error
    if None in paths:
        raise FoveateError(f"{source!r} has no checkpoint in the safetensors format.")
    tensors = {}
    for path in paths:
        try:
            with safe_open(str(path), "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys() if part in name}  # noqa: SIM118
        except SafetensorError as error:
            raise FoveateError(f"{path} is not a safetensors file: {error}") from error
    return tensors


def marker_of(source: str) -> Any:
    """Return the embedding (D,) of the drop marker, or None if the configuration names no such token."""
    from foveate.core.weights import file_of

    config = file_of(source, "config.json")
    fields = {} if config is None else read_json(config)
    token = fields.get("image_drop_end_token_id")
    if not isinstance(token, int):
        return None
    tables = tensors_of(source, "embed_tokens.weight")
    table = next((value for name, value in tables.items() if "visual" not in name), None)
    return None if table is None or token >= len(table) else table[token].float().contiguous()

"""`foveate info`: describe a model and count its tokens for images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foveate.commands.options import Json
from foveate.console import console, print_json
from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json

EXAMPLES = """
    foveate info
    foveate info path/to/folder --json
    foveate info owner/name-on-the-hub
"""

#: Sizes (width, height) in pixels that tokens are counted for: an icon, a photo, screens, and A4 at 200 dpi.
IMAGE_SIZES = ((224, 224), (480, 640), (768, 768), (1024, 1024), (1920, 1080), (1654, 2339))

#: What a folder may say about how its model was made and how good it is.
DOCUMENTS = ("training", "evaluation")


def info(
    model: Annotated[
        str | None,
        typer.Argument(help="Folder or Hub id of an image-text-to-text model.", show_default="the embedded model"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Describe a model: parameters by part, stages, tokenizer, and visual tokens for images of several sizes.

    Only the configuration is read, so that models on the Hub are described without downloading their weights. Training
    and evaluation are shown if the model's folder has records of them (training.json, evaluation.json), as that of the
    embedded model does.
    """
    document = describe(model)
    if as_json:
        print_json(document)
        return
    for title, content in document.items():
        _print_section(title, content)


def describe(name: str | None = None) -> dict[str, Any]:
    """Return what `foveate info` prints as plain JSON values.

    Raises:
        FoveateError: there is no such model (see `foveate.loading.load`), or a record in its folder is not JSON.
    """
    from foveate.loading import load_skeleton, locate

    net, processor = load_skeleton(name)
    folder = Path(locate(name))
    document: dict[str, Any] = {
        "model": {
            "name": name or "embedded",
            "class": type(net).__name__,
            "type": net.config.model_type,
            "precision": str(net.config.dtype or "").removeprefix("torch.") or None,
            "weights_mb": _megabytes(folder),
        },
        "parameters": _parameters(net),
        "vision": _vision(net),
        "language_model": _language_model(net),
        "tokenizer": _tokenizer(processor),
        "image_tokens": _image_tokens(processor),
    }
    for record in DOCUMENTS:
        if (content := _record(folder / f"{record}.json")) is not None:
            document[record] = content
    return {title: content for title, content in document.items() if content}


def _megabytes(folder: Path) -> float | None:
    files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
    return round(sum(file.stat().st_size for file in files) / 1e6, 2) if files else None


def _parameters(net: Any) -> dict[str, int]:
    """Count parameters by part; tied ones are counted once, with the part that owns them."""
    from foveate.answering.trace import Trace
    from foveate.models.vit_uhd import ViTUHDModel

    trace = Trace(net)
    counts = {}
    if trace.encoder is not None:
        counts["vision"] = _size(trace.encoder)
        if isinstance(trace.encoder, ViTUHDModel):
            inside = (p.numel() for name, p in trace.encoder.named_parameters() if ".merger." in name)
            counts["of_which_stages"] = sum(inside)
    if trace.connector is not None:
        counts["connector"] = _size(trace.connector)
    if trace.language_model is not None:
        counts["language_model"] = _size(trace.language_model)
    total = _size(net)
    if other := total - sum(size for part, size in counts.items() if part != "of_which_stages"):
        counts["output_layer" if "language_model" in counts else "other"] = other
    return counts | {"total": total}


def _size(part: Any) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _vision(net: Any) -> dict[str, Any]:
    config = getattr(net.config, "vision_config", None)
    if config is None:
        return {}
    names = ("model_type", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    described = {name: getattr(config, name, None) for name in names}
    if config.model_type == "vit_uhd":
        described["stages"] = [
            {"method": method, "after_block": index + 1}
            for index, method in zip(config.merger_layer_index, config.stage_methods, strict=True)
        ]
        described["pixels_per_token"] = [config.unit, config.unit]
    return {name: value for name, value in described.items() if value is not None}


def _language_model(net: Any) -> dict[str, Any]:
    config = net.config.get_text_config()
    names = (
        "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
        "max_position_embeddings",
    )  # fmt: skip
    return {name: value for name in names if (value := getattr(config, name, None)) is not None}


def _tokenizer(processor: Any) -> dict[str, Any]:
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return {}
    image_token = getattr(processor, "image_token", None)
    return {
        "class": type(tokenizer).__name__,
        "tokens": len(tokenizer),
        "image_placeholder": str(image_token) if image_token else None,
    }


def _image_tokens(processor: Any) -> list[dict[str, Any]]:
    """Count the tokens of images of several sizes with the processor's own method; empty if it has none."""
    images = getattr(processor, "image_processor", None)
    try:
        counted = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in IMAGE_SIZES])
    except (AttributeError, NotImplementedError):
        return []
    rows = []
    for index, (width, height) in enumerate(IMAGE_SIZES):
        row: dict[str, Any] = {"image": [width, height]}
        if hasattr(images, "target_size"):
            row["resized_to"] = list(images.target_size(width, height))
            row["patches"] = int(counted["num_image_patches"][index])
        rows.append(row | {"tokens": int(counted["num_image_tokens"][index])})
    return rows


def _record(file: Path) -> Any:
    if not file.is_file():
        return None
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise FoveateError(f"{str(file)!r} cannot be read as JSON: {error}.") from None


def _print_section(title: str, content: Any) -> None:
    """Print one part of the description: names and values, and a table for a list or mapping of records."""
    console.print(f"[bold]{title.replace('_', ' ')}[/bold]")
    if _is_records(content):
        _print_table(content)
    elif isinstance(content, dict):
        width = max(len(name) for name in content) + 2
        for name, value in content.items():
            if _is_records(value) and title != "vision":  # its two or three stages are a line
                console.print(f"  {name.replace('_', ' ')}")
                _print_table(value)
            else:
                console.print(f"  {name.replace('_', ' '):{width}}{_shown(value)}", markup=False, soft_wrap=True)
    else:
        console.print(f"  {_shown(content)}", markup=False)
    console.print()


def _is_records(content: Any) -> bool:
    records = content.values() if isinstance(content, dict) else content
    return (
        isinstance(content, (dict, list)) and len(content) > 0 and all(isinstance(record, dict) for record in records)
    )


def _print_table(content: dict[str, dict[str, Any]] | list[dict[str, Any]]) -> None:
    from rich.table import Table

    rows = content if isinstance(content, list) else [{"": name} | record for name, record in content.items()]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")  # indent
    for name in columns:
        first = next(row[name] for row in rows if name in row)
        justify = "right" if isinstance(first, (int, float)) else "left"
        table.add_column(name.replace("_", " "), justify=justify, no_wrap=not name)
    for row in rows:
        table.add_row("", *(_shown(row[name]) if name in row else "" for name in columns))
    console.print(table)


def _shown(value: Any) -> str:
    """Format a value: thousands separated, sizes as width x height, stages in words."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, list):
        if len(value) == 2 and all(isinstance(side, int) for side in value):
            return f"{value[0]} x {value[1]}"
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, dict):
        return " ".join(f"{name.replace('_', ' ')} {_shown(item)}" for name, item in value.items())
    return str(value)

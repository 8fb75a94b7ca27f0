"""`foveate convert`: convert a pretrained vision transformer to ViT-UHD."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from foveate.console import console, notes, print_json
from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from foveate.models.vit_uhd.configuration import ViTUHDConfig

EXAMPLES = """
    foveate convert Qwen/Qwen2.5-VL-3B-Instruct my-vit --patch-size 10 --stages 7,15
    foveate convert google/siglip2-so400m-patch16-naflex my-vit --patch-size 10 --stages 4,18
    foveate convert moonshotai/Kimi-K2.6 my-vit --stages 6 --method early --json
"""

IMAGE_SIDE = 1024
"""Side in pixels of the image whose tokens the summary counts."""


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder or Hub id of a vision encoder, or of a model that has one: MoonViT (Kimi K2.5), "
            "SigLIP2 NaFlex, "
            "Qwen2-VL, Qwen2.5-VL, ViT-UHD.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.", show_default=False)],
    patch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the new patches in pixels; as in the source by default.", show_default=False),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            help="Blocks (counted from 0) after which 2 x 2 tokens are merged, such as 4,18; "
            "as in the source by default.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="Merging method of the stages: content-adaptive, average or early; one, or one per stage."),
    ] = "content-adaptive",
    kernel: Annotated[
        Literal["pseudo-inverse", "adjoint"],
        typer.Option(help="Resizing of the patch kernel; the paper uses pseudo-inverse."),
    ] = "pseudo-inverse",
    mode: Annotated[
        Literal["bilinear", "bicubic"], typer.Option(help="Interpolation of the patch kernel.")
    ] = "bilinear",
    antialias: Annotated[bool, typer.Option(help="Antialias the interpolation.")] = True,
    rope: Annotated[
        Literal["interleaved", "half", "hierarchical"] | None,
        typer.Option(
            help="Layout of rotary embeddings: interleaved, half (the same in another channel order), or "
            "hierarchical (in "
            "units of the finest patch).",
            show_default=False,
        ),
    ] = None,
    final_norm: Annotated[
        bool | None,
        typer.Option(
            "--final-norm/--no-final-norm",
            help="Final norm; for Qwen encoders that of the patch merger. As in the source by default.",
            show_default=False,
        ),
    ] = None,
    per_token_norm: Annotated[
        bool, typer.Option("--per-token-norm", help="Early stages: normalise each token of a window separately.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Convert a pretrained vision transformer to ViT-UHD, with smaller patches and stages that merge tokens.

    Without --patch-size and --stages the result is equivalent to the source. Stages are initialised as average pooling
    (early ones as a copy of the preceding block) and need training. Only the vision encoder of a model is read. The
    folder contains the model and an image processor with the source's normalisation.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FoveateError(f"{output} exists already; name a folder that does not, or remove it first.")
    layers = None if stages is None else _read_stages(stages)
    methods = [name.strip() for name in method.split(",")]

    with notes.status("loading foveate"):
        from transformers.utils.logging import disable_progress_bar

        from foveate.models.llava_uhd.image_processing import LlavaUHDImageProcessor
        from foveate.models.vit_uhd.configuration import ViTUHDConfig
        from foveate.models.vit_uhd.conversion import from_vit
        from foveate.models.vit_uhd.sources import read_source
    disable_progress_bar()  # the status line says enough
    with notes.status(f"reading {source}"):
        tower = read_source(source)
    with notes.status("converting"):
        model = from_vit(
            tower,
            patch_size,
            layers,
            methods[0] if len(methods) == 1 else methods,
            resize_mode=mode,
            resize_antialias=antialias,
            resize_method=kernel,
            rope_layout=rope,
            final_norm=final_norm,
            early_per_token_norm=per_token_norm,
        )
        processor = LlavaUHDImageProcessor(
            patch_size=model.config.patch_size,
            num_stages=model.config.num_stages,
            image_mean=tower.image_mean,
            image_std=tower.image_std,
        )
    with notes.status(f"writing {output}"), _written_whole(output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    before = ViTUHDConfig.from_dict({"merger_layer_index": [], **tower.fields})
    resized = model.config.patch_size != before.patch_size
    document: dict[str, Any] = {
        "family": tower.family,
        "output": str(output),
        "kernel": {"method": kernel, "mode": mode, "antialias": antialias} if resized else None,
        "image_side": IMAGE_SIDE,
        "before": _describe(before, sum(tensor.numel() for tensor in tower.weights.values())),
        "after": _describe(model.config, model.num_parameters()),
    }
    if as_json:
        print_json(document)
    else:
        _show(document)


def _read_stages(text: str) -> list[int]:
    """Parse block numbers from `4,18`; nothing between commas means no stage."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise FoveateError(f"--stages {text!r} is not a list of block numbers such as 4,18.") from error


@contextmanager
def _written_whole(output: Path) -> Generator[Path]:
    """Temporary folder that is renamed to `output` on success and removed on failure."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it private
        folder.rename(output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _describe(config: ViTUHDConfig, parameters: int) -> dict[str, Any]:
    stages = zip(config.merger_layer_index or (), config.stage_methods, strict=True)
    return {
        "patch_size": config.patch_size,
        "stages": [{"after_block": block, "method": method} for block, method in stages],
        "unit": config.unit,
        "parameters": parameters,
        "tokens": (IMAGE_SIDE // config.unit) ** 2,
    }


def _show(document: dict[str, Any]) -> None:
    before, after = document["before"], document["after"]
    table = Table("", document["family"], "ViT-UHD", title=f"{document['output']} written", title_justify="left")
    rows = [
        ("patch (px)", "patch_size", str),
        ("stages", "stages", _list_stages),
        ("pixels on the side of a token", "unit", str),
        ("parameters", "parameters", lambda count: f"{count:,}"),
        (f"tokens of a {IMAGE_SIDE} x {IMAGE_SIDE} image", "tokens", lambda count: f"{count:,}"),
    ]
    for label, key, text in rows:
        table.add_row(label, text(before[key]), text(after[key]))
    console.print(table)
    if document["kernel"]:
        filter_name = f"{'antialiased ' if document['kernel']['antialias'] else ''}{document['kernel']['mode']}"
        console.print(f"patch kernel resized by {document['kernel']['method']}, {filter_name}")


def _list_stages(stages: list[dict[str, Any]]) -> str:
    return "\n".join(f"after block {stage['after_block']}: {stage['method']}" for stage in stages) or "none"

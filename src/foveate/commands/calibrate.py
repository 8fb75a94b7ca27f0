"""`foveate calibrate`: thresholds of dynamic merging (DyMU) for a vision encoder, found from images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.commands.options import Json
from foveate.console import console, notes, print_json
from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor, nn

EXAMPLES = """
    foveate calibrate llava-hf/llava-1.5-7b-hf my-images/ --count 192 --output thresholds.json
    foveate calibrate google/siglip-so400m-patch14-384 my-images/ --count 192 --output thresholds.json --json
    foveate ask photo.jpg "What is this?" --model llava-hf/llava-1.5-7b-hf --plan "dymu(thresholds=thresholds.json)"
"""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp")


def calibrate(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder or Hub id of a CLIP or SigLIP vision encoder, or of a model that has one, such as LLaVA.",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[Path], typer.Argument(help="Images, and folders of images, like those it will read.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="File to write (.json).", show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="Tokens of an image that shall stay, on average.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Images that are read together.")] = 64,
    output_layer: Annotated[
        int | None,
        typer.Option(
            help="Block whose output is read, -1 for the last; by default the one that the model reads.",
            show_default=False,
        ),
    ] = None,
    inflect: Annotated[
        float, typer.Option(min=-1, max=1, help="Merge more in the first blocks (-1), the last ones (1), or alike (0).")
    ] = 0.0,
    device: Annotated[str, typer.Option(help="Where to run, such as cuda:0.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Find how similar tokens must be to merge, so that a given number of them stays on average.

    The encoder reads the images in batches; in every block the best pairs of a whole batch merge, whichever images
    they are in, and the score at which they stop becomes the threshold. With the thresholds, simple images keep fewer
    tokens than rich ones. The authors of DyMU read up to 256,000 images in batches of 64 to 128.
    """
    if not output.parent.is_dir():
        raise FoveateError(f"there is no folder {output.parent} to write {output.name} into.")
    files = _files(images)
    with notes.status("loading foveate"):
        import torch
        from transformers import AutoImageProcessor, AutoModel

        from foveate.core.weights import DATA_ONLY, SAFE, check_weights
        from foveate.families.llava import feature_layer
        from foveate.loading import locate
        from foveate.runtime.vision_merging import blocks_of
        from foveate.runtime.vision_merging import calibrate as find
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FoveateError(f"cannot use device {device!r} here: {reason}") from None
    with notes.status(f"reading {model}"):
        folder = locate(model)
        check_weights(folder)
        whole: Any = AutoModel.from_pretrained(folder, **SAFE).eval().to(place)
        processor = AutoImageProcessor.from_pretrained(folder, **DATA_ONLY)
    tower: nn.Module = getattr(whole, "vision_tower", None) or getattr(whole, "vision_model", whole)
    blocks = len(blocks_of(tower))
    if output_layer is None:
        reads = hasattr(whole, "vision_tower") and hasattr(whole.config, "vision_feature_layer")
        output_layer = feature_layer(whole, blocks) if reads else -1
    parameter = next(tower.parameters())

    with notes.status("calibrating") as status:

        def batches() -> Iterator[Tensor]:
            for start in range(0, len(files), batch_size):
                status.update(f"calibrating: {start} of {len(files)} images")
                yield _pixels(processor, files[start : start + batch_size]).to(parameter.device, parameter.dtype)

        found = find(tower, batches(), count, output_layer=output_layer, inflect=inflect)
    found.save(output)
    if as_json:
        print_json({"output": str(output), "encoder": found.encoder, "patches": found.patches, "count": count,
                    "images": len(files), "thresholds": list(found.values)})  # fmt: skip
    else:
        console.print(
            f"{output} written: {len(found.values)} blocks of {found.encoder}, {found.patches} tokens to {count} "
            f"on average over {len(files)} images."
        )


def _files(paths: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.exists():
            files.append(path)
        else:
            raise FoveateError(f"there is no image or folder {path}.")
    if not files:
        raise FoveateError(f"{', '.join(map(str, paths))}: no images there ({', '.join(SUFFIXES)}).")
    return files


def _pixels(processor: Any, files: list[Path]) -> Tensor:
    """Pixel values (B, 3, height, width); of tiled images every crop."""
    import torch

    from foveate.images import open_image

    # One at a time: where images have different numbers of crops, a batch of them would be padded with empty ones.
    pixels = [processor(images=[open_image(file)], return_tensors="pt")["pixel_values"] for file in files]
    return torch.cat([crops.flatten(0, -4) for crops in pixels])

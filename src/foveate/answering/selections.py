"""Token selections of a plan as plain values that can be saved and drawn."""

from __future__ import annotations

import inspect
import math
from typing import Any

from foveate.models.llava import FoveateLlavaProcessor
from foveate.models.llava.layouts import View
from foveate.runtime.report import ImageReport


def selected(
    report: ImageReport, encoded_box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
) -> dict[str, Any]:
    """Return the token selection of one image as plain JSON values.

    Args:
        report: of the handle of the plan.
        encoded_box: (left, top, right, bottom) of what the encoder saw, as fractions of the image; above 1 for padding.

    Returns:
        The report's own values; ``seen``; for every crop its ``kind``, ``grid``, ``box`` (fractions of the processed
        image), ``index`` (place of each cell of the grid among the tokens, -1 in padding), ``tokens`` and how many of
        them the language model reads (``kept``: merged ones count at their position); and, as places among the image's
        tokens, ``kept`` (those that are not merged), ``merged`` (one mapping for each group: ``at``, its position, and
        ``tokens``, its members), ``dropped`` and ``separators``. ``shares`` has every token's share in what it went
        into, or is None where the members of a group have equal ones. ``measured`` has what methods asked of each
        token: its ``kind``, the ``layer`` and ``values``. Every one of ``layers`` says which tokens it kept.
    """
    document: dict[str, Any] = report.as_json() | {"seen": list(encoded_box)}
    layout, places = report.layout, report.selection.indices.tolist()
    for crop, described in zip(layout.crops, document["crops"], strict=True):
        described |= {"box": list(crop.box), "index": crop.index.tolist()}
    groups: list[list[int]] = [[] for _ in places]
    dropped = []
    for token, row in enumerate(report.selection.members(layout.count).tolist()):
        (dropped if row < 0 else groups[row]).append(token)
    rows = list(zip(places, groups, strict=True))
    separators = layout.separators
    layers = [layer.as_json() | {"kept": layer.indices.tolist()} for layer in report.layers]
    return document | {
        "layers": layers,
        "kept": [place for place, group in rows if group == [place]],
        "merged": [{"at": place, "tokens": group} for place, group in rows if group != [place]],
        "dropped": dropped,
        "separators": [] if separators is None else separators.nonzero().flatten().tolist(),
        "shares": None if report.selection.weights is None else report.selection.weights.tolist(),
        "measured": [
            {"kind": need.kind, "layer": need.layer, "values": values.tolist()}
            for need, values in report.measured.items()
        ],
    }


def placed(documents: list[dict[str, Any]], thumbnail_place: str | None, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Assign positions in the image (width, height) to tiles that have a budget of their own.

    The grid of tiles is not part of the model's inputs. Processors divide an image so that its tiles are
    as nearly square as their number allows, which is how the division is found again.
    """
    if thumbnail_place is None or len(documents) < 2:
        return documents
    tiles = documents[1:] if thumbnail_place == "first" else documents[:-1]
    count, ratio = len(tiles), size[0] / size[1]
    columns = min(
        (n for n in range(1, count + 1) if count % n == 0), key=lambda n: abs(math.log(n * n / (count * ratio)))
    )
    rows = count // columns
    for document in documents:
        document["crops"][0]["kind"] = "thumbnail"
    for number, document in enumerate(tiles):
        row, column = divmod(number, columns)
        box = [column / columns, row / rows, (column + 1) / columns, (row + 1) / rows]
        document["crops"][0] |= {"kind": "tile", "box": box}
    return documents


def views_of(processor: Any, sizes: list[tuple[int, int]]) -> list[View] | None:
    """Return the views of images (width, height) in the order of the prompt, where the processor has a layout."""
    if not isinstance(processor, FoveateLlavaProcessor) or processor.layout is None:
        return None
    return [view for width, height in sizes for view in processor.views_of(height, width)]


def placed_view(document: dict[str, Any], view: View) -> dict[str, Any]:
    """Assign the position of a view in its image."""
    document["crops"][0] |= {"kind": view.kind, "box": list(view.box)}
    return document


def seen_of(processor: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the box of the image (width, height) that the processor encodes, as fractions; beyond 0..1 is padding."""
    images: Any = getattr(processor, "image_processor", None)
    padding = getattr(inspect.getmodule(type(images)), "navit_resize", None)  # Kimi's, on the right and at the bottom
    if padding is not None and images.do_resize:
        limits = (images.patch_size, images.merge_size, images.max_patches, images.size.max_height)
        (height, width), (padded_height, padded_width) = padding(size[1], size[0], *limits)
        return 0.0, 0.0, padded_width / width, padded_height / height
    shortest = getattr(getattr(images, "size", None), "shortest_edge", None)
    crop = getattr(images, "crop_size", None)
    if not (getattr(images, "do_center_crop", False) and shortest and crop) or getattr(images, "do_pad", False):
        return 0.0, 0.0, 1.0, 1.0
    scale = shortest / min(size)
    width, height = (
        min(1.0, side / (scale * image_side))
        for side, image_side in zip((crop["width"], crop["height"]), size, strict=True)
    )
    return (1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2

"""Layouts of images as several views, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from foveate.core.errors import FoveateError
from foveate.models.llava.layouts.falcon import FalconLayout
from foveate.models.llava.layouts.layout import View, ViewLayout
from foveate.models.llava.layouts.llava_mini import LlavaMiniLayout
from foveate.models.llava.layouts.llava_uhd import LlavaUHDLayout
from foveate.models.llava.layouts.oryx import OryxLayout
from foveate.models.llava.layouts.pad import PadLayout
from foveate.models.llava.layouts.tokenpacker_hd import TokenPackerHDLayout

__all__ = [
    "LAYOUTS",
    "FalconLayout",
    "LlavaMiniLayout",
    "LlavaUHDLayout",
    "OryxLayout",
    "PadLayout",
    "TokenPackerHDLayout",
    "View",
    "ViewLayout",
    "fields_of_layout",
    "layout_of_fields",
    "released_layout",
]

#: In the order in which a released configuration is asked for them: padding comes last.
LAYOUTS: dict[str, type[ViewLayout]] = {
    layout.name: layout
    for layout in (FalconLayout, LlavaMiniLayout, LlavaUHDLayout, OryxLayout, TokenPackerHDLayout, PadLayout)
}


def layout_of_fields(fields: Any) -> ViewLayout:
    """The layout of fields from JSON: `name`, and options by their names.

    Raises:
        FoveateError: There is no such layout or option, or an option has an impossible value.
    """
    if not isinstance(fields, Mapping) or fields.get("name") not in LAYOUTS:
        raise FoveateError(f"a layout is a mapping with one of the names {', '.join(LAYOUTS)}, not {fields!r}.")
    layout = LAYOUTS[fields["name"]]
    options = {name: value for name, value in fields.items() if name != "name"}
    known = [field.name for field in dataclasses.fields(layout)]
    if unknown := sorted(set(options) - set(known)):
        raise FoveateError(
            f"the layout {layout.name} has no option {', '.join(unknown)}; possible are {', '.join(known)}."
        )
    return layout(**options)


def fields_of_layout(layout: ViewLayout) -> dict[str, Any]:
    """The fields of which `layout_of_fields` makes this layout."""
    return {"name": layout.name, **dataclasses.asdict(layout)}


def released_layout(config: Mapping[str, Any], side: int, patch_size: int) -> ViewLayout | None:
    """The layout that an authors' `config.json` describes; None: an image is one view.

    Args:
        config: Content of the file.
        side: Of the images of the encoder.
        patch_size: Of the encoder.

    Raises:
        FoveateError: Its `image_aspect_ratio` is of no layout here.
    """
    released = (layout.released(config, side, patch_size) for layout in LAYOUTS.values())
    layout = next((layout for layout in released if layout is not None), None)
    ratio = config.get("image_aspect_ratio")
    if layout is None and ratio not in (None, "square"):
        raise FoveateError(
            f"image_aspect_ratio {ratio!r} of config.json is not supported with this connector: possible are 'square', "
            "'pad', and 'slice' of TokenPacker; give the model a processor with another layout of views."
        )
    return layout

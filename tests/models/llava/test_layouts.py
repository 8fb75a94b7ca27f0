"""Layouts of views: the authors' grids and sizes, token counts of the papers, and pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.registry import connector_of_sizes
from foveate.models.llava.layouts import (
    LAYOUTS,
    LlavaUHDLayout,
    OryxLayout,
    PadLayout,
    TokenPackerHDLayout,
    ViewLayout,
    fields_of_layout,
    layout_of_fields,
    released_layout,
)

#: (height, width): (rows, columns) of slices or None, (height, width) of a slice, of the whole image, with at most 7
#: slices: from `slice_image_minicpm` of thunlp/LLaVA-UHD, branch LLaVA-UHD-v1, called with 336 and 14.
SLICES = {
    (1008, 672): ((3, 2), (336, 336), (406, 266)),
    (672, 1088): ((2, 3), (322, 336), (252, 420)),
    (480, 640): ((2, 2), (280, 378), (280, 378)),
    (200, 300): (None, None, (266, 406)),
    (1500, 500): ((6, 1), (224, 462), (574, 182)),
    (3000, 4000): ((2, 3), (350, 308), (280, 378)),
    (700, 700): ((2, 2), (336, 336), (336, 336)),
    (333, 339): (None, None, (322, 336)),
    (901, 2300): ((2, 3), (252, 434), (210, 532)),
}
#: (height, width): (rows, columns) of crops with at most 9, 16 and 25: from `Image_Patch` of CircleRadon/TokenPacker.
CROPS = {
    (1088, 1088): ((3, 3), (4, 4), (5, 5)),
    (480, 640): ((2, 3), (3, 4), (3, 4)),
    (336, 336): ((1, 1), (1, 1), (1, 1)),
    (100, 120): ((1, 1), (3, 4), (4, 5)),
    (1000, 1500): ((2, 3), (2, 3), (4, 6)),
    (2000, 300): ((7, 1), (7, 1), (7, 1)),
    (250, 3000): ((1, 9), (1, 9), (1, 9)),
}
#: (height, width): (height, width) of the overview and of the native view, from `process_anyres_highres_image_genli` of
#: Oryx-mllm/Oryx with LOWRES_RESIZE=384x32, HIGHRES_BASE=0x32, MAXRES=1536 and MINRES=0.
TWO_VIEWS = {
    (384, 384): ((384, 384), (384, 384)),
    (480, 640): ((320, 416), (480, 640)),
    (1000, 1500): ((288, 448), (992, 1472)),
    (1536, 1536): ((384, 384), (1536, 1536)),
    (1537, 1537): ((384, 384), (1536, 1536)),
    (3000, 4000): ((320, 416), (1312, 1760)),
    (100, 120): ((384, 384), (96, 96)),
    (20, 300): ((96, 1472), (64, 960)),
    (31, 17): ((448, 288), (96, 64)),
    (2000, 300): ((992, 128), (1984, 288)),
    (333, 339): ((384, 384), (320, 320)),
    (4100, 900): ((800, 160), (3264, 704)),
    (64, 700): ((96, 1216), (64, 672)),
}


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - 0.5


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


@pytest.mark.parametrize("size", list(SLICES), ids=str)
def test_slices_are_those_of_the_authors(size):
    grid, of_slice, of_whole = SLICES[size]
    layout = LlavaUHDLayout(max_slices=7)
    views = layout.views(*size)
    assert layout.grid(*size) == grid and (views[-1].height, views[-1].width) == of_whole
    if grid is None:
        assert len(views) == 1 and views[0].kind == "image" and views[0].separator == ""
        return
    rows, columns = grid
    assert {(view.height, view.width) for view in views[:-1]} == {of_slice} and views[-1].kind == "thumbnail"
    assert [view.separator for view in views] == [*([","] * (columns - 1) + ["\n"]) * rows, ""]


@pytest.mark.parametrize("size", list(CROPS), ids=str)
def test_crops_are_those_of_the_authors(size):
    for most, grid in zip((9, 16, 25), CROPS[size], strict=True):
        assert TokenPackerHDLayout(max_crops=most).grid(*size) == grid


def test_slices_keep_the_area_and_the_patch():
    for height in range(40, 2000, 97):
        for width in range(40, 2000, 89):
            views = LlavaUHDLayout().views(height, width)
            assert len(views) <= 7
            assert all(v.height % 14 == v.width % 14 == 0 and v.height * v.width <= 336**2 for v in views)


def test_tokens_of_llava_uhd():
    """Width 672 and height 1008: six slices and the whole image, of 64 tokens each, and six separators."""
    views = LlavaUHDLayout().views(1008, 672)
    connector = connector_of_sizes("resampler")
    assert sum(connector.output_grid(Grid(v.height // 14, v.width // 14)).size for v in views) == 64 * (6 + 1)
    assert sum(len(v.separator) for v in views) == 6
    assert LlavaUHDLayout().grid(1008, 672) == Grid(3, 2)


@pytest.mark.parametrize(("most", "views"), [(9, 10), (16, 17), (25, 26)])
def test_tokens_of_tokenpacker_hd(most, views):
    """Every view has 144, 64 or 36 tokens, and there is one separator for each."""
    side = 336 * math.isqrt(most)
    layout = TokenPackerHDLayout(max_crops=most).views(side, side)
    assert len(layout) == views == sum(len(view.separator) for view in layout)
    for scale, tokens in ((2, 144), (3, 64), (4, 36)):
        connector = connector_of_sizes("tokenpacker", {"scale": scale})
        counted = sum(connector.output_grid(Grid(view.height // 14, view.width // 14)).size for view in layout)
        assert counted == views * tokens


def test_numbers_of_tokenpackers_paper_are_means_of_possible_counts():
    """ "About" 1393, 619 and 347 tokens at 1344 pixels are 9.7 views of 144, 64 and 36, and 954 at 1088 are 6.6.

    No image has these numbers: they are means over data. They lie between those of the smallest and largest images.
    """
    for most, mean_views, reported in ((16, 9.67, {144: 1393, 64: 619, 36: 347}), (9, 6.625, {144: 954})):
        counts = {len(TokenPackerHDLayout(max_crops=most).views(h, w)) for h in range(90, 1400, 50) for w in (90, 640)}
        assert min(counts) == 1 and min(counts) < mean_views < most + 1
        for tokens, number in reported.items():
            assert abs(mean_views * tokens - number) < 1.5
            assert number not in {count * tokens for count in counts}


@pytest.mark.parametrize("size", list(TWO_VIEWS), ids=str)
def test_two_views_are_those_of_the_authors(size):
    views = OryxLayout().views(*size)
    assert tuple((view.height, view.width) for view in views) == TWO_VIEWS[size]
    assert [view.kind for view in views] == ["thumbnail", "tile"]


@pytest.mark.parametrize("size", [(70, 100), (300, 200), (5, 20)])
def test_the_overview_is_made_of_the_native_view(size):
    """In three steps: the authors resize a narrow image, then to multiples of the unit, then to the overview."""
    layout, image = OryxLayout(side=28, patch_size=7, max_side=112), picture(*size)
    overview, native = layout.views(*size)
    if size == (5, 20):
        image = image.resize((112, 28), Image.Resampling.BICUBIC)  # twice 14 pixels, which are two patches
    large = image.resize((native.width, native.height), Image.Resampling.BICUBIC)
    small = large.resize((overview.width, overview.height), Image.Resampling.BICUBIC)
    cut = layout.cut(picture(*size), pixels)
    assert torch.equal(cut[0], pixels(small)) and torch.equal(cut[1], pixels(large))


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_pixels_have_the_sizes_of_the_views(name):
    options = {"multiple": 1} if name == "oryx" else {}
    layout = layout_of_fields({"name": name, "side": 28, "patch_size": 7, **options})
    for size in ((20, 20), (70, 40), (40, 150), (61, 97)):
        views = layout.views(*size)
        cut = layout.cut(picture(*size), pixels)
        assert [tuple(part.shape) for part in cut[:: layout.parts]] == [(3, view.height, view.width) for view in views]


def test_slices_joined_are_the_resized_image():
    layout = LlavaUHDLayout(max_slices=7)
    image = picture(1008, 672)
    parts = layout.cut(image, pixels)
    joined = torch.cat([torch.cat(parts[2 * row : 2 * row + 2], dim=2) for row in range(3)], dim=1)
    assert torch.equal(joined, pixels(image))  # six slices of 336 x 336 are its size
    whole = image.resize((266, 406), Image.Resampling.BICUBIC)
    assert torch.equal(parts[-1], pixels(whole))


def bilinear(raster: torch.Tensor, size: tuple[int, int], row: int, column: int) -> torch.Tensor:
    """A pixel of (3, H, W) resized to a size, by the definition."""
    value = torch.zeros(3)
    places = []
    for index, new, old in ((row, size[0], raster.shape[1]), (column, size[1], raster.shape[2])):
        place = max((index + 0.5) * old / new - 0.5, 0.0)
        low = min(int(place), old - 1)
        places.append([(low, 1 - (place - low)), (min(low + 1, old - 1), place - low)])
    for y, y_share in places[0]:
        for x, x_share in places[1]:
            value += y_share * x_share * raster[:, y, x]
    return value


def test_crops_are_the_padded_image_and_the_last_view_is_the_canvas():
    layout = TokenPackerHDLayout(side=28, patch_size=7, max_crops=9)
    image = picture(50, 63)
    rows, columns = layout.grid(50, 63)
    assert (rows, columns) == (2, 3)  # the canvas has 56 x 84, of which the image fills 56 x 71
    *crops, last = layout.cut(image, pixels)
    canvas = torch.cat([torch.cat(crops[3 * row : 3 * row + 3], dim=2) for row in range(rows)], dim=1)
    for row, column in ((0, 0), (13, 40), (55, 70), (30, 69)):
        torch.testing.assert_close(canvas[:, row, column], bilinear(pixels(image), (56, 71), row, column))
    assert not canvas[:, :, 71:].any()
    for row, column in ((0, 0), (11, 20), (21, 27)):
        torch.testing.assert_close(last[:, row, column], bilinear(canvas, (22, 28), row, column))
    assert not last[:, 22:].any()


def test_boxes_show_where_views_lie():
    views = TokenPackerHDLayout(side=28, patch_size=7, max_crops=9).views(50, 63)
    left, top, right, bottom = views[5].box  # the lower right crop, of which 15 of 28 columns show the image
    assert (top, bottom) == (0.5, 1.0)
    assert left == pytest.approx(56 / 71) and right == pytest.approx(84 / 71)
    assert views[-1].box == pytest.approx((0, 0, 84 * 28 / (71 * 28), 56 * 28 / (56 * 22)))
    slices = LlavaUHDLayout().views(1008, 672)
    assert slices[3].box == (0.5, 1 / 3, 1.0, 2 / 3) and slices[-1].box == (0, 0, 1, 1)


def test_long_images():
    with pytest.raises(FoveateError, match="an image of 9000 x 10 pixels is too long.*narrower than a patch of 14"):
        LlavaUHDLayout().views(10, 9000)
    with pytest.raises(
        FoveateError, match="proportions of 9600 x 64 pixels is too long.* area of 384 x 384 .* than 32"
    ):
        OryxLayout().views(64, 9600)
    assert len(TokenPackerHDLayout().views(1, 9000)) == 10


def test_fields():
    layout = TokenPackerHDLayout(max_crops=16)
    assert fields_of_layout(layout) == {"name": "tokenpacker-hd", "side": 336, "patch_size": 14, "max_crops": 16}
    assert layout_of_fields(fields_of_layout(layout)) == layout
    for fields, message in (
        (
            None,
            "a layout is a mapping with one of the names falcon, llava-mini, llava-uhd, oryx, tokenpacker-hd, pad, not",
        ),
        ({"name": "mosaic"}, "one of the names"),
        (
            {"name": "llava-uhd", "max_crops": 9},
            "llava-uhd has no option max_crops; possible are side, patch_size, max",
        ),
        ({"name": "llava-uhd", "max_slices": 0}, "max_slices must be a whole number from 1 on"),
        ({"name": "llava-uhd", "side": 13}, "side must be a whole number from 14 on"),
        ({"name": "oryx", "side": 31}, "side must be a whole number from 32 on"),
        ({"name": "oryx", "max_side": 383}, "max_side must be a whole number from 384 on"),
        ({"name": "oryx", "multiple": 0}, "multiple must be a whole number from 1 on"),
    ):
        with pytest.raises(FoveateError, match=message):
            layout_of_fields(fields)


def test_layouts_of_releases():
    cases: list[tuple[dict, ViewLayout | None]] = [
        ({"mm_projector_type": "adapt_spatial_resampler", "image_aspect_ratio": "pad"}, LlavaUHDLayout(max_slices=7)),
        ({"mm_projector_type": "tokenpacker", "image_aspect_ratio": "pad"}, PadLayout()),
        (
            {"mm_projector_type": "tokenpacker", "image_aspect_ratio": "slice", "patch_num": "16"},
            TokenPackerHDLayout(max_crops=16),
        ),
        ({"mm_projector_type": "mlp2x_gelu"}, None),
    ]
    for config, layout in cases:
        assert released_layout(config, 336, 14) == layout

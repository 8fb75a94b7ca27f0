"""`open_image`: every kind of picture becomes the same upright RGB."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import FoveateError
from foveate.images import open_image

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def stored(image: Image.Image, image_format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def corners(width: int = 3, height: int = 2) -> Image.Image:
    """White, with a red top left and a blue bottom right pixel, so that every turn and mirroring shows."""
    image = Image.new("RGB", (width, height), WHITE)
    image.putpixel((0, 0), RED)
    image.putpixel((width - 1, height - 1), BLUE)
    return image


def same(image: Image.Image, expected: Image.Image) -> bool:
    return image.mode == "RGB" and image.size == expected.size and image.tobytes() == expected.tobytes()


def test_every_source_of_one_file(tmp_path):
    expected = corners(7, 5)
    path = tmp_path / "corners.png"
    expected.save(path)
    data = path.read_bytes()
    with path.open("rb") as file:
        assert same(open_image(file), expected)
    for source in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), expected):
        assert same(open_image(source), expected)
    array = np.asarray(expected)
    for source in (array, array.copy().transpose(2, 0, 1), torch.from_numpy(array.copy()).permute(2, 0, 1)):
        assert same(open_image(source, channels=None), expected)
    assert same(open_image(array.astype(np.float64) / 255), expected)
    assert same(open_image(array.astype(np.int64)), expected)
    assert same(open_image(torch.from_numpy(array / 255).to(torch.bfloat16)), expected)
    assert same(open_image(array.astype(np.uint16) * 257), expected)


def test_the_source_is_left_alone():
    source = corners()
    source.getexif()[0x0112] = 6
    before = source.tobytes()
    opened = open_image(source)
    opened.paste(BLACK, (0, 0, 2, 2))
    assert source.tobytes() == before and source.size == (3, 2) and source.getexif()[0x0112] == 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    stored_as = {  # how a camera that writes this tag has turned the scene
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    scene = corners()
    exif = Image.Exif()
    exif[0x0112] = orientation
    camera = scene if stored_as is None else scene.transpose(stored_as)
    assert same(open_image(stored(camera, "PNG", exif=exif)), scene)


def test_damaged_exif_is_ignored():
    data = stored(corners(), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff not a directory")
    assert same(open_image(data), corners())


def transparent(mode: str) -> Image.Image:
    """Two pixels: black, opaque; and anything, fully transparent."""
    image = Image.new("RGBA", (2, 1), (*BLACK, 255))
    image.putpixel((1, 0), (*RED, 0))
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_alpha_is_laid_on_white(mode):
    image = transparent("LA").convert("La") if mode == "La" else transparent(mode)
    assert [open_image(image).getpixel((x, 0)) for x in (0, 1)] == [BLACK, WHITE]


def test_half_transparency_is_halfway_to_white():
    red, green, blue = open_image(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0))
    assert red == 255 and abs(green - 127) <= 1 and green == blue


def test_transparent_palette_and_key_colour():
    palette = Image.new("P", (2, 1))
    palette.putpalette([*GREEN, *RED])
    palette.putpixel((1, 0), 1)
    assert [open_image(palette).getpixel((x, 0)) for x in (0, 1)] == [GREEN, RED]
    for key in (1, b"\xff\x00"):
        data = stored(palette, "PNG", transparency=key)
        assert [open_image(data).getpixel((x, 0)) for x in (0, 1)] == [GREEN, WHITE]
    keyed = stored(corners(), "PNG", transparency=RED)
    assert open_image(keyed).getpixel((0, 0)) == WHITE and open_image(keyed).getpixel((2, 1)) == BLUE


def test_grey_of_every_depth():
    eight = np.array([[0, 1, 100, 254, 255]], np.uint8)
    expected = np.repeat(eight[..., None], 3, axis=2)
    sixteen = eight.astype(np.uint16) * 257
    images = [
        Image.fromarray(eight),
        Image.fromarray(sixteen),
        stored(Image.fromarray(sixteen), "PNG"),
        stored(Image.fromarray(sixteen), "TIFF"),
        stored(Image.fromarray(sixteen.astype(np.int32)), "TIFF"),
        Image.fromarray(eight.astype(np.float32) / 255),
        b"P5 5 1 65535\n" + sixteen.astype(">u2").tobytes(),
        eight,
        eight[..., None],
        sixteen,
    ]
    for image in images:
        assert np.array_equal(np.asarray(open_image(image)), expected)
    assert open_image(Image.new("1", (1, 1), 1)).getpixel((0, 0)) == WHITE
    assert open_image(np.array([[True, False]])).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(
    ("mode", "colour"), [("CMYK", (0, 255, 255, 0)), ("YCbCr", (76, 85, 255)), ("HSV", (0, 255, 255))]
)
def test_other_colour_spaces(mode, colour):
    pixel = open_image(Image.new(mode, (2, 2), colour)).getpixel((1, 1))
    assert max(abs(a - b) for a, b in zip(pixel, RED, strict=True)) <= 3


def test_cmyk_jpeg():
    data = stored(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = open_image(data).getpixel((8, 8))
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(image_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = stored(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert open_image(data).getpixel((4, 4)) == RED


@pytest.mark.parametrize("size", [(1, 1), (1, 9000), (9000, 1), (6000, 4000)])
def test_thin_and_large(size):
    assert open_image(stored(Image.new("L", size, 7), "PNG")).size == size


def test_the_order_of_axes():
    first, last = np.zeros((3, 5, 7), np.uint8), np.zeros((5, 7, 3), np.uint8)
    assert open_image(first).size == open_image(last).size == (7, 5)
    ambiguous = np.zeros((3, 9, 4), np.uint8) + 255
    assert open_image(ambiguous).size == (9, 3)
    assert open_image(torch.from_numpy(ambiguous)).size == (4, 9)
    assert open_image(ambiguous, channels="first").size == (4, 9)
    with pytest.raises(FoveateError, match="channels first"):
        open_image(last, channels="first")

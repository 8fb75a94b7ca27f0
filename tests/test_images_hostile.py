"""Files and objects that are no image, or a harmful one: one clear error each, and Pillow is left as it was."""

import io
import os
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from foveate import FoveateError
from foveate.images import open_image


@pytest.fixture(autouse=True)
def pillow_is_left_as_it_was():
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    yield
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


def stored(image_format: str, size=(64, 64), **options) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, image_format, **options)
    return stream.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG whose header announces `width` x `height` pixels of one bit, with a few bytes of data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def webp(width: int, height: int) -> bytes:
    """An animated WebP whose header announces a canvas of `width` x `height` pixels."""
    canvas = struct.pack("<I", 0x02) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "data", [png(50_000, 50_000), png(2**31 - 1, 2**31 - 1), png(14_000, 13_000), webp(16_383, 16_383)]
)
def test_decompression_bombs_are_refused_from_the_header(data):
    tracemalloc.start()
    with pytest.raises(FoveateError, match=r"179 megapixels and was not decoded"):
        open_image(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_the_limit_holds_when_the_user_has_switched_pillows_off(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(FoveateError, match="of 50000 x 50000 pixels above the limit"):
        open_image(png(50_000, 50_000))
    monkeypatch.undo()


def test_a_lower_limit_can_be_asked_for():
    assert open_image(stored("PNG"), max_pixels=64 * 64).size == (64, 64)
    for source in (stored("PNG"), Image.new("RGB", (64, 64)), np.zeros((64, 64), np.uint8)):
        with pytest.raises(FoveateError, match=r"limit of 0\.004"):
            open_image(source, max_pixels=4000)


def test_a_large_size_within_the_limit_gives_no_warning(recwarn):
    with pytest.raises(FoveateError, match="truncated or damaged"):
        open_image(png(11_648, 8_736))  # a 100 megapixel camera; Pillow alone would warn
    assert not recwarn.list


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_files(image_format, kept):
    data = stored(image_format)
    with pytest.raises(FoveateError, match=r"truncated|damaged|not an image"):
        open_image(data[: int(len(data) * kept)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"hello, this is text", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image|damaged"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "SVG drawing"),
        (b'<?xml version="1.0"?>\n<!-- by hand -->\n<svg/>', "SVG drawing"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\0\0\0\x18ftypmp42", "not an image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (bytes(4096), "not an image"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, data, message):
    path = tmp_path / "picture.png"  # a good name does not help
    path.write_bytes(data)
    with pytest.raises(FoveateError, match=message):
        open_image(data)
    with pytest.raises(FoveateError, match=message) as caught:
        open_image(path)
    assert "picture.png" in str(caught.value) and "\n" not in str(caught.value)


def test_comments_that_end_in_many_places_are_read_once():
    with pytest.raises(FoveateError, match="not an image"):
        open_image(b"<!---->" * 140)  # 2 ** 140 ways to read it, if a comment may go on after its end
    with pytest.raises(FoveateError, match="SVG drawing"):
        open_image(b"<!-- a -- > -->\n" * 40 + b"<svg/>")


def test_paths_that_lead_nowhere(tmp_path):
    for path, message in [
        (tmp_path / "none.png", "no image file at"),
        (tmp_path, "is a directory"),
        (str(tmp_path / "a\0b.png"), "cannot open"),
        (tmp_path / ("x" * 5000), "cannot open"),
        ("", "path is empty"),
        ("https://example.org/a.png", "is an address"),
        ("data:image/png;base64,AAAA", "is an address"),
    ]:
        with pytest.raises(FoveateError, match=message):
            open_image(path)
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    with pytest.raises(FoveateError, match="cannot open"):
        open_image(loop)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the platform has no named pipes")
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(FoveateError, match="not a regular file"):
            open_image(path)


def test_file_objects_that_give_no_bytes():
    class Broken:
        def read(self, size):
            raise OSError("the disk is gone")

    with pytest.raises(FoveateError, match="binary mode"):
        open_image(io.StringIO("text"))
    with pytest.raises(FoveateError, match="the disk is gone"):
        open_image(Broken())
    with pytest.raises(FoveateError, match=r"empty \(0 bytes\)"):
        open_image(io.BytesIO())


@pytest.mark.parametrize("source", [None, 3, 2.5, object(), {"image": 1}, [1, 2], {1}])
def test_objects_that_hold_no_image(source):
    with pytest.raises(FoveateError, match="cannot read an image from"):
        open_image(source)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 5), np.uint8), "no pixels"),
        (np.zeros((5, 5, 0), np.uint8), "shape"),
        (np.zeros(9, np.uint8), "shape"),
        (np.zeros((2, 5, 5, 3), np.uint8), "shape"),
        (np.zeros((5, 5, 2), np.uint8), "shape"),
        (np.full((4, 4), np.nan), "from nan"),
        (np.full((4, 4), np.inf), "inf"),
        (np.full((4, 4), 200.0), "from 200 to 200"),
        (np.full((4, 4), -1.0), "from -1"),
        (np.full((4, 4), 300), "from 300 to 300"),
        (np.full((4, 4), -1), "from -1"),
        (np.full((4, 4), 1j), "complex"),
        (np.full((4, 4), "a"), "type"),
        (np.full((4, 4), None), "type object"),
        (torch.full((3, 4, 4), 5.0), "from 5 to 5"),
        (Image.fromarray(np.full((4, 4), 70_000, np.int32)), "from 70000"),
        (Image.fromarray(np.full((4, 4), 99.0, np.float32)), "from 99"),
        (Image.new("RGB", (0, 4)), "no pixels"),
    ],
)
def test_arrays_that_hold_no_image(array, message):
    with pytest.raises(FoveateError, match=message):
        open_image(array)


SEEDS = [stored(kind, (24, 16)) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "PPM", "QOI")]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=12),
    cut=st.integers(0, 400),
)
def test_damaged_bytes_give_an_image_or_a_clear_error(seed, edits, cut):
    data = bytearray(seed)
    for at, value in edits:
        data[at % len(data)] = value
    try:
        image = open_image(bytes(data[: len(data) - cut]))
    except FoveateError:
        return  # any other exception fails the test
    assert image.mode == "RGB"

"""Loading of images from paths, bytes, arrays and data URIs as upright RGB images.

`open_image` is the only door through which pixels enter foveate. It takes files, bytes, PIL images and arrays, and
returns an 8-bit RGB `PIL.Image.Image`: EXIF orientation applied, transparency laid on white, grey, palette, 16-bit and
CMYK converted, the first frame of an animation. What cannot be read is refused with one `FoveateError` that says why,
and a file whose header announces more pixels than `max_pixels` is refused before any of them is decoded.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
import warnings
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, UnidentifiedImageError

from foveate.core.errors import FoveateError

#: Most pixels that are decoded: twice Pillow's warning level, 179 megapixels or 0.5 GB of RGB.
MAX_PIXELS = 2 * 89_478_485

#: Most bytes that are read from a file object, which has no size to check beforehand.
MAX_BYTES = 2**30

#: Raster formats that are read. Formats that run a program (EPS, WMF), that only name a plug-in (HDF5, GRIB, BUFR) or
#: that nearly any bytes pass for (TGA, XV thumbnails) are excluded.
FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "PSD", "PCX",
    "SGI", "QOI",
)  # fmt: skip

#: How to bring an image upright, by the value of its EXIF orientation tag (274); 1 is upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: What is at the start of files that are often taken for images, and what to do with them.
LOOKALIKES = (
    # A comment ends at its first "-->": one that could go on after it is tried in 2 ** comments ways.
    (re.compile(rb"(<\?xml[^>]*>\s*)?(<!--(?:(?!-->).)*-->\s*)*(<!doctype svg[^>]*>\s*)?<svg", re.I | re.S),
     "it is an SVG drawing; render it to PNG first"),
    (re.compile(rb"(<!doctype html|<html|<head|<body)", re.I), "it is a web page, perhaps a saved error"),
    (re.compile(rb"%PDF-"), "it is a PDF; render the page to PNG first"),
    (re.compile(rb"%!PS"), "it is PostScript; render it to PNG first"),
    (re.compile(rb"....ftyp(isom|mp4|avc1|qt  |M4V|dash)", re.S), "it is a video; foveate reads single images here"),
    (re.compile(rb"....ftyp(heic|heix|hevc|mif1|msf1)", re.S), "it is HEIC; convert it to JPEG or PNG first"),
    (re.compile(rb"version https://git-lfs"), "it is a Git LFS pointer, not the file; run `git lfs pull`"),
)  # fmt: skip

#: The beginning of a data URI; without ";base64", its data are percent-encoded.
_DATA = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[^;,]*)*(?P<base64>;base64)?,", re.IGNORECASE)

#: What may be base64 of an image file; the smallest of these are longer.
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{24,}={0,2}")

Channels = Literal["first", "last"]


def open_image(source: Any, *, channels: Channels | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open one image as an upright 8-bit RGB `PIL.Image.Image`. The source is never changed.

    Args:
        source: a path (`str` or `os.PathLike`), the `bytes` of an image file, a binary file object, a PIL image, or an
            array: NumPy `(H, W)`, `(H, W, 1)`, `(H, W, 3)` or `(H, W, 4)`; torch `(H, W)` or `(C, H, W)`. The other
            order of axes is recognised where only one axis can be the channels. Integers are 0..255, `uint16`
            0..65535, booleans black and white, floats 0..1. Four channels are RGBA.
        channels: which axis of an array holds the channels, ``"first"`` or ``"last"``; `None` decides as above.
        max_pixels: refuse larger images; checked against the header of a file, before decoding.

    Raises:
        FoveateError: the source is missing, empty, truncated, too large, not an image, or of no supported kind.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(_decode(source, _name_of(source), max_pixels, copy=True), _name_of(source))
    if isinstance(source, (str, os.PathLike)):
        return _open_path(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open_stream(io.BytesIO(bytes(source)), "the given bytes", max_pixels)
    if hasattr(source, "read"):
        return _open_file_object(source, max_pixels)
    if hasattr(source, "__array__") or hasattr(source, "__array_interface__"):
        return _from_array(source, channels, max_pixels)
    raise FoveateError(
        f"cannot read an image from {type(source).__name__}: give a path, the bytes of a file, a PIL image or an array."
    )


def channel_axis(data_format: Any) -> Channels | None:
    """Which axis holds the channels by `input_data_format`, the option of image processors; None: it is not given."""
    if data_format is None:
        return None
    return "first" if "first" in str(data_format).lower() else "last"


def data_of(uri: str, *, max_bytes: int = MAX_BYTES, kind: str = "an image") -> bytes:
    """Decode the bytes of the file in a `data:` URI.

    Args:
        uri: The URI.
        max_bytes: Largest file.
        kind: What the file is, for messages.

    Raises:
        FoveateError: it is no such URI, its data are no base64, or they have more than `max_bytes`.
    """
    match = _DATA.match(uri)
    if match is None:
        raise FoveateError(f"{uri[:80]!r} is not a data URI; write data:image/png;base64,...")
    data = b""
    if len(uri) - match.end() <= 4 * max_bytes // 3 + 4:
        try:
            if match["base64"]:
                data = base64.b64decode(re.sub(r"\s", "", uri[match.end() :]), validate=True)
            else:
                data = unquote_to_bytes(uri[match.end() :])
        except (binascii.Error, ValueError) as error:
            raise FoveateError(f"the data URI holds no base64: {str(error).rstrip('.')}.") from None
        if len(data) <= max_bytes:
            return data
    raise FoveateError(f"{kind} file may have at most {max_bytes / 2**20:g} MiB here.")


def inline(text: str) -> bytes:
    """Decode the bytes of the image file in a `data:` URI or bare base64.

    Raises:
        FoveateError: it holds none.
    """
    if text.startswith("data:"):
        return data_of(text)
    try:
        return base64.b64decode(re.sub(r"\s", "", text), validate=True)
    except ValueError:
        raise FoveateError(f"{text[:60]!r} is not the base64 of an image file.") from None


def open_written(text: str) -> Image.Image:
    """Open the image that a message text names: a path, a `data:` URI, or base64 if there is no such file.

    Raises:
        FoveateError: it is none of these, or an address of the web, which is not fetched.
    """
    if text.startswith("data:"):
        return open_image(inline(text))
    if _BASE64.fullmatch(text.strip()) and not _exists(text):
        try:
            return open_image(inline(text))
        except FoveateError:
            pass  # a path that could be base64: there is no such file
    return open_image(text)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long for a name
        return False


def _open_path(path: str | os.PathLike[str], max_pixels: int) -> Image.Image:
    text = os.fspath(path)
    if isinstance(text, str) and re.match(r"(https?|ftp|s3|data):", text):
        raise FoveateError(f"{text[:80]!r} is an address, and foveate reads files only: download it and give its path.")
    name = repr(os.fsdecode(text))
    if not text:
        raise FoveateError("no image file: the given path is empty.")
    try:
        kind = Path(os.fsdecode(text)).stat().st_mode
        if stat.S_ISDIR(kind):
            raise FoveateError(f"{name} is a directory, not an image file.")
        if not stat.S_ISREG(kind):
            raise FoveateError(f"{name} is not a regular file.")  # a device or pipe could be read without end
        with Path(os.fsdecode(text)).open("rb") as stream:
            return _open_stream(stream, name, max_pixels)
    except FileNotFoundError:
        raise FoveateError(f"no image file at {name}.") from None
    except PermissionError:
        raise FoveateError(f"no permission to read {name}.") from None
    except FoveateError:
        raise
    except (OSError, ValueError) as error:  # a name too long, a NUL in it, a loop of links
        raise FoveateError(f"cannot open {name[:200]}: {error}.") from None


def _open_file_object(file: Any, max_pixels: int) -> Image.Image:
    name = f"the file object {file.name!r}" if isinstance(getattr(file, "name", None), str) else "the file object"
    try:
        data = file.read(MAX_BYTES + 1)
    except Exception as error:
        raise FoveateError(f"cannot read {name}: {error}.") from None
    if not isinstance(data, bytes):
        raise FoveateError(f"{name} gives {type(data).__name__}, not bytes: open it in binary mode ('rb').")
    if len(data) > MAX_BYTES:
        raise FoveateError(f"{name} holds more than {MAX_BYTES >> 20} MiB.")
    return _open_stream(io.BytesIO(data), name, max_pixels)


def _open_stream(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    """Open the image file in a seekable binary stream."""
    head = stream.read(1024)
    if not head:
        raise FoveateError(f"{name} is empty (0 bytes).")
    stream.seek(0)
    _refuse_large_webp(head, name, max_pixels)
    with warnings.catch_warnings():
        # Pillow warns of sizes (limited here) and of damaged metadata (not read here), and lists what it tried.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(stream, formats=[f for f in FORMATS if _available(f)])
        except UnidentifiedImageError:
            raise FoveateError(f"{name} is not an image that foveate can read{_lookalike(head)}.") from None
        except Image.DecompressionBombError:
            raise _too_large(name, None, max_pixels) from None
        except Exception as error:  # decoders raise anything on hostile bytes: struct.error, EOFError, KeyError ...
            raise FoveateError(f"{name} is a damaged image: {_reason(error)}.") from None
        with image:
            return _to_rgb(_decode(image, name, max_pixels), name)


def _available(image_format: str) -> bool:
    """Whether this build of Pillow reads the format (AVIF, WebP and JPEG 2000 are optional)."""
    if image_format not in Image.OPEN:
        Image.init()
    return image_format in Image.OPEN


def _refuse_large_webp(head: bytes, name: str, max_pixels: int) -> None:
    """Check the canvas in an extended WebP header, which Pillow allocates before the size can be checked."""
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) >= 30:
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        if width * height > max_pixels:
            raise _too_large(name, (width, height), max_pixels)


def _too_large(name: str, size: tuple[int, int] | None, max_pixels: int) -> FoveateError:
    dimensions = f"of {size[0]} x {size[1]} pixels " if size else ""
    return FoveateError(
        f"{name} announces an image {dimensions}above the limit of {max_pixels / 1e6:.3g} megapixels "
        "and was not decoded; scale it down first."
    )


def _lookalike(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for pattern, hint in LOOKALIKES:
        if pattern.match(text):
            return f": {hint}"
    return ""


def _reason(error: BaseException) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _name_of(image: Image.Image) -> str:
    filename = getattr(image, "filename", "")
    return repr(os.fsdecode(filename)) if filename else "the PIL image"


def _decode(image: Image.Image, name: str, max_pixels: int, copy: bool = False) -> Image.Image:
    """Decode an image upright, after checking the size in its header."""
    width, height = image.size
    if width < 1 or height < 1:
        raise FoveateError(f"{name} has no pixels: its size is {width} x {height}.")
    if width * height > max_pixels:
        raise _too_large(name, (width, height), max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except Exception as error:  # as above: a decoder may raise anything
        raise FoveateError(f"{name} is truncated or damaged: {_reason(error)}.") from None
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # unreadable metadata does not make the picture unreadable; upright is the default of the tag
        orientation = 1
    if orientation in UPRIGHT:
        return image.transpose(UPRIGHT[orientation])
    return image.copy() if copy else image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert a decoded image of any Pillow mode to 8-bit RGB; transparency is blended with white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image if type(image) is Image.Image else image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey_to_rgb(image, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
                if image.mode == "La":  # Pillow only undoes premultiplied grey towards LA
                    image = image.convert("LA")
                rgba = image.convert("RGBA")
                white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
                return Image.alpha_composite(white, rgba).convert("RGB")
            return image.convert("RGB")
    except Exception as error:
        raise FoveateError(
            f"{name} has colours of kind {image.mode!r} that cannot be read: {_reason(error)}."
        ) from None


def _deep_grey_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert grey images of 16 bits and more, which Pillow's own conversion would clip at 255."""
    grey = np.asarray(image)
    if image.mode == "F":
        return Image.fromarray(_float_to_8bit(grey, name)).convert("RGB")
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        raise FoveateError(
            f"{name} has grey values from {low} to {high}; foveate reads 8 bits (0..255) or 16 (0..65535)."
        )
    return Image.fromarray(_16_to_8bit(grey)).convert("RGB")


def _16_to_8bit(values: np.ndarray) -> np.ndarray:
    """Convert 0..65535 to 0..255, rounded: 257 steps of 16 bits are one of 8."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _float_to_8bit(values: np.ndarray, name: str) -> np.ndarray:
    values = values.astype(np.float32, copy=False)
    low, high = float(values.min()), float(values.max())
    half_step = 0.5 / 255  # rounding errors of an earlier computation are not a different range
    if not (low >= -half_step and high <= 1 + half_step):  # written so that NaN fails
        raise FoveateError(
            f"{name} has decimal values from {low:.4g} to {high:.4g}; foveate reads them as 0 (black) to 1 (white): "
            "scale them, or give 8-bit whole numbers (uint8)."
        )
    return np.rint(values.clip(0, 1) * np.float32(255)).astype(np.uint8)


def _from_array(source: Any, channels: Channels | None, max_pixels: int) -> Image.Image:
    prefer: Channels = channels or "last"
    if type(source).__module__.partition(".")[0] == "torch":
        prefer = channels or "first"
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source  # NumPy has no bfloat16
    try:
        array = np.asarray(source)
    except Exception as error:
        raise FoveateError(f"cannot read an image from {type(source).__name__}: {_reason(error)}.") from None
    array = _channels_last(array, prefer, fixed=channels is not None)
    name = "the image array"
    height, width = array.shape[:2]
    if height < 1 or width < 1:
        raise FoveateError(f"{name} has no pixels: its size is {width} x {height}.")
    if width * height > max_pixels:
        raise FoveateError(
            f"{name} of {width} x {height} pixels is above the limit of {max_pixels / 1e6:.3g} megapixels."
        )
    array = np.ascontiguousarray(_array_to_8bit(array, name))
    return _to_rgb(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array), name)


def _channels_last(array: np.ndarray, prefer: Channels, fixed: bool) -> np.ndarray:
    """Return a `(H, W, C)` view of an array with channels first or last."""
    if array.ndim == 2:
        return array[..., None]
    possible = (1, 3, 4)
    if array.ndim == 3:
        first, last = array.shape[0] in possible, array.shape[2] in possible
        if fixed:
            first, last = first and prefer == "first", last and prefer == "last"
        if last and not (first and prefer == "first"):
            return array
        if first:
            return np.moveaxis(array, 0, -1)
    raise FoveateError(
        f"an array of shape {tuple(array.shape)} is not an image: expected (height, width) or (height, width, "
        "channels) with 1 (grey), 3 (RGB) or 4 (RGBA) channels" + (f", channels {prefer}" if fixed else "") + "."
    )


def _array_to_8bit(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return _16_to_8bit(array)
    if np.issubdtype(array.dtype, np.floating):
        return _float_to_8bit(array, name)
    if np.issubdtype(array.dtype, np.integer):
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 255:
            raise FoveateError(
                f"{name} of {array.dtype} has values from {low} to {high}; whole numbers must be 0..255 "
                "(or uint16, 0..65535)."
            )
        return array.astype(np.uint8)
    raise FoveateError(f"{name} has values of type {array.dtype}, which are no brightness: use uint8, uint16 or float.")

"""Bytes that claim to be an image: an upright RGB image within the limit, or one sentence."""

from PIL import Image

from foveate.core.errors import FoveateError
from foveate.images import open_image
from tests.fuzz.targets import is_sentence
from tests.serving.hostile import bad_images, odd_images, saved

#: Few, so that a fuzzer does not spend its time on painting.
PIXELS = 2**18

_PAGE = Image.effect_noise((24, 16), 90).convert("RGB")
_KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "JPEG2000", "QOI", "PCX", "SGI", "MPO", "AVIF")
SEEDS = [
    *(content for _, content in bad_images()),
    *(content for _, content in odd_images() if len(content) < 2**16),
    *(saved(_PAGE, kind) for kind in _KINDS),
    *(saved(_PAGE.convert(mode), "TIFF") for mode in ("1", "L", "LA", "P", "I;16", "I", "F", "RGBA", "CMYK", "LAB")),
    *(saved(_PAGE, "TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
    b"<!---->" * 140,
    b"<?xml version='1.0'?>" + b"<!-- a -->\n" * 20 + b"<svg/>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    b"\0\0\0\x18ftypheic\0\0\0\0",
]
WORDS = [
    b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"acTL", b"fdAT", b"eXIf", b"iCCP", b"zTXt", b"iTXt",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff", b"\xff\xc0", b"\xff\xda", b"Exif\0\0", b"ICC_PROFILE\0", b"MPF\0", b"GIF89a", b"NETSCAPE2.0",
    b"RIFF",
    b"WEBPVP8X", b"VP8L", b"ANIM", b"ANMF", b"II*\0", b"MM\0*", b"BM", b"P6", b"P7", b"qoif", b"8BPS", b"\0\0\1\0",
    b"ftypavif", b"jP  ", b"\xff\x4f\xff\x51", b"<svg", b"<!--", b"-->", b"<?xml",
]  # fmt: skip


def check(data: bytes) -> None:
    """See the module."""
    try:
        image = open_image(data, max_pixels=PIXELS)
    except FoveateError as error:
        is_sentence(error)
        return
    assert image.mode == "RGB" and 0 < image.width * image.height <= PIXELS
    image.tobytes()

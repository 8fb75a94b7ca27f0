"""Bodies, images and addresses that no honest client sends, each with a word of the error it must end in."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.serving.live_server import asking, data_uri


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG file whose header says what it wants."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def bad_images() -> Iterator[tuple[str, bytes]]:
    """Bytes that are no image that can be read."""
    page = Image.new("RGB", (64, 48), "white")
    jpeg, whole = saved(page, "JPEG"), saved(page, "PNG")
    yield "empty", b""
    yield "one byte", b"\x89"
    yield "a bomb of 10 gigapixels", png(100_000, 100_000, data=zlib.compress(bytes(1000)))
    yield (
        "a bomb in a GIF",
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x00;",
    )
    yield (
        "a bomb in a WebP",
        (b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xff\xff\x3f" * 2),
    )
    yield "zero width", png(0, 10)
    yield "zero height", png(10, 0)
    yield "less data than the header says", png(64, 64, data=zlib.compress(bytes(10)))
    yield "broken compression", png(64, 64, data=b"not zlib at all")
    yield "a depth that does not exist", png(8, 8, depth=7, data=zlib.compress(bytes(100)))
    yield "a colour type that does not exist", png(8, 8, colour=5, data=zlib.compress(bytes(100)))
    yield "a truncated PNG", whole[: len(whole) // 2]
    yield "a truncated JPEG", jpeg[:120]
    yield "a JPEG header alone", b"\xff\xd8\xff\xe0\x00\x10JFIF"
    yield "noise", np.random.default_rng(0).bytes(5000)
    yield "zeros", bytes(5000)
    yield (
        "SVG",
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    )
    yield "HTML", b"<!DOCTYPE html><html><body>404</body></html>"
    yield "PDF", b"%PDF-1.7\n1 0 obj"
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    yield "comments that could end in 2 ** 140 ways", b"<!---->" * 140
    yield "XML entities", b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>'
    yield "a video", b"\0\0\0\x18ftypisom" + bytes(100)
    yield "a shell script", b"#!/bin/sh\nrm -rf /\n"
    yield "a zip", b"PK\x03\x04" + bytes(60)
    yield "a pickle", b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    yield "a TIFF whose directory points at itself", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"
    yield "a PPM that ends early", b"P6 1000 1000 255\n" + bytes(10)
    yield "an icon of nothing", b"\0\0\1\0\1\0" + bytes(16)


def odd_images() -> Iterator[tuple[str, bytes]]:
    """Unusual images that must be answered."""
    yield "one pixel", saved(Image.new("RGB", (1, 1)), "PNG")
    yield "a line, 1 x 10000", saved(Image.new("RGB", (1, 10_000), "red"), "PNG")
    yield "a line, 10000 x 1", saved(Image.new("RGB", (10_000, 1), "red"), "PNG")
    yield "CMYK", saved(Image.new("CMYK", (40, 30)), "JPEG")
    yield "16-bit grey", saved(Image.fromarray(np.full((30, 40), 40_000, np.uint16)), "PNG")
    yield "bilevel", saved(Image.new("1", (40, 30)), "PNG")
    yield "palette with transparency", saved(Image.new("P", (40, 30)), "PNG", transparency=0)
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    yield "animated", saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield "JPEG with a wrong kind in its address", saved(Image.new("RGB", (40, 30)), "JPEG")


def bad_addresses() -> Iterator[tuple[str, str]]:
    """Addresses that must not be read."""
    for host in (
        "127.0.0.1", "localhost", "[::1]", "0.0.0.0", "169.254.169.254", "metadata.google.internal", "2130706433",
        "0x7f000001", "127.1", "10.0.0.1", "allowed.example@127.0.0.1", "127.0.0.1#allowed.example",
        "allowed.example.evil.test", "[::ffff:127.0.0.1]", "allowed.example:22", "%31%32%37.0.0.1", "",
    ):  # fmt: skip
        yield f"http at {host!r}", f"http://{host}/latest/meta-data"
    yield "https elsewhere", "https://example.org/cat.png"
    yield "a user name", "http://me:secret@allowed.example/cat.png"  # pragma: allowlist secret
    yield "a port that is none", "http://allowed.example:99999/cat.png"
    yield "an open bracket", "http://[::1/cat.png"
    yield "ftp", "ftp://allowed.example/cat.png"
    yield "gopher", "gopher://127.0.0.1:6379/_INFO"
    yield "javascript", "javascript:alert(1)"
    yield "a bare path", "/etc/passwd"
    yield "nothing", ""
    yield "a file outside", "file:///etc/passwd"
    yield "a path upwards", "file:../../etc/passwd"
    yield "an escaped path upwards", "file:%2e%2e/%2e%2e/etc/passwd"
    yield "a link out of the root", "file:link.png"
    yield "a file behind an open bracket", "file://[::1/receipt.png"
    yield "a blank before the colon", "http ://allowed.example/cat.png"
    yield "a blank before the scheme", " http://allowed.example/cat.png"
    yield "a folder", "file:."
    yield "a device", "file:///dev/zero"
    yield "another machine", "file://server/share/cat.png"
    yield "a NUL", "file:receipt.png%00.txt"
    yield "a path of 5000 characters", "file:" + "a" * 5000
    yield "a data URI without data", "data:image/png;base64,"
    yield "broken base64", "data:image/png;base64,@@@@"
    yield "a data URI without a comma", "data:image/png;base64"
    yield "unicode", "дата:картинка"


def bad_bodies() -> Iterator[tuple[str, bytes]]:
    """Bodies that say what cannot be done."""
    good: dict[str, Any] = {"model": "embedded", "messages": [{"role": "user", "content": "Hi"}]}

    def with_(**more: Any) -> bytes:
        return json.dumps({**good, **more}).encode()

    def text(content: Any) -> bytes:
        return with_(messages=[{"role": "user", "content": content}])

    yield "empty", b""
    yield "no JSON", b"model=embedded"
    yield "half", json.dumps(good).encode()[:-3]
    yield "no UTF-8", b'{"model": "\xff\xfe"}'
    yield "a list", b"[1, 2]"
    yield "null", b"null"
    yield "NaN", b'{"model": "embedded", "messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}'
    yield "infinity", b'{"model": "embedded", "messages": [{"role": "user", "content": "Hi"}], "top_p": -Infinity}'
    yield (
        "a number too large",
        b'{"model": "embedded", "messages": [{"role": "user", "content": "Hi"}], "temperature": 1e999}',
    )
    yield "100,000 lists in lists", b"[" * 100_000 + b"]" * 100_000
    yield "objects 40 deep", with_(metadata=json.loads('{"a":' * 40 + "1" + "}" * 40))
    yield "a number of 5000 digits", b'{"model": "embedded", "seed": ' + b"9" * 5000 + b"}"
    yield "no messages", with_(messages=[])
    yield "messages that are text", with_(messages="Hi")
    yield "a role that does not exist", with_(messages=[{"role": "tool", "content": "x"}])
    yield "content of a wrong type", text(7)
    yield "an unknown part", text([{"type": "audio", "audio": "x"}])
    yield "a part without its content", text([{"type": "image_url"}])
    yield "more images than allowed", with_(messages=asking("?", *[data_uri(b"x")] * 40))
    yield "more text than allowed", text("a" * 200_000)
    yield "more tokens than the model has positions for", text("a" * 5_000)
    yield "an assistant last", with_(messages=[*good["messages"], {"role": "assistant", "content": "x"}])
    yield "no tokens", with_(max_tokens=0)
    yield "a text for a number of tokens", with_(max_tokens="many")
    yield "two numbers of tokens", with_(max_tokens=4, max_completion_tokens=5)
    yield "half a token", with_(max_tokens=1.5)
    yield "a negative temperature", with_(temperature=-1)
    yield "five stops", with_(stop=list("abcde"))
    yield "a million choices", with_(n=1_000_000)
    yield "no choice", with_(n=0)
    yield "tools", with_(tools=[{"type": "function"}])
    yield "a format", with_(response_format={"type": "json_object"})
    yield "the likeliest tokens of no probabilities", with_(top_logprobs=3)
    yield "a hundred likeliest tokens", with_(logprobs=True, top_logprobs=100)
    yield "a truth for a temperature", with_(temperature=True)
    yield "an unknown field", with_(frobnicate=1)
    yield "a plan that does not exist", with_(foveate={"plan": "nosuch:64"})
    yield "a plan that is no plan", with_(foveate={"plan": "((((((" * 100})
    yield "a plan of 100,000 characters", with_(foveate={"plan": "a" * 100_000})
    yield "a plan that runs code", with_(foveate={"plan": "divprune(__import__('os').system('id')):64"})
    yield "a plan that reads files", with_(foveate={"plan": "focusui(weights='/etc'):64"})
    yield "a method that reads files in another", with_(foveate={"plan": "pospad(selector=focusui(weights='/etc')):64"})
    yield "a marker that is read", with_(foveate={"plan": "pospad(embedding='/etc/marker'):64"})
    yield "a plan of blanks that could be split in many ways", with_(foveate={"plan": "a" + " " * 1_900 + "("})
    yield "a plan of methods in methods", with_(foveate={"plan": "pospad(selector=" * 100 + "divprune" + ")" * 100})
    yield "a plan of signs", with_(foveate={"plan": f"random(seed={'-' * 1_900}1):64"})
    yield "a plan with a text for a number", with_(foveate={"plan": "random(seed=x):64"})
    yield "a plan that takes all memory", with_(foveate={"plan": "ppe(members=1000000000000):64"})
    yield "a budget of nothing", with_(foveate={"budget": "0%"})
    yield "a budget that is none", with_(foveate={"budget": "many"})
    yield "a plan and a budget", with_(foveate={"plan": "divprune:64", "budget": 3})
    yield "a lone surrogate", text("\ud800")


def base64_bomb() -> bytes:
    """A body whose image would be longer than files may be."""
    blob = base64.b64encode(bytes(25 * 2**20)).decode()
    return json.dumps({"model": "embedded", "messages": asking("?", f"data:image/png;base64,{blob}")}).encode()

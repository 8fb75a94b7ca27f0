"""Fetching: limits on bytes, time and redirects, also where an event loop is running."""

import asyncio
import sys

import pytest

from foveate import FoveateError
from foveate.fetching import download, fetch, is_address
from tests.picture_server import serving


def test_a_file_is_fetched_with_redirects(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(b"picture") as address:
        assert fetch(f"{address}/a.png") == b"picture"
        assert fetch(f"{address}/moved.png") == b"picture"

        async def inside() -> bytes:
            return fetch(f"{address}/a.png")  # as in a cell of a notebook

        assert asyncio.run(inside()) == b"picture"


def test_limits(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(b"picture") as address:
        for path, options, message in [
            ("/endless", {"max_bytes": 2**20}, "at most 1 MiB"),
            ("/a.png", {"max_bytes": 6}, "at most"),
            ("/slow", {"seconds": 0.5}, "longer than 0.5 s"),
            ("/none", {}, "status 404"),
            ("/round", {}, "could not be read: TooManyRedirects"),
        ]:
            with pytest.raises(FoveateError, match=message):
                fetch(address + path, **options)
        with pytest.raises(FoveateError, match="status 302"):  # of a server: no redirect is followed
            asyncio.run(download(f"{address}/moved.png", max_bytes=2**20, seconds=5))
    with pytest.raises(FoveateError, match="could not be read"):
        fetch(f"{address}/a.png")
    with pytest.raises(FoveateError, match="is not an address"):
        fetch("http://[::1/a.png")


def test_without_httpx(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(FoveateError, match=r"pip install 'foveate\[serve\]'"):
        fetch("http://127.0.0.1/a.png")


def test_what_is_an_address():
    assert is_address("https://example.org/a.png") and is_address("HTTP://example.org")
    assert not is_address("a.png") and not is_address(b"http://example.org") and not is_address("ftp://example.org")

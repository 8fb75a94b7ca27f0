"""Runs the lines of a shell block: `foveate` in this process, servers and `curl` as processes of their own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate.cli import main
from tests.docs.snippets import ROOT

#: The port that pages name; a free one takes its place.
PORT = "8000"
#: Sides of rendered images, in pixels; the smallest that every task can be drawn in.
SIDES = ("--sides", "128,160")
#: One step of training.
STEPS = [("--steps", "1"), ("--batch-size", "1")]
#: Options that make a command take seconds instead of hours, in addition to those that a page gives.
SMALLER: dict[str, list[tuple[str, ...]]] = {
    "ask": [("--max-new-tokens", "4")],
    "train": [("--max-minutes", "0"), ("--workers", "0")],
    "train-method specvlm": [*STEPS, ("--held-out", "2"), SIDES],
    "train-method flash": [*STEPS, ("--held-out", "2")],
    "train-method covipal": [*STEPS, ("--held-out", "2"), SIDES],
    "train-method focusui": [*STEPS, ("--held-out", "2")],
    "train-method ph-reg": [*STEPS, ("--held-out", "2"), ("--views", "2")],
    "train-method relevance": [("--epochs", "1")],
    "tune": [
        ("--trials", "1"),
        ("--count", "8"),
        ("--repeats", "1"),
        SIDES,
        ("--methods", "divprune"),
    ],
    "bench accuracy": [("--count", "1"), SIDES],
    "bench next-scale": [("--samples", "2"), ("--held-out", "2"), ("--repeats", "1")],
    "batch": [("--max-new-tokens", "4")],
}
#: Commands whose second word names what they do.
GROUPS = ("bench", "train-method")
ASSIGNMENT = re.compile(r"[A-Z_]+=")


def commands(code: str) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The commands of a block: variables that are set for each, and its words."""
    pending = ""
    for line in code.replace("\\\n", " ").splitlines():
        pending += line + "\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        pending = ""
        variables = {}
        while words and ASSIGNMENT.match(words[0]):
            name, _, variables_value = words.pop(0).partition("=")
            variables[name] = variables_value
        if words:
            yield variables, words
    assert not pending, f"a quotation does not end: {pending}"


class Shell:
    """A working directory with at most one server, which ends with `close` or when the next one starts.

    Args:
        folder: The working directory of processes; that of this process must be the same.
        variables: Environment variables of processes.
    """

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self._folder, self._variables = folder, variables
        self._server: subprocess.Popen[bytes] | None = None
        self.port = PORT

    def run(self, code: str) -> None:
        """Run every command of a block.

        Raises:
            AssertionError: one fails, or nothing here can run it.
        """
        for variables, words in commands(code):
            if words[0] == "foveate":
                self._foveate(words[1:])
            elif words[:2] == ["pip", "install"]:
                check_extras(words[2:])
            elif words[0] == "curl":
                self._curl(words, variables)
            elif words[0] == "pytest":
                self._process([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words[1:]], variables)
            else:
                raise AssertionError(f"nothing here runs {shlex.join(words)}; mark the block <!-- not run: REASON -->")

    def _foveate(self, words: list[str]) -> None:
        if words[0] == "serve":
            self._serve(words)
            return
        name = " ".join(words[: 1 + (words[0] in GROUPS)])
        options = [word for option in SMALLER.get(name, ()) if option[0] not in words for word in option]
        assert main([*words, *options]) == 0, f"foveate {shlex.join([*words, *options])}"

    def _serve(self, words: list[str]) -> None:
        self.close()
        self.reserve()
        line = [sys.executable, "-m", "foveate", *words, "--port", self.port]
        environment = {**os.environ, **self._variables, "PYTHONPATH": python_path()}
        log = self._folder / "server.log"
        with log.open("wb") as out:
            self._server = subprocess.Popen(line, cwd=self._folder, env=environment, stdout=out, stderr=out)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._server.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(f"foveate {shlex.join(words)} did not start:\n{log.read_text()}")

    def _process(self, line: list[str], variables: dict[str, str]) -> None:
        environment = {**os.environ, **self._variables, "PYTHONPATH": python_path(), **variables}
        done = subprocess.run(
            line, cwd=self._folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{shlex.join(line)}: {done.stdout}{done.stderr}"

    def _curl(self, words: list[str], variables: dict[str, str]) -> None:
        if not shutil.which("curl"):
            pytest.skip("curl is not installed")
        options = ["--silent", "--show-error", "--fail-with-body"]
        self._process(["curl", *options, *(self.at_port(word) for word in words[1:])], variables)

    def reserve(self) -> str:
        """Choose a free port for the next server."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        return self.port

    def at_port(self, text: str) -> str:
        """A text with the server's port instead of that of the pages."""
        return text.replace(f"localhost:{PORT}", f"127.0.0.1:{self.port}")

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait(60)
            self._server = None


def python_path() -> str:
    """A search path with this repository's package first."""
    return os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))


def check_extras(words: list[str]) -> None:
    """The extras of foveate that a line installs exist.

    Raises:
        AssertionError: one does not.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        match = re.fullmatch(r"(?:foveate|\.)\[([\w,]+)\]", word)
        if match:
            unknown = set(match[1].split(",")) - set(project["optional-dependencies"])
            assert not unknown, f"there is no extra {', '.join(sorted(unknown))}"

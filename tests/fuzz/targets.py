"""What is fuzzed: one file a target, `fuzz_NAME.py`, with `check(data)`, `SEEDS` and `WORDS`.

`check` takes any bytes and returns, or raises what is a fault: an exception that is no `FoveateError`, or a broken
promise. `SEEDS` are inputs to start from, hostile and honest ones; `WORDS` are pieces that a fuzzer may put in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from foveate.core.errors import FoveateError

NAMES = ("image", "plan", "body", "recipe", "jsonl")
#: Longest sentence that an error may be, in characters; some name every method or the first ten lines.
LONGEST = 5_000


@dataclass(frozen=True)
class Target:
    """One parser of what comes from outside."""

    check: Callable[[bytes], None]
    seeds: list[bytes]
    words: list[bytes]


def target(name: str) -> Target:
    """The target of a name."""
    module = import_module(f"tests.fuzz.fuzz_{name}")
    return Target(module.check, module.SEEDS, module.WORDS)


def is_sentence(error: FoveateError) -> None:
    """Whether an error is one that a user may see."""
    text = str(error)
    assert text.strip() and len(text) <= LONGEST and "Traceback" not in text
    text.encode()

"""The code blocks of pages, in order, with the comments that say how each is used.

A block runs, unless the line before it is `<!-- not run: REASON -->`. After `<!-- file: NAME -->` it is written to a
file, which later blocks use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON, SHELL = ("python", "py"), ("sh",)
#: Pages that are generated from code; the pages of commands and methods have tests of their own.
GENERATED = ("methods.md", "matrix.md", "support.md", "paper_index.md", "flops.md", "reference.md")
FENCE = re.compile(r"((?:<!-- (?:not run|file): [^\n]*? -->\n)*)^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!-- (not run|file): (.*?) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: Its path in the repository.
        line: The line of its fence.
        language: What the fence names.
        code: The text.
        not_run: Why it is not run; empty if it is.
        file: The file that it is written to, if any.
    """

    page: str
    line: int
    language: str
    code: str
    not_run: str = ""
    file: str = ""


def pages() -> list[Path]:
    """README and every page that people write."""
    return [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in GENERATED)]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that are code or are written to a file."""
    text = page.read_text(encoding="utf-8")
    result = []
    for match in FENCE.finditer(text):
        said = dict(COMMENT.findall(match[1]))
        if match[2] in PYTHON + SHELL or "file" in said:
            line = text.count("\n", 0, match.start(2)) + 1
            name = page.relative_to(ROOT).as_posix()
            result.append(Block(name, line, match[2], match[3], said.get("not run", ""), said.get("file", "")))
    return result

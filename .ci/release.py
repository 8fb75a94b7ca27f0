"""Checks that a release has the same version everywhere, and prints its notes.

    python .ci/release.py check [TAG]   # code, CITATION.cff and CHANGELOG.md agree, and the tag with them
    python .ci/release.py notes         # the changelog's section of the code's version

The exit code is 1 if versions disagree.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def match(pattern: str, path: Path) -> tuple[str, ...]:
    """The groups of a pattern in a file, where `^` is the start of a line; empty if there is no match."""
    hit = re.search(pattern, path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return hit.groups() if hit else ()


def code_version(root: Path) -> str:
    """The version of the code, read without importing it; empty if there is none."""
    return "".join(match(r'^__version__ = "([^"\n]+)"', root / "src" / "foveate" / "__init__.py"))


def notes(root: Path) -> str:
    """The section of the changelog for the version of the code, without its heading; empty if there is none."""
    heading = rf"^## \[{re.escape(code_version(root))}\][^\n]*\n"
    return "".join(match(heading + r"(.*?)(?=^## |\Z)", root / "CHANGELOG.md")).strip()


def problems(root: Path, tag: str | None = None) -> list[str]:
    """One sentence per disagreement.

    The newest section of the changelog and CITATION.cff have the same version. Without a tag, the code has this version
    or, between releases, a development version (1.2.0.dev0).
    """
    version = code_version(root)
    released = match(r"^## \[(\d[^]\n]*)\] - (\d{4}-\d\d-\d\d)$", root / "CHANGELOG.md")
    if not version or not released:
        return [
            "__version__ in src/foveate/__init__.py or a heading '## [X.Y.Z] - YYYY-MM-DD' in CHANGELOG.md is missing."
        ]
    sentences = []
    if tag is not None and tag != f"v{version}":
        sentences.append(f"The tag is {tag}, and the code has version {version}: its tag is v{version}.")
    if version != released[0] and (tag is not None or ".dev" not in version):
        sentences.append(f"The code has version {version}, and the newest section of CHANGELOG.md {released[0]}.")
    elif version == released[0] and not notes(root):
        sentences.append(f"CHANGELOG.md says nothing about {version}.")
    cited = [*match(r'^version: "?([^"\n]+)', root / "CITATION.cff")]
    cited += match(r'^date-released: "?([^"\n]+)', root / "CITATION.cff")
    if cited != [*released]:
        sentences.append(
            f"CITATION.cff has {' of '.join(cited) or 'no version'}, CHANGELOG.md {' of '.join(released)}."
        )
    return sentences


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("check").add_argument("tag", nargs="?")
    actions.add_parser("notes")
    options = parser.parse_args()
    if options.action == "notes":
        print(notes(ROOT))
        return 0
    sentences = problems(ROOT, options.tag)
    print(*sentences or [f"everything says {code_version(ROOT)}"], sep="\n")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())

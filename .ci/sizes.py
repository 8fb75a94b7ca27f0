"""Rejects files over 500 kB outside the folders for weights, so that no large file is committed by accident.

    python .ci/sizes.py [FILES]    # default: all files that git tracks or would add

A file that must be large has an entry with a reason in `ALLOWED`. An unused entry is an error too. The exit code is 1
if there is an error.
"""

from __future__ import annotations

import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Maximum size in bytes of a file without an entry.
LIMIT = 500_000
#: Folders of trained weights, in which files can have any size.
WEIGHTS = ("src/foveate/embedded/", "benchmarks/models/")
#: Patterns of paths that can be larger, with the reason.
ALLOWED = {
    "benchmarks/results/accuracy-*.json": "results of all plans, from which the pages are generated",
    "docs/results/index.html": "the page of results, in one file that loads nothing from elsewhere",
    "docs/figures/demo.png": "the picture of the README, drawn by `make picture`",
    "tests/golden/vit_uhd/content-2-stages/model.safetensors": "weights with which the authors' code made the numbers",
}


def tracked(root: Path) -> list[str]:
    """Paths below a folder that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return [path for path in output.split("\0") if path]


def oversized(root: Path, paths: list[str]) -> dict[str, int]:
    """The size in bytes of every file over the limit that is not in a folder for weights.

    Links, and files that are deleted in the work tree, are skipped.
    """
    sizes = {}
    for path in paths:
        file = root / path
        if file.is_file() and not file.is_symlink() and not path.startswith(WEIGHTS):
            size = file.stat().st_size
            if size > LIMIT:
                sizes[path] = size
    return sizes


def problems(large: dict[str, int], allowed: dict[str, str], complete: bool) -> list[str]:
    """One sentence per file that is too large and, for a complete list, per unused pattern."""
    sentences = [
        f"{path} has {size / 1000:,.0f} kB; {LIMIT // 1000} kB are possible outside {' and '.join(WEIGHTS)}. "
        "Make it smaller, or allow it with a reason in .ci/sizes.py."
        for path, size in sorted(large.items())
        if not any(fnmatchcase(path, pattern) for pattern in allowed)
    ]
    if complete:
        sentences += [
            f".ci/sizes.py allows {pattern!r}, and no file over {LIMIT // 1000} kB has such a name: remove the entry."
            for pattern in allowed
            if not any(fnmatchcase(path, pattern) for path in large)
        ]
    return sentences


def main(arguments: list[str]) -> int:
    """See the module."""
    sentences = problems(oversized(ROOT, arguments or tracked(ROOT)), ALLOWED, complete=not arguments)
    print(*sentences, sep="\n", end="\n" if sentences else "")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

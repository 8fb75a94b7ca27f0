"""Generates parts of the documentation, or with `--check` lists what is out of date.

    python docs/generate.py [--check]

It generates `docs/figures/pvc.svg`, `docs/reference.md`, `docs/reference/`, `docs/methods.md`, `docs/methods/`,
`docs/matrix.md`, `docs/support.md`, `docs/paper_index.md`, `docs/flops.md`, `src/foveate/methods/index.json`,
`src/foveate/published.json`, and the blocks between `<!-- generated: NAME -->` and `<!-- end -->` in README.md and
the pages (see `generator/tables.py`).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from foveate.cost.papers import claims
from foveate.gallery import gallery as all_entries
from foveate.methods.entries import INDEX, index_of
from foveate.published import PUBLISHED, text_of
from generator import flops, gallery, method_pages, papers, pvc, reference, support, tables

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def wanted() -> dict[Path, str]:
    """Every generated file with its expected text."""
    files = {DOCS / "figures" / "pvc.svg": pvc.draw()}
    files[INDEX] = index_of(all_entries())
    files[PUBLISHED] = text_of(claims())
    pages = reference.pages() | gallery.pages() | papers.pages(ROOT) | support.pages()
    pages |= flops.pages() | method_pages.pages(ROOT)
    files |= {DOCS / path: text for path, text in pages.items()}
    for page in [ROOT / "README.md", *sorted(DOCS.glob("*.md")), ROOT / "benchmarks" / "README.md"]:
        if page not in files:
            files[page] = tables.fill(page.read_text(encoding="utf-8"), ROOT, page)
    return files


def main() -> int:
    """Write or check all files, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if anything is out of date")
    check = parser.parse_args().check

    files = wanted()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    orphans = [path for name in ("reference", "methods") for path in (DOCS / name).glob("*.md") if path not in files]
    if check:
        for path in stale + orphans:
            print(f"out of date: {path.relative_to(ROOT)} (make docs)", file=sys.stderr)
        return 1 if stale or orphans else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    for path in orphans:
        path.unlink()
        print(f"removed {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

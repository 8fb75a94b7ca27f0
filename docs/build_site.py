"""Prepares the sources of the documentation site in `build/docs`, for `zensical build` (`make site`).

    python docs/build_site.py

Pages are read on GitHub too, where links such as `../src/foveate/core/plan.py` lead to files of the repository. The
site contains `docs/` alone, so such links become addresses in the repository, `SITE_REPOSITORY` (an environment
variable, such as `https://github.com/OWNER/NAME`, that CI sets). Without it they become plain text. A link to a
file that does not exist is an error here; `zensical build --strict` checks links between pages and their anchors.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BUILD = ROOT / "build"
#: Pages of the site from files elsewhere in the repository.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "cost.md",
    "leaderboard/README.md": "leaderboard.md",
}
#: Folders whose files are copied as they are, and the style sheet.
ASSETS, STYLE = ("figures", "results"), "site.css"
#: Extensions of Python-Markdown that pages written for GitHub need.
EXTENSIONS = {
    "pymdownx.highlight": {},
    "pymdownx.superfences": {},
    "pymdownx.inlinehilite": {},
    "tables": {},
    "toc": {"permalink": True},
}
LINK = re.compile(r"(!?)\[((?:[^\[\]\\]|\\.|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


def pages() -> dict[Path, str]:
    """The source of every page, with its path on the site."""
    own = {path: path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md"))}
    return own | {ROOT / name: path for name, path in ELSEWHERE.items()}


def rewrite(text: str, source: Path, known: dict[Path, str], repository: str) -> str:
    """A page whose links work on the site.

    Args:
        text: The page.
        source: Its file.
        known: Every source with its path on the site.
        repository: The address of the repository, or nothing.

    Raises:
        FileNotFoundError: A link leads to a file that does not exist.
    """
    here = Path(known[source]).parent

    def replace(match: re.Match[str]) -> str:
        image, label, link = match.groups()
        target, _, anchor = link.partition("#")
        if "://" in link or not target or target.startswith("mailto:"):
            return match[0]
        path = Path(os.path.normpath(source.parent / target))
        if not path.exists():
            raise FileNotFoundError(f"{source.relative_to(ROOT)}: there is no {target}")
        if path in known or path.relative_to(ROOT).parts[:2] in {("docs", name) for name in ASSETS}:
            place = known.get(path, path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else "")
            return f"{image}[{label}]({os.path.relpath(place, here)}{f'#{anchor}' if anchor else ''})"
        if not repository:
            return label
        kind = "tree" if path.is_dir() else "blob"
        return f"{image}[{label}]({repository}/{kind}/main/{path.relative_to(ROOT).as_posix()})"

    parts = CODE.split(text)
    return "".join(part if CODE.fullmatch(part) else LINK.sub(replace, part) for part in _joined(parts))


def _joined(parts: list[str]) -> Iterator[str]:
    """Fenced blocks apart; inline code stays in its text, because labels of links contain it."""
    prose = ""
    for part in parts:
        if part.startswith("```"):
            yield prose
            yield part
            prose = ""
        else:
            prose += part
    yield prose


def navigation(entries: list[Any], available: set[str]) -> list[Any]:
    """The navigation, with `NAME/*` expanded and without pages that do not exist.

    Raises:
        FileNotFoundError: A page of the site is not in the navigation.
    """
    expanded = _expand(entries, available)
    missing = available - set(_listed(expanded))
    if missing:
        raise FileNotFoundError(f"docs/zensical.toml: the navigation lacks {', '.join(sorted(missing))}")
    return expanded


def _expand(entries: list[Any], available: set[str]) -> list[Any]:
    result: list[Any] = []
    for entry in entries:
        title, target = next(iter(entry.items())) if isinstance(entry, dict) else ("", entry)
        if isinstance(target, list):
            result.append({title: _expand(target, available)})
        elif target.endswith("/*"):
            result.append({title: sorted(name for name in available if name.startswith(target[:-1]))})
        elif target in available:
            result.append(entry)
    return result


def _listed(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(target, list):
                yield from _listed(target)
            else:
                yield target


def main() -> int:
    """Write `build/docs` and `build/mkdocs.yml`, and return the exit code."""
    repository = os.environ.get("SITE_REPOSITORY", "").rstrip("/")
    known = pages()
    project: dict[str, Any] = tomllib.loads((DOCS / "zensical.toml").read_text(encoding="utf-8"))["project"]
    target = BUILD / "docs"
    shutil.rmtree(target, ignore_errors=True)
    try:
        project["nav"] = navigation(project["nav"], set(known.values()))
        for source, path in known.items():
            file = target / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(rewrite(source.read_text(encoding="utf-8"), source, known, repository), encoding="utf-8")
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    for name in ASSETS:
        if (DOCS / name).is_dir():
            shutil.copytree(DOCS / name, target / name)
    shutil.copy(DOCS / STYLE, target / STYLE)
    project |= {
        "docs_dir": "docs",
        "site_dir": "site",
        "extra_css": [STYLE],
        "markdown_extensions": [{name: options} for name, options in EXTENSIONS.items()],
    }
    if repository:
        project |= {"repo_url": repository, "repo_name": repository.rsplit("/", 1)[1]}
    # JSON is YAML; Zensical reads this file as one of its own.
    (BUILD / "mkdocs.yml").write_text(json.dumps(project, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

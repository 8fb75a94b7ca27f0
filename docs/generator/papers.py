"""The index of papers: where each is implemented, and against what the implementation was verified."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from foveate.cards import cards
from foveate.gallery import gallery
from foveate.models.connectors import all_connectors

#: Matches the first line of tests that compare with a slow loop or with equations.
SAID = re.compile(r"\bloops?\b|by hand|written out|pseudocode")
#: Matches a reference function in a test.
LOOP = re.compile(r"^def (loop|slow_\w+|\w*by_(the_paper|hand|loop|walking))\(", re.MULTILINE)
#: Matches docstrings of implementations for which no code was available to compare with.
UNPUBLISHED = re.compile(r"no public code|no code is public|code and the sizes of their module were not at hand")
#: Matches golden values that a test reads.
READ = re.compile(r'"golden" / "(\w+\.json)"')


@dataclass(frozen=True)
class Implemented:
    """An implementation of a paper.

    Args:
        paper: Such as "arXiv 2503.02175".
        title: Title of the paper.
        name: Its name in foveate.
        site: The site at which it acts.
        module: The module that implements it.
        golden: Folder or file of golden values under `tests/golden/`; if empty, the tests of the module name them.
    """

    paper: str
    title: str
    name: str
    site: str
    module: str
    golden: str = ""


#: Golden values of a whole site, whose methods are verified by the rewards that train them.
GOLDEN = {"acquisition": "acquisition.json"}
#: Implementations that are neither methods of plans nor have a card.
MODELS = (
    Implemented(
        "arXiv 2511.21150",
        "LLaVA-UHD v3: Progressive Visual Compression for Efficient Native-Resolution Encoding in MLLMs",
        "ViT-UHD",
        "encoder",
        "foveate.models.vit_uhd.vit_uhd",
        "vit_uhd",
    ),
    *(
        Implemented(connector.paper, connector.title, f"{name} (connector)", "connector", connector.__module__)
        for name, connector in all_connectors().items()
        if connector.paper and connector.nested
    ),
)


def pages(root: Path) -> dict[str, str]:
    """The page by its path under `docs/`."""
    listed = [
        *MODELS,
        *(
            Implemented(one.paper, one.title, one.name, one.site, one.module, GOLDEN.get(one.site, ""))
            for one in [*gallery(), *cards()]
        ),
    ]
    papers: dict[str, list[Implemented]] = {}
    for one in listed:
        if one.paper:
            papers.setdefault(one.paper, []).append(one)
    rows = []
    for paper, parts in sorted(papers.items(), key=lambda item: item[1][0].title.lower()):
        files = [_file(root, part) for part in parts]
        rows.append(
            [
                f"{_escaped(parts[0].title)}, [{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv ')})",
                _lines(f"`{part.name}`" for part in parts),
                _lines(part.site.replace("_", " ") for part in parts),
                _lines(f"[{file.name}](../{file.relative_to(root)})" for file in files),
                _lines(_verified(root, part, file) for part, file in zip(parts, files, strict=True)),
            ]
        )
    header = ["paper", "name", "site", "file", "verified against"]
    return {
        "paper_index.md": "\n".join(
            [
                "# Papers",
                "",
                f"The {len(rows)} papers that are implemented in foveate, sorted by title and generated from the code",
                "and its tests by `make docs`. *Authors' numbers*: outputs of the authors' own code (`tests/golden/`",
                "names the commit). *Reference loop*: a slow, direct implementation of the paper's equations in the",
                "tests. *Shared suite*: only the tests that every method of its site must pass. *From the paper*: no",
                "code was public or available.",
                "",
                f"| {' | '.join(header)} |",
                f"|{'---|' * len(header)}",
                *(f"| {' | '.join(row)} |" for row in rows),
                "",
            ]
        )
    }


def _file(root: Path, part: Implemented) -> Path:
    """The file of an implementation, or its folder."""
    path = root / "src" / part.module.replace(".", "/")
    return path if path.is_dir() else path.with_suffix(".py")


def _verified(root: Path, part: Implemented, file: Path) -> str:
    folder = root / "tests" / file.relative_to(root / "src" / "foveate").parent
    golden = root / "tests" / "golden"
    if part.golden:
        return f"[authors' numbers](../{(golden / part.golden).relative_to(root)})"
    said = []
    tests = _test_of(folder, file.stem)
    text = tests.read_text(encoding="utf-8") if tests else ""
    # Named like the module, or read by its tests, which for parts of a model may be tests of that model.
    names = dict.fromkeys([*READ.findall(text), *(path.name for path in golden.glob(f"{file.stem}.json"))])
    said += [f"[authors' numbers](../{(golden / name).relative_to(root)})" for name in names]
    if tests and (SAID.search(text.splitlines()[0]) or LOOP.search(text)):
        said.append(f"[reference loop](../{tests.relative_to(root)})")
    suite = folder / "test_promises.py"
    if not said and suite.exists():
        said.append(f"[shared suite](../{suite.relative_to(root)})")
    elif not said and tests:
        said.append(f"[tests](../{tests.relative_to(root)})")
    source = " ".join(path.read_text(encoding="utf-8") for path in (file.glob("*.py") if file.is_dir() else [file]))
    if UNPUBLISHED.search(" ".join(source.split())):
        said.append("from the paper")
    return ", ".join(said)


def _test_of(folder: Path, stem: str) -> Path | None:
    """The test file of a module; draft models share one."""
    names = (f"test_{stem}.py", *(("test_drafts.py",) if folder.name == "decoding" else ()))
    return next((folder / name for name in names if (folder / name).exists()), None)


def _lines(texts: Iterable[str]) -> str:
    return "<br>".join(texts)


def _escaped(text: str) -> str:
    return text.replace("[CLS]", "\\[CLS\\]").replace("|", "\\|")

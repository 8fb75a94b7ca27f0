"""Report files, which are all rendered before the first page is replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveate.core.errors import FoveateError
from foveate.report.charts import time_charts, tokens_charts, unique
from foveate.report.grouping import entries
from foveate.report.html import GENERATOR
from foveate.report.images import Album, Gallery, plan_of, write
from foveate.report.pages import PICTURES, PLOTS, Report
from foveate.report.rendering import png
from foveate.report.results import read
from foveate.report.trained import trained_charts

TITLE = "Reading fewer visual tokens: what every method costs and keeps"


def build(
    paths: Sequence[Path],
    folder: Path,
    *,
    title: str = TITLE,
    pictures: bool = True,
    pictures_models: Sequence[str] = (),
    redraw: bool = False,
    report: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Build a report from result files.

    Nothing is written before all files have been read. Pictures are kept between runs; pages and plots are written
    in a temporary folder and then moved, the overview last.

    Args:
        paths: Files of `foveate bench accuracy`, `speed`, `joint`, `trained`, `released`, and of the earlier
            `bench selection`.
        folder: Of the report; it is made if need be.
        title: Of the page.
        pictures: Whether to draw the tokens that methods keep.
        pictures_models: Folders or Hub ids of models that make them, or "embedded", which is the default; a method is
            shown on the first of them that can follow it.
        redraw: Redraw all images.
        report: Called with a line about everything begun.

    Returns:
        What was made: `page`, `pages`, `plots`, `pictures` (drawn, found, impossible) and `rows` by kind.

    Raises:
        FoveateError: a file cannot be reported, the folder holds other files, or matplotlib is missing.
    """
    results = read(paths)
    _check_folder(folder)
    tokens, times = unique(tokens_charts(results)), unique(time_charts(results))
    trained = trained_charts(results.trained)
    plots = {f"{PLOTS}/{chart.name}.png": png(chart) for chart in (*tokens, *times, *trained)}
    albums: dict[str, Album] = {}
    gallery = Gallery(folder / PICTURES, pictures_models, again=redraw, report=report)
    if pictures:
        albums[""] = gallery.album("")
        for method in results.methods:
            if entry := entries().get(method):
                albums[method] = gallery.album(plan_of(method, entry))
    made = Report(title, results, tokens, times, albums)
    pages = {name: content.encode(errors="replace") for name, content in made.pages().items()}
    for name, content in (plots | pages).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content)
    for path in folder.glob("*/*.html"):  # of methods that an earlier report had
        if path.relative_to(folder).as_posix() not in pages and _is_ours(path):
            path.unlink()
    if pictures:
        gallery.sweep()
    return {
        "page": str(folder / "index.html"),
        "pages": len(pages),
        "plots": [str(folder / name) for name in plots],
        "pictures": {
            "drawn": gallery.drawn,
            "found": gallery.found,
            "impossible": {method: album.reason for method, album in albums.items() if album.reason},
        },
        "rows": {kind: len(getattr(results, kind)) for kind in ("accuracy", "speed", "joint", "trained")},
    }


def _check_folder(folder: Path) -> None:
    """Raise FoveateError instead of overwriting a folder that holds no report."""
    if folder.exists() and not folder.is_dir():
        raise FoveateError(f"{folder} is a file; a report is a folder.")
    page = folder / "index.html"
    if page.exists() and not _is_ours(page):
        raise FoveateError(f"{page} is another page, not a report; choose another folder.")


def _is_ours(page: Path) -> bool:
    """Whether a page says that `foveate report` made it."""
    return f'content="{GENERATOR}"' in page.read_text(encoding="utf-8", errors="replace")[:2000]

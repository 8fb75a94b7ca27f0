"""`foveate methods`: list of token compression methods."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Annotated

import typer

from foveate.cards import Card, cards
from foveate.commands.options import Json
from foveate.console import console, print_json
from foveate.core.patterns import matching
from foveate.core.plugin_names import GROUP, IMPORTS
from foveate.methods.entries import Entry, indexed, refuse_unknown

EXAMPLES = """
    foveate methods
    foveate methods divprune
    foveate methods "*prune*" --json
"""

#: Terminal width from which the table includes the mechanism.
WIDE = 100

#: Up to this many methods are described in full; more are listed in a table.
IN_FULL = 3


def methods(
    pattern: Annotated[
        str | None,
        typer.Argument(help="Wildcards for a name or title, such as '*prune*'.", show_default="all methods"),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the methods that a plan can name: what each does and needs, and which model families it supports.

    Up to three methods are described in full, more as a table. What a method needs is measured while the model encodes
    the image; for encoders without a [CLS] token some papers define a substitute, whose use is noted in the report of a
    run. No model is loaded.
    """
    entries = sorted([*indexed(), *_of_other_packages()], key=lambda entry: entry.name)
    others = cards(pattern)
    matches = matching(entries, pattern)
    if not matches and not others:
        refuse_unknown(pattern, [entry.name for entry in entries])
    if as_json:
        print_json({"methods": [entry.as_json() for entry in matches], "others": [card.as_json() for card in others]})
        return
    if len(matches) <= IN_FULL:
        for entry in matches:
            _describe(entry)
    else:
        _table(matches)
    if others and len(matches) > IN_FULL:
        names = ", ".join(card.name for card in others)
        console.print(f"Outside of plans, in decoding, KV caches and models: {names}.", markup=False, style="dim")
    else:
        for card in others:
            _show(card)


def _of_other_packages() -> list[Entry]:
    """Methods registered by other packages, which are imported only where there may be some."""
    loaded = "foveate.core.plan" in sys.modules  # by a program, which may have registered methods of its own
    if not (loaded or os.environ.get(IMPORTS) or entry_points(group=GROUP)):
        return []
    from foveate.gallery import gallery

    known = {entry.name for entry in indexed()}
    return [entry for entry in gallery() if entry.name not in known]


def _table(entries: Sequence[Entry]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("name", no_wrap=True)
    table.add_column("site", no_wrap=True)
    wide = console.width >= WIDE
    if wide:
        table.add_column("mechanism", no_wrap=True)
    table.add_column("budget", no_wrap=True)
    table.add_column("exact", no_wrap=True)
    table.add_column("trained", no_wrap=True)
    table.add_column("runs on", no_wrap=True, justify="right")
    table.add_column("needs", overflow="fold", min_width=12)
    for entry in entries:
        needs = ", ".join(kind.replace("_", " ") for kind in entry.needs) or "-"
        shown = "needed" if entry.budget == "count" else entry.budget
        table.add_row(
            entry.name,
            entry.site,
            *([entry.mechanism[0]] if wide else []),
            shown,
            _yes(entry.static_count),
            _yes(entry.trained),
            f"{len(entry.runs_on)}/{len(entry.families)}",
            needs,
        )
    console.print(table)
    console.print(
        f"\n{len(entries)} methods; `foveate methods {entries[0].name}` describes one. Exact: the number of tokens is "
        "known from sizes alone.",
        markup=False,
        style="dim",
    )


def _describe(entry: Entry) -> None:
    console.print(f"[bold]{entry.name}[/bold]  {entry.summary}")
    arguments = ", ".join(f"{name}={value!r}" for name, value in entry.arguments.items())
    needs = ", ".join(
        kind.replace("_", " ") + (" (or attention received)" if substitute else "")
        for kind, substitute in entry.needs.items()
    )
    budget = {"count": "needed", "optional": "has its own rule, a budget overrides it", "none": "takes none"}
    rows = {
        "paper": entry.title + (f", {entry.paper}" if entry.paper else ""),
        "site": entry.site,
        "mechanism": ", ".join(entry.mechanism),
        "modality": ", ".join(entry.modality),
        "needs": needs or "only the tokens",
        "budget": budget[entry.budget],
        "exact": "yes, the number of tokens is known from sizes alone" if entry.static_count else "no",
        "trained": _yes(entry.trained),
        "arguments": arguments or "none",
    }
    groups: dict[tuple[str, str], list[str]] = {}
    for name, support in entry.families.items():
        groups.setdefault((support.outcome, support.why), []).append(name)
        if (other := support.without_cls) is not None:
            groups.setdefault((other.outcome, other.why), []).append(f"{name} without [CLS]")
    words = {"runs": "runs on", "substitute": "runs with a substitute on", "no": "cannot run on"}
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(f"  {name}", _plain(text))
    for (outcome, why), names in groups.items():
        table.add_row("  families", _plain(f"{words[outcome]} {', '.join(names)}" + (f" ({why})" if why else "")))
    console.print(table)
    console.print()


def _show(card: Card) -> None:
    """Print the card of something that acts outside of plans."""
    from rich.table import Table

    console.print(f"[bold]{card.name}[/bold]  {_plain(card.summary)}")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "paper": f"{card.title}, {card.paper}",
        "site": card.site,
        "mechanism": ", ".join(card.mechanism),
        "modality": ", ".join(card.modality),
        "trained": _yes(card.trained),
        "use": card.use,
    }
    for name, text in rows.items():
        table.add_row(f"  {name}", _plain(text))
    console.print(table)
    console.print()


def _plain(text: str) -> str:
    """Escape brackets for rich."""
    from rich.markup import escape

    return escape(text)


def _yes(value: bool) -> str:
    return "yes" if value else "no"

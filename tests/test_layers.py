"""What may import what: the table of docs/DESIGN.md, the contracts of pyproject.toml and the folders are one thing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "importlinter"
]["contracts"]
LAYERS = next(contract for contract in CONTRACTS if contract["type"] == "layers")
EVERYTHING_ABOVE = "rows above"


def name_of(entry: str) -> str:
    return entry.removesuffix("/").removesuffix(".py")


def table() -> list[tuple[set[str], set[str] | None]]:
    """The names in each row of the table, and what they may import; None: all that stands above."""
    text = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"\| folder \| holds \| may import \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", text)
    rows = []
    for line in lines.splitlines():
        folders, _, imports = (cell.strip() for cell in line.strip("|").split(" | "))
        names = {name_of(entry) for entry in re.findall(r"`([^`]+)`", folders)}
        rows.append((names, None if imports == EVERYTHING_ABOVE else set(re.findall(r"`([^`]+)`", imports))))
    return rows


def layers() -> list[set[str]]:
    """The layers of the contract, the lowest first."""
    return [{name.strip() for name in layer.split("|")} for layer in reversed(LAYERS["layers"])]


def allowed() -> dict[str, set[str]]:
    """What the contracts let each folder import."""
    found: dict[str, set[str]] = {}
    below: set[str] = set()
    for layer in layers():
        found |= {name: set(below) for name in layer}
        below |= layer
    for contract in CONTRACTS:
        if contract["type"] == "forbidden":
            for source in contract["source_modules"]:
                found[source.removeprefix("foveate.")] -= {
                    name.removeprefix("foveate.") for name in contract["forbidden_modules"]
                }
    return found


def test_the_table_and_the_contracts_name_every_folder_and_module() -> None:
    package = ROOT / "src" / "foveate"
    present = {path.parent.name for path in package.glob("*/__init__.py")} | {
        path.stem for path in package.glob("*.py")
    }
    present -= {"__init__", *LAYERS["exhaustive_ignores"]}
    rows = [name for names, _ in table() for name in names]
    assert len(rows) == len(set(rows))
    assert set(rows) == set().union(*layers()) == present


def test_every_folder_of_modules_is_a_package() -> None:
    """import-linter passes by a folder without `__init__.py`."""
    folders = {path.parent for path in (ROOT / "src" / "foveate").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_rows_stand_in_the_order_of_the_layers() -> None:
    level = {name: number for number, layer in enumerate(layers()) for name in layer}
    order = [level[name] for names, _ in table() for name in sorted(names)]
    assert order == sorted(order)


@pytest.mark.parametrize(("names", "imports"), table(), ids=lambda value: "-".join(sorted(value)) if value else "all")
def test_contracts_allow_what_the_table_says(names: set[str], imports: set[str] | None) -> None:
    rows, contracts = table(), allowed()
    if imports is None:  # a row is a whole layer: what stands in it does not import each other
        imports = set().union(*(above for above, _ in rows[: rows.index((names, None))]))
        assert names in layers()
    for name in names:
        assert contracts[name] == imports

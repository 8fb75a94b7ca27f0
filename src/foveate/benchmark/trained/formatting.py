"""The table of trained connectors for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from foveate.benchmark.trained.claims import NO_ROW

Row = dict[str, Any]


def to_first_token(row: Row) -> int:
    """FLOPs of encoder, connector and language model to the first token."""
    return sum(row["flops"].values())


def seconds(row: Row) -> float | None:
    """Median time to the first token."""
    return row["first_token_seconds"]["median"] if row.get("first_token_seconds") else None


#: What a front is drawn over, with its title.
COSTS: dict[str, Callable[[Row], float | None]] = {
    "tokens": lambda row: row["tokens"],
    "GFLOPs to the first token": lambda row: to_first_token(row) / 1e9,
    "seconds to the first token": seconds,
}


def front(rows: Sequence[Row], cost: Callable[[Row], float | None] = COSTS["tokens"]) -> list[Row]:
    """Rows that no other row exceeds in accuracy at the same cost or less, the cheapest first."""
    kept: list[Row] = []
    known = [(value, row) for row in rows if (value := cost(row)) is not None]
    for _, row in sorted(known, key=lambda pair: (pair[0], -pair[1]["accuracy"], pair[1]["training"])):
        if not kept or row["accuracy"] > kept[-1]["accuracy"]:
            kept.append(row)
    return kept


def table(document: dict[str, Any], brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table; rows on a front are marked with the letters T (tokens), F (FLOPs) and S (seconds).

    Args:
        document: Content of a result file.
        brief: Without the columns of tasks, of encoder and connector, and of training.
    """
    rows = document["rows"]
    fronts = dict(zip("TFS", (front(rows, cost) for cost in COSTS.values()), strict=True))
    tasks = [] if brief else list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    training = [] if brief else ["training, PFLOPs"]
    named = ["encoder, GFLOPs", "connector, GFLOPs", "first token, GFLOPs", "first token, ms"]
    costs = ["GFLOPs", "ms"] if brief else named
    header = [
        "connector", "tokens", "accuracy", "interval", *(task.replace("_", " ") for task in tasks), *costs, *training,
        "front",
    ]  # fmt: skip
    lines = []
    for row in rows:
        median, learned = seconds(row), row["training_cost"]
        shares = [f"{100 * row['tasks'][task]['accuracy']:.0f}" if task in row["tasks"] else "" for task in tasks]
        lines.append(
            [
                row["system"],
                f"{row['tokens']}",
                f"{100 * row['accuracy']:.1f} %",
                f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
                *shares,
                *([] if brief else [f"{row['flops'][part] / 1e9:.3f}" for part in ("encoder", "connector")]),
                f"{to_first_token(row) / 1e9:.2f}",
                "" if median is None else f"{1e3 * median:.0f}",
                *([f"{learned['flops'] / 1e15:.3f}"] if training else []),
                "".join(letter for letter, members in fronts.items() if any(row is one for one in members)),
            ]
        )
    return header, lines


def claim_line(claim: dict[str, Any]) -> str:
    """One claim and what the rows show of it."""
    said = f"{claim['system']} ({claim['paper']}): {claim['claim']}"
    if claim["verdict"] == NO_ROW:
        return f"{said}: {NO_ROW}."
    tokens = ", ".join(map(str, claim["tokens"]))
    difference, low, high = (f"{100 * claim[name]:+.1f}" for name in ("difference", "low", "high"))
    return f"{said}: {claim['verdict']}; {difference} points ({low} to {high}) at {tokens} tokens."


def markdown(document: dict[str, Any]) -> str:
    """Table, claims and note of a result as Markdown."""
    header, rows = table(document)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    parts = ["\n".join(f"| {' | '.join(line)} |" for line in lines)]
    parts.append(
        "Front: no other row has a higher accuracy with as many tokens (T), FLOPs to the first token (F) or seconds "
        "to it (S), or fewer. Always giving the most frequent answer reaches "
        + ", ".join(
            f"{100 * task['majority']:.0f} % ({name.replace('_', ' ')})"
            for name, task in document["rows"][0]["tasks"].items()
        )
        + "."
    )
    parts.append("\n".join(f"- {claim_line(claim)}" for claim in document["claims"]))
    parts.append(document["note"])
    return "\n\n".join(parts)

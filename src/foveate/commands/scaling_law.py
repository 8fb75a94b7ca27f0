"""`foveate scaling-law`: a power law of error over the size of language models and visual tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.commands.options import Json
from foveate.console import console, print_json
from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from foveate.cost.scaling_law import Fit

EXAMPLES = """
    foveate scaling-law runs.csv
    foveate scaling-law runs.json --text 200 --plot law.png
"""
#: Number of costs that curves are drawn for.
CURVES = 5


def scaling_law(
    results: Annotated[
        Path,
        typer.Argument(
            help="CSV file, or JSON list of objects, with the columns parameters (of the language model), tokens "
            "(visual, of an image) and error (0 to 1)."
        ),
    ],
    text: Annotated[int, typer.Option(min=0, help="Number of text tokens of a prompt, in the cost of inference.")] = 50,
    resamples: Annotated[int, typer.Option(min=20, help="Bootstrap samples for the intervals.")] = 200,
    plot: Annotated[
        Path | None, typer.Option(help="PNG, SVG or PDF file for curves of equal cost.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit error = A / (N^alpha T^beta) + D to runs with N parameters and T visual tokens.

    Prints both exponents with 95 % intervals from a bootstrap, and for several costs of inference, 2 N (T + text)
    FLOPs, the number of tokens with the lowest error. The number of tokens is between 1 and the largest that was run.
    """
    from foveate.cost.scaling_law import fit, read_rows

    if plot is not None:
        _require_matplotlib()
    rows = read_rows(results)
    fitted = fit(rows, resamples)
    document = describe(rows, fitted, text)
    if plot is not None:
        _draw(rows, fitted, text, plot)
    if as_json:
        print_json(document)
    else:
        _print(document)


def describe(rows: list[tuple[float, float, float]], fitted: Fit, text: int) -> dict[str, Any]:
    """Return what the command prints as plain JSON values."""
    law, most = fitted.law, int(max(row[1] for row in rows))
    tokens = law.best_tokens(text, most)
    optima = []
    for cost in _costs(rows, text):
        size = cost / (2 * (tokens + text))
        optima.append({"flops": cost, "tokens": tokens, "parameters": size, "error": law.error(size, tokens)})
    return {
        "rows": len(rows),
        "text": text,
        "A": law.scale,
        "alpha": {"value": law.alpha, "low": fitted.alpha[0], "high": fitted.alpha[1]},
        "beta": {"value": law.beta, "low": fitted.beta[0], "high": fitted.beta[1]},
        "D": law.floor,
        "rmse": fitted.rmse,
        "optima": optima,
    }


def _costs(rows: list[tuple[float, float, float]], text: int) -> list[float]:
    """FLOPs per prompt, evenly spaced in their logarithm over those of the runs."""
    costs = [2 * size * (tokens + text) for size, tokens, _ in rows]
    ratio = max(costs) / min(costs)
    return [min(costs) * ratio ** (step / (CURVES - 1)) for step in range(CURVES)]


def _print(document: dict[str, Any]) -> None:
    from rich.table import Table

    console.print(
        f"{document['rows']} runs: error = {document['A']:.4g} / (N^alpha T^beta) + {document['D']:.4g}, N in billions "
        f"of parameters; residual {document['rmse']:.2g}",
        markup=False,
    )
    for name in ("alpha", "beta"):
        value = document[name]
        console.print(f"{name} = {value['value']:.4f} (95 %: {value['low']:.4f} to {value['high']:.4f})", markup=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("FLOPs of a prompt", "best tokens", "parameters", "error"):
        table.add_column(title, justify="right")
    for row in document["optima"]:
        table.add_row(f"{row['flops']:.2e}", str(row["tokens"]), f"{row['parameters']:.2e}", f"{row['error']:.4f}")
    console.print(table)


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise FoveateError("--plot needs matplotlib; install it with `pip install foveate[bench]`.") from error


def _draw(rows: list[tuple[float, float, float]], fitted: Fit, text: int, path: Path) -> None:
    """Draw the predicted error over visual tokens, one curve for every cost, with the best point of each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    law, most = fitted.law, int(max(row[1] for row in rows))
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    tokens = sorted({round(most ** (step / 99)) for step in range(100)})
    best = law.best_tokens(text, most)
    for cost in _costs(rows, text):
        curve = [law.error(cost / (2 * (count + text)), count) for count in tokens]
        (line,) = axes.plot(tokens, curve, linewidth=1.2, label=f"{cost:.1e} FLOPs")
        axes.plot([best], [law.error(cost / (2 * (best + text)), best)], "o", color=line.get_color())
    axes.plot([row[1] for row in rows], [row[2] for row in rows], "x", color="grey", markersize=4, label="runs")
    axes.set_xscale("log")
    axes.set_xlabel("visual tokens")
    axes.set_ylabel("error")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise FoveateError(f"the plot cannot be written to {path}: {error}.") from error

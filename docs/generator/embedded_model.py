"""Blocks of `docs/embedded-model.md` besides the evaluation: training, warnings and the examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveate.app.comparison import BASELINES
from foveate.benchmark.results import read_results
from foveate.statistics import wilson_interval


def training(root: Path) -> str:
    """How long the embedded model was trained, from its record."""
    from generator.tables import table

    record = read_results(root / "src/foveate/embedded/training.json")
    rows = []
    for name, stage in record["stages"].items():
        characters, answers = (stage.get(key) for key in ("cell_accuracy", "answer_accuracy"))
        shares = ("" if share is None else f"{share:.0%}" for share in (characters, answers))
        rows.append([f"`{name}`", f"{stage['steps']:,}", *shares])
    header = ["stage", "steps", "tokens whose characters are named", "characters of answers"]
    total = f"Trained on {record['samples']:,} images in {record['seconds'] / 3600:.1f} hours."
    return f"{total} At the end of the stages:\n\n{table(header, rows)}"


def stages(root: Path) -> str:
    """Right answers by task after the stages of the training, from `python -m foveate.benchmark.embedded`."""
    from generator.tables import percent, table

    results = root / "benchmarks/results"
    record = read_results(root / "src/foveate/embedded/training.json")
    paths = {name: results / f"embedded-after-{name}.json" for name in record["stages"]}
    runs: dict[str, dict[str, Any]] = {name: read_results(path) for name, path in paths.items() if path.exists()}
    if not runs:
        return "*Not measured yet (`python -m foveate.benchmark.embedded`).*"
    counts = {name: {task: row["count"] for task, row in run["tasks"].items()} for name, run in runs.items()}
    last = list(runs)[-1]
    for name in runs:
        if counts[name] != counts[last]:
            raise ValueError(f"{paths[name]} answers other questions than the last stage: evaluate them alike.")
    rows = [
        [f"`{task}`", str(count), *(percent(run["tasks"][task]["accuracy"]) for run in runs.values())]
        for task, count in counts[last].items()
    ]
    header = ["task", "questions", *(f"after `{name}`" for name in runs)]
    made = f"From `benchmarks/results/embedded-after-*.json`, the last one created by `{runs[last]['command']}`."
    return f"{table(header, rows)}\n\n{made}"


def warnings(root: Path) -> str:
    """How often `ask` warns, from `benchmarks/domain.py`."""
    from generator.tables import percent, table

    path = root / "benchmarks/results/domain-embedded.json"
    if not path.exists():
        return "*Not measured yet (`python benchmarks/domain.py`).*"
    run: dict[str, Any] = read_results(path)
    least = run["settings"]["trained_text_height"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for rate in run["rates"]:
        groups.setdefault(_group(rate, least), []).append(rate)
    rows = []
    for name, rates in groups.items():
        count, warned = (sum(rate[key] for rate in rates) for key in ("count", "warned"))
        low, high = wilson_interval(warned, count)
        rows.append([name, str(count), f"**{percent(warned / count)}**", f"{percent(low)} to {percent(high)}"])
    made = f"From `{path.relative_to(root)}`, created by `{run['command']}`. {run['note']}"
    return f"{table(['images', 'number', 'with a warning', '95 % interval'], rows)}\n\n{made}"


def _group(rate: dict[str, Any], least: float) -> str:
    """The row of the table in which a rate is counted."""
    from foveate.answering.limits import TOLERANCE

    what = rate["what"]
    if rate["kind"] == "inside":
        return "of the domain, with text" if not what.endswith(("shapes", "colour")) else "of the domain, shapes"
    if rate["kind"] == "larger":
        return "larger than the domain"
    if rate["kind"] == "smaller":
        return f"of the domain, made smaller by {what}"
    if float(what) < TOLERANCE * least:
        return f"text with capitals of less than {TOLERANCE * least:.3g} px"
    return f"text with capitals of {least:g} px or more" if float(what) >= least else f"text with capitals of {what} px"


def examples(root: Path) -> str:
    """The plan of the demonstration and its baselines on drawings, from `benchmarks/examples.py`."""
    from generator.tables import percent, table

    path = root / "benchmarks/results/examples-embedded.json"
    if not path.exists():
        return "*Not measured yet (`sh benchmarks/embedded.sh RUN examples`).*"
    run: dict[str, Any] = read_results(path)
    titles = {"full model": "full model", "plan": f"`{run['plan']}`", **BASELINES}
    rows = []
    for name, right in run["right"].items():
        asked = [row["answers"][name] for row in run["rows"]]
        low, high = wilson_interval(right, len(asked))
        tokens = sum(answer["tokens"] for answer in asked) / len(asked)
        interval = f"{percent(low)} to {percent(high)}"
        rows.append([titles[name], f"**{right}** of {len(asked)}", interval, f"{tokens:.0f}"])
    made = f"From `{path.relative_to(root)}`, created by `{run['command']}`. {run['note']}"
    faster = f"With the plan the whole answer is {run['speed_up']:.2f} times as fast as without one (median)."
    return f"{table(['', 'right', '95 % interval', 'tokens read'], rows)}\n\n{faster} {made}"

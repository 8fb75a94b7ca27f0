"""Tables of what `foveate train-method` trained: `pruner-*.json`, `router-*.json`, `draft-*.json`, `ph-reg-*.json`."""

from __future__ import annotations

import shlex
from pathlib import Path

from foveate.core.full_model import FULL_MODEL
from generator.accuracy import Row, runs


def pruners(root: Path) -> str:
    """Results of `foveate train-method covipal`: how often the next token equals that of the full model."""
    header = ["model", "training questions", "budget", "CoViPAL", "FastV", "random"]
    lines = []
    measured = runs(root, "pruner")
    for run in measured:
        rows = {plan: row for plan, row in run["measured"].items() if plan != FULL_MODEL}
        for budget in dict.fromkeys(plan.rpartition(":")[2] for plan in rows):
            plans = [plan for plan in rows if plan.endswith(f":{budget}")]
            by_method = {plan.split(":")[0].split("(")[0]: rows[plan]["agreement"] for plan in plans}
            shares = [f"{100 * by_method[name]:.1f} %" for name in (_method(run), "fastv", "random-decoder")]
            lines.append([_model(run), f"{_questions(run):,}", budget.split("@")[0], f"**{shares[0]}**", *shares[1:]])
    return _with_sources(measured, header, lines)


def routers(root: Path) -> str:
    """Results of `foveate train-method dpn`, with random tokens and average pooling to the same number as baselines."""
    header = ["model", "training questions", "plan", "tokens in the last layer", "same next token"]
    lines = []
    measured = runs(root, "router")
    for run in measured:
        for plan, row in run["measured"].items():
            if plan != FULL_MODEL:
                shown = "**dpn**" if plan.startswith("dpn(") else f"`{plan}`"
                tokens, same = (f"{100 * row[name]:.1f} %" for name in ("tokens", "agreement"))
                lines.append([_model(run), f"{_questions(run):,}", shown, tokens, same])
    return _with_sources(measured, header, lines)


def drafts(root: Path) -> str:
    """Results of `foveate train-method specvlm` and `flash`: tokens per pass, identical answers, and speed-up."""
    measures = ["tree or chain", "tokens per pass", "identical answers", "speed-up"]
    header = ["model", "draft model", "training questions", *measures]
    lines = []
    measured = runs(root, "draft")
    for run in measured:
        for shape, row in run["measured"].items():
            same, times = f"{row['identical']} of {row['answers']}", f"{row['speed_up']:.2f}"
            if shape == "default":
                if _method(run) == "flash":  # drafts a chain by default, which has a separate row
                    continue
                shape = "tree"
            start = [_model(run), _method(run), f"{_questions(run):,}", shape]
            lines.append([*start, f"**{row['acceptance_length']:.2f}**", same, times])
    return _with_sources(measured, header, lines)


def registers(root: Path) -> str:
    """Results of `foveate train-method ph-reg`: outlier tokens before and after, with and without registers."""
    header = ["model", "registers", "outlier tokens", "largest norm / median", "cosine to the averaged teacher"]
    lines = []
    measured = runs(root, "ph-reg")
    for run in measured:
        words = shlex.split(run["command"])
        count = words[words.index("--registers") + 1] if "--registers" in words else "16"
        for name, row in run["measured"].items():
            shown = name if name == "before" else f"**{count}**"
            outliers, largest, similarity = (row[key] for key in ("outliers", "largest_norm", "similarity"))
            line = [_model(run), shown, f"{100 * outliers:.1f} %", f"{largest:.2f}", f"{similarity:.3f}"]
            if line not in lines:  # several runs begin with the same tower
                lines.append(line)
    return _with_sources(measured, header, lines)


def _method(run: Row) -> str:
    return run["method"] if "method" in run else run["kind"]


def _questions(run: Row) -> int:
    return run["samples"] if "samples" in run else run["questions"]


def command_today(command: str) -> str:
    """The command of a result in the present syntax, `foveate train-method NAME`."""
    program, name, *rest = shlex.split(command)
    kinds = {"train-pruner": "covipal", "train-draft": "specvlm"}
    if name not in kinds:
        return command
    kind, model = kinds[name], []
    if rest and not rest[0].startswith("-"):
        model = ["--model", rest.pop(0)]
    if "--kind" in rest:
        place = rest.index("--kind")
        kind = rest[place + 1]
        del rest[place : place + 2]
    return shlex.join([program, "train-method", kind, *model, *rest])


def _model(run: Row) -> str:
    return Path(run["model"]).name


def _with_sources(measured: list[Row], header: list[str], lines: list[list[str]]) -> str:
    from generator.tables import table

    if not lines:
        return "*Not measured yet.*"
    made = "\n".join(f"- `{run['path']}`: `{command_today(run['command'])}`" for run in measured)
    return f"{table(header, lines)}\n\nCommands:\n\n{made}"

"""One page for every method: facts, how to name it in a plan, cost on a released model, measured accuracy, pictures."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from foveate.benchmark.results import current_names, inert, parse_result
from foveate.cards import Card, cards
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.cost import cost, follow, named, processed_image, shape_of
from foveate.gallery import gallery
from foveate.methods.entries import Entry
from generator.accuracy import Row, runs
from generator.gallery import BUDGETS, NOTHING, SITES, escaped, facts_of_card, link
from generator.tables import table

#: The released model and the request whose cost is computed.
MODEL, IMAGE, TEXT = "qwen2.5-vl-7b", (1024, 768), 64
SHARES = ("50%", "25%", "10%")
#: Baselines of a method by its site.
BASELINES = {"decoder": ("random-decoder",)}
#: Number of pictures on a page, and the kinds that are shown first.
PICTURES, FIRST = 2, ("a receipt", "a chart")


def pages(root: Path) -> dict[str, str]:
    """Every page by its path under `docs/`."""
    entries = _entries()
    made = {f"methods/{entry.name}.md": _page(root, entry) for entry in entries}
    return made | {f"methods/{card.name}.md": _card(root, card) for card in cards()}


def _page(root: Path, entry: Entry) -> str:
    needs = [
        kind.replace("_", " ") + (" (or attention received)" if substitute else "")
        for kind, substitute in entry.needs.items()
    ]
    facts = {
        "paper": escaped(entry.title + (f", {link(entry.paper)}" if entry.paper else "")),
        "site": SITES.get(entry.site, (entry.site, ""))[0].lower(),
        "mechanism": ", ".join(entry.mechanism),
        "modality": ", ".join(entry.modality),
        "needs": ", ".join(needs) or NOTHING.get(entry.site, "only the tokens"),
        "budget": BUDGETS[entry.budget],
        "exact count from sizes": "yes" if entry.static_count else "no",
        "trained": "yes" if entry.trained else "no",
        "arguments": ", ".join(f"`{name}={value!r}`" for name, value in entry.arguments.items()) or "none",
        "runs on": f"{len(entry.runs_on)} of {len(entry.families)} families, see the [matrix](../matrix.md)",
        "source": _source(root, entry.module),
    }
    sections = [
        f"# `{entry.name}`",
        escaped(entry.summary),
        _facts(facts),
        "## In a plan",
        _plans(entry),
        "## Cost",
        _cost(entry),
        "## Measured accuracy",
        _accuracy(root, entry),
        _pictures(root, entry.name),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _card(root: Path, card: Card) -> str:
    facts = facts_of_card(card) | {"source": _source(root, card.module)}
    return "\n\n".join([f"# `{card.name}`", escaped(card.summary), _facts(facts)]) + "\n"


def _facts(facts: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def _source(root: Path, module: str) -> str:
    path = f"src/{module.replace('.', '/')}"
    path = path if (root / path).is_dir() else f"{path}.py"
    return f"[{path}](../../{path})"


def examples(entry: Entry) -> list[str]:
    """Plans that name a method: with a fraction, with a number of tokens, with an argument."""
    argument = next((f"({name}={value})" for name, value in entry.arguments.items()
                     if isinstance(value, (int, float)) and not isinstance(value, bool)), "")  # fmt: skip
    if entry.budget == "none":
        plans = [entry.name, f"{entry.name}{argument}"]
    else:
        plans = [f"{entry.name}:25%", f"{entry.name}:64", f"{entry.name}{argument}:25%"]
        plans += [f"{entry.name}:25%@2"] if entry.site == "decoder" else []
        plans += [entry.name] if entry.budget == "optional" else []
    valid = []
    for plan in dict.fromkeys(plans):
        try:
            Plan.of(plan)
        except FoveateError:
            continue
        valid.append(plan)
    return valid


def _plans(entry: Entry) -> str:
    plans = examples(entry)
    if not plans:
        try:
            Plan.of(entry.name)
        except FoveateError as error:  # says what is missing and how it is given
            return escaped(str(error))
    weights = any("needs-weights" in verdict.conditions for verdict in entry.families.values())
    trained = "\n\nThe method needs trained weights, see `foveate train-method --help`." if weights else ""
    return "\n".join(["```text", *plans, "```"]) + trained


@cache
def _entries() -> list[Entry]:
    return gallery()


@cache
def _shape() -> tuple[Any, Any, Any]:
    config = named(MODEL).config
    shape, processed = shape_of(config), processed_image(config, *IMAGE)
    return shape, processed, cost(shape, follow(None, shape, processed), TEXT)


def _cost(entry: Entry) -> str:
    shape, processed, full = _shape()
    names = [entry.name, *(name for name in _baselines(entry) if name != entry.name)]
    plans = [f"{name}:{share}" if _budgeted(name) else name for share in SHARES for name in names]
    rows, refusals = [], {}
    for plan in dict.fromkeys(plans):
        try:
            run = follow(Plan.of(plan), shape, processed)
        except FoveateError as error:
            refusals[str(error)] = plan
            continue
        after = cost(shape, run, TEXT)
        rows.append(
            [
                f"`{plan}`",
                f"{fmean(run.kept):,.0f}",
                f"{after.total / 1e12:.2f}",
                f"{after.total / full.total:.0%}",
                f"{2 * after.cached / 2**20:,.0f}",
                f"{after.cached / full.cached:.0%}",
            ]
        )
    ours = [row for row in rows if row[0].split(":")[0].strip("`") == entry.name]
    if not ours:
        return "The formulas do not cover this method: " + " ".join(map(escaped, list(refusals)[:1]))
    whole = [
        "full model",
        f"{processed.tokens:,}",
        f"{full.total / 1e12:.2f}",
        "100%",
        f"{2 * full.cached / 2**20:,.0f}",
    ]
    header = [
        "plan",
        "visual tokens, mean over layers",
        "TFLOPs to the first token",
        "relative",
        "KV cache, MiB",
        "relative",
    ]
    width, height = IMAGE
    words = (
        f"Computed from the shapes of Qwen2.5-VL-7B for an image of {width} x {height} px and {TEXT} tokens of text, "
        "with a KV cache in bfloat16 ([FLOPs from shapes](../flops.md)). The cost of selecting tokens is not included."
    )
    return f"{words}\n\n{table(header, [[*whole, '100%'], *rows])}"


def _budgeted(name: str) -> bool:
    return next(entry.budget for entry in _entries() if entry.name == name) != "none"


def _baselines(entry: Entry) -> tuple[str, ...]:
    return BASELINES.get(entry.site, ("random", "downsample"))


@cache
def _measured(root: Path) -> list[Row]:
    return [row for run in runs(root) for row in run["rows"] if row["task"] == "all"]


def _accuracy(root: Path, entry: Entry) -> str:
    rows = _measured(root)
    models = list(dict.fromkeys(row["model"] for row in rows))
    names = [entry.name, *(name for name in _baselines(entry) if name != entry.name)]
    budgets = dict.fromkeys(row["budget"] for row in rows if row["method"] == entry.name)
    lines = []
    for budget in sorted(budgets, key=lambda text: -float((text or "0%").rstrip("%"))):
        for name in names:
            cells = [_relative(rows, model, name, budget) for model in models]
            if any(cells):
                shown = name if budget is None else f"{name}:{budget}"
                lines.append([f"`{shown}`" if name == entry.name else f"*{shown}*", *cells])
    if not lines:
        return "Not measured yet."
    words = (
        "Accuracy relative to the full model, with the 95 % interval of a paired bootstrap, on the small models that "
        "are trained in this repository ([Results](../results.md)). Released weights are not measured yet."
    )
    return f"{words}\n\n{table(['plan', *(Path(model).name for model in models)], lines)}"


def _relative(rows: list[Row], model: str, method: str, budget: str | None) -> str:
    row = next(
        (row for row in rows if (row["model"], row["method"], row["budget"]) == (model, method, budget)),
        None,
    )
    if row is None or row["relative"] is None:
        return ""
    values = (f"{100 * row[key]:.0f} %" for key in ("relative", "relative_low", "relative_high"))
    return "{} ({} to {})".format(*values) + (", all tokens" if inert(row) else "")


@cache
def _albums(root: Path) -> dict[str, tuple[Row, list[str]]]:
    """The pictures of the report by method, with current names, and their files as they are called."""
    found = {}
    for path in sorted((root / "docs/results/pictures").glob("*.json")):
        text = path.read_text(encoding="utf-8")
        album = parse_result(text)
        if album["pictures"]:
            plan = album["plan"] = current_names(album["plan"])
            found[plan.split(":")[0].split("(")[0]] = album, [one["file"] for one in json.loads(text)["pictures"]]
    return found


def _pictures(root: Path, name: str) -> str:
    """Two pictures of the report, if there are any."""
    if name not in _albums(root):
        return ""
    album, files = _albums(root)[name]
    ordered = sorted(
        zip(album["pictures"], files, strict=True),
        key=lambda pair: FIRST.index(pair[0]["shows"]) if pair[0]["shows"] in FIRST else len(FIRST),
    )
    shown = []
    for one, file in ordered[:PICTURES]:
        kept, where = (one["tokens_kept"], "") if one["last"] is None else (one["last"], " in the last layer")
        caption = f"{one['question']} {one['answer']} (expected: {one['expected']}); "
        caption += f"{kept} of {one['tokens_in']} tokens{where}"
        alt = f"{one['shows'].capitalize()} under {album['plan']}"
        shown.append(f"![{alt}](../results/pictures/{file})\n\n*{escaped(caption)}*")
    words = "Kept tokens are clear, dropped tokens pale, merged tokens tinted by group. "
    return "\n\n".join(["## Pictures", f"{words}Model: {Path(album['model']).name}.", *shown])

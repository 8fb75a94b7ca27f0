"""Search results in sentences and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.core.errors import FoveateError
from foveate.tune.goal import Goal

#: Plans of the front that are listed next to the plot.
_NAMED = 14


def front(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the Pareto-optimal trials on all questions, from the cheapest on."""
    best: list[dict[str, Any]] = []
    complete = [trial for trial in records if trial["outcome"] == "complete"]
    for record in sorted(complete, key=lambda trial: (trial["cost"], -trial["score"])):
        if not best or record["score"] > best[-1]["score"]:
            best.append(record)
    return best


def confirmed(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the confirmed plan with its numbers, or None."""
    return next((finalist for finalist in document["confirmation"] if finalist["met"]), None)


def verdict(document: dict[str, Any]) -> list[str]:
    """Summarise the result in sentences."""
    best, tried = confirmed(document), document["confirmation"]
    trials, goal = document["trials"], document["goal"]
    if best is None and not tried:
        return [f"No plan of {len(trials)} trials met the goal ({goal}).", *_nearest(document), *_weak(document)]
    if best is None:
        count = "the one plan" if len(tried) == 1 else f"none of the {len(tried)} plans"
        verb = "did not hold" if len(tried) == 1 else "held"
        sentences = f"On questions that the search did not use {count} that met the goal ({goal}) {verb}: "
        return [sentences + "more questions (--count), more trials or a softer goal may help.", *_weak(document)]
    sentences = []
    if len(tried) > 1:
        missed = ", ".join(finalist["plan"] for finalist in tried if not finalist["met"])
        sentences.append(f"It looked good in the search, but did not hold on new questions: {missed}.")
    least = document["settings"]["min_accuracy"]
    if least is not None:
        sentences.append(
            f"The interval of its relative accuracy lies above {least:.4g}."
            if best["sure"]
            else f"The interval of its relative accuracy reaches below {least:.4g}: to be sure, more questions "
            "(--count) are needed."
        )
    for control in best["controls"]:
        if "reason" in control:
            sentences.append(f"{control['plan']} cannot run: {control['reason']}")
        elif control["noise"]:
            sentences.append(f"Its advantage over {control['plan']} is within noise ({_points(control)} points).")
        else:
            word = "better" if control["better_by"] > 0 else "worse"
            sentences.append(f"It is {word} than {control['plan']}: by {_points(control)} points.")
    goal = Goal(document["settings"]["target_ttft"], least)
    for control in best["controls"]:
        if "reason" not in control and control["cost"] < best["cost"] and goal.met(control["cost"], control["score"]):
            sentences.append(f"{control['plan']}, only a control, meets the goal too, and costs less: prefer it.")
    return [*sentences, *_weak(document)]


def _points(control: dict[str, Any]) -> str:
    by, low, high = (100 * control[f"better_{end}"] for end in ("by", "low", "high"))
    return f"{by:+.1f}, 95 % {low:+.1f} to {high:+.1f}"


def _nearest(document: dict[str, Any]) -> list[str]:
    """Describe the trial closest to the goal if none met it."""
    known = [trial for trial in document["trials"] if trial["outcome"] == "complete"]
    if not known:
        return ["No trial came as far as all questions of the search."]
    nearest = max(known, key=lambda trial: trial["value"])
    numbers = f"{nearest['cost']:.2f} of the cost, {nearest['score']:.1%} relative"
    return [f"Nearest came {nearest['plan']}: {numbers}, on the questions of the search."]


def _weak(document: dict[str, Any]) -> list[str]:
    """Warn if the full model is no better than always giving the most frequent answer."""
    numbers = document["full_model"].get("confirm") or document["full_model"].get("search")
    if numbers is None or numbers["accuracy"] > numbers["majority"]:
        return []
    sentence = (
        f"The full model itself has an accuracy of {numbers['accuracy']:.1%} only, and always giving the most frequent "
    )
    return [
        sentence
        + f"answer in {numbers['majority']:.1%}: relative accuracies are not meaningful. Choose other questions."
    ]


def plot(document: dict[str, Any], path: Path) -> None:
    """Plot trials by cost and score, with the front, the goal, and confirmed plans with their controls.

    Raises:
        FoveateError: matplotlib is missing, or there is nothing to draw.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FoveateError("a plot needs matplotlib: pip install 'foveate[bench]'.") from error
    known = [trial for trial in document["trials"] if "score" in trial]
    if not known:
        raise FoveateError("there is nothing to draw: no trial was evaluated.")
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        axis = figure.subplots()
        _trials(axis, known)
        names = _front(axis, front(known))
        _confirmed(axis, document["confirmation"])
        settings = document["settings"]
        goal: dict[str, Any] = {"color": "0.35", "linewidth": 0.9, "linestyle": ":"}
        if settings["target_ttft"] is not None:
            axis.axvline(settings["target_ttft"], **goal)
        if settings["min_accuracy"] is not None:
            axis.axhline(settings["min_accuracy"], **goal)
        timed = settings["cost"] == "time"
        flow = settings["objective"] != "accuracy"
        axis.set(
            xlabel="time to the first token / full model" if timed else "operations to the first token / full model",
            ylabel="information flow (cosine), or relative accuracy where confirmed" if flow else "relative accuracy",
            title=f"{Path(settings['model']).name}: {document['goal']}",
        )
        axis.grid(color="0.93")
        axis.set_axisbelow(True)
        axis.legend(
            frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1), alignment="left",
            title=names or None, title_fontsize=8,
        )  # fmt: skip
        figure.savefig(path, dpi=150)


def _trials(axis: Any, known: list[dict[str, Any]]) -> None:
    for outcome, label, style in (
        ("complete", "asked all questions of the search", {"s": 26, "color": "#4878a8", "marker": "o"}),
        ("stopped", "stopped early", {"s": 20, "color": "0.65", "marker": "x", "linewidth": 1}),
    ):
        shown = [trial for trial in known if trial["outcome"] == outcome]
        if shown:
            axis.scatter([trial["cost"] for trial in shown], [trial["score"] for trial in shown], label=label, **style)


def _front(axis: Any, best: list[dict[str, Any]]) -> str:
    """Draw the front with numbered markers, and return the text that lists its plans."""
    if not best:
        return ""
    places = ([trial["cost"] for trial in best], [trial["score"] for trial in best])
    axis.step(*places, where="post", color="#4878a8", linewidth=1, label="Pareto front of the search")
    for number, (x, y) in enumerate(zip(*places, strict=True), 1):
        axis.annotate(str(number), (x, y), xytext=(-3, 5), textcoords="offset points", ha="right", fontsize=8)
    lines = [f"{number}  {_short(trial['plan'])}" for number, trial in enumerate(best[:_NAMED], 1)]
    lines += [f"and {len(best) - _NAMED} more"] if len(best) > _NAMED else []
    return "\n".join(lines) + "\n"


def _confirmed(axis: Any, confirmation: list[dict[str, Any]]) -> None:
    colours = {"random": "#b8860b", "downsample": "#8a5a9e"}
    for finalist in confirmation:
        held = finalist["met"]
        colour = "#c0392b" if held else "#e8a49c"
        _whisker(
            axis, finalist, "*", 11, colour, f"{'confirmed' if held else 'did not hold'}: {_short(finalist['plan'])}"
        )
        for control in finalist["controls"] if held else ():
            if "reason" not in control:
                name = control["plan"]
                _whisker(
                    axis,
                    control,
                    "D",
                    5,
                    colours["downsample" if name.startswith("downsample") else "random"],
                    f"confirmed on: {name}",
                )


def _whisker(axis: Any, row: dict[str, Any], marker: str, size: float, colour: str, label: str) -> None:
    ends = [
        [max(0, row["score"] - (row["score"] if row["low"] is None else row["low"]))],
        [max(0, (row["score"] if row["high"] is None else row["high"]) - row["score"])],
    ]
    axis.errorbar(
        [row["cost"]], [row["score"]], yerr=ends, marker=marker, markersize=size, color=colour, linestyle="none",
        capsize=3, linewidth=1, label=label, zorder=4,
    )  # fmt: skip


def _short(plan: str) -> str:
    return plan if len(plan) <= 44 else plan[:43] + "…"

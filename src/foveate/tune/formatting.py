"""Search results in sentences and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.core.errors import FoveateError
from foveate.tune.goal import Goal

#: Plans of the front that are named beside the picture.
_NAMED = 14


def front(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the Pareto-optimal trials on all questions, from the cheapest on."""
    found: list[dict[str, Any]] = []
    complete = [one for one in records if one["outcome"] == "complete"]
    for record in sorted(complete, key=lambda one: (one["cost"], -one["score"])):
        if not found or record["score"] > found[-1]["score"]:
            found.append(record)
    return found


def confirmed(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the confirmed plan with its numbers, or None."""
    return next((one for one in document["confirmation"] if one["met"]), None)


def verdict(document: dict[str, Any]) -> list[str]:
    """Summarise the result in sentences."""
    best, tried = confirmed(document), document["confirmation"]
    trials, goal = document["trials"], document["goal"]
    if best is None and not tried:
        return [f"No plan of {len(trials)} trials met the goal ({goal}).", *_nearest(document), *_weak(document)]
    if best is None:
        count = "the one plan" if len(tried) == 1 else f"none of the {len(tried)} plans"
        verb = "did not hold" if len(tried) == 1 else "held"
        said = f"On questions that the search had not seen {count} that met the goal ({goal}) {verb}: "
        return [said + "more questions (--count), more trials or a softer goal may help.", *_weak(document)]
    said = []
    if len(tried) > 1:
        missed = ", ".join(one["plan"] for one in tried if not one["met"])
        said.append(f"It looked good in the search, but did not hold on new questions: {missed}.")
    least = document["settings"]["min_accuracy"]
    if least is not None:
        said.append(
            f"The whole interval of its relative accuracy lies above {least:.4g}."
            if best["sure"]
            else f"The interval of its relative accuracy reaches below {least:.4g}: to be sure, more questions "
            "(--count) are needed."
        )
    for control in best["controls"]:
        if "reason" in control:
            said.append(f"{control['plan']} cannot run: {control['reason']}")
        elif control["noise"]:
            said.append(f"Its advantage over {control['plan']} is within noise ({_points(control)} points).")
        else:
            word = "better" if control["better_by"] > 0 else "worse"
            said.append(f"It is {word} than {control['plan']}: by {_points(control)} points.")
    goal = Goal(document["settings"]["target_ttft"], least)
    for control in best["controls"]:
        if "reason" not in control and control["cost"] < best["cost"] and goal.met(control["cost"], control["score"]):
            said.append(f"{control['plan']}, only a control, meets the goal too, and costs less: look at it first.")
    return [*said, *_weak(document)]


def _points(control: dict[str, Any]) -> str:
    by, low, high = (100 * control[f"better_{end}"] for end in ("by", "low", "high"))
    return f"{by:+.1f}, 95 % {low:+.1f} to {high:+.1f}"


def _nearest(document: dict[str, Any]) -> list[str]:
    """Describe the trial closest to the goal if none met it."""
    known = [one for one in document["trials"] if one["outcome"] == "complete"]
    if not known:
        return ["No trial came as far as all questions of the search."]
    nearest = max(known, key=lambda one: one["value"])
    numbers = f"{nearest['cost']:.2f} of the cost, {nearest['score']:.1%} relative"
    return [f"Nearest came {nearest['plan']}: {numbers}, on the questions of the search."]


def _weak(document: dict[str, Any]) -> list[str]:
    """Warn if the full model is no better than always giving the most frequent answer."""
    own = document["full_model"].get("confirm") or document["full_model"].get("search")
    if own is None or own["accuracy"] > own["majority"]:
        return []
    said = f"The full model itself is right in {own['accuracy']:.1%} only, and who always gives the most frequent "
    return [said + f"answer in {own['majority']:.1%}: what is left of so little says little. Choose other questions."]


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
    known = [one for one in document["trials"] if "score" in one]
    if not known:
        raise FoveateError("there is nothing to draw: no trial came to its questions.")
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
        own = [one for one in known if one["outcome"] == outcome]
        if own:
            axis.scatter([one["cost"] for one in own], [one["score"] for one in own], label=label, **style)


def _front(axis: Any, best: list[dict[str, Any]]) -> str:
    """Draw the front with numbered markers, and return the text that lists its plans."""
    if not best:
        return ""
    places = ([one["cost"] for one in best], [one["score"] for one in best])
    axis.step(*places, where="post", color="#4878a8", linewidth=1, label="Pareto front of the search")
    for number, (x, y) in enumerate(zip(*places, strict=True), 1):
        axis.annotate(str(number), (x, y), xytext=(-3, 5), textcoords="offset points", ha="right", fontsize=8)
    lines = [f"{number}  {_short(one['plan'])}" for number, one in enumerate(best[:_NAMED], 1)]
    lines += [f"and {len(best) - _NAMED} more"] if len(best) > _NAMED else []
    return "\n".join(lines) + "\n"


def _confirmed(axis: Any, confirmation: list[dict[str, Any]]) -> None:
    colours = {"random": "#b8860b", "downsample": "#8a5a9e"}
    for one in confirmation:
        held = one["met"]
        colour = "#c0392b" if held else "#e8a49c"
        _whisker(axis, one, "*", 11, colour, f"{'confirmed' if held else 'did not hold'}: {_short(one['plan'])}")
        for control in one["controls"] if held else ():
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


def _whisker(axis: Any, one: dict[str, Any], marker: str, size: float, colour: str, label: str) -> None:
    ends = [
        [max(0, one["score"] - (one["score"] if one["low"] is None else one["low"]))],
        [max(0, (one["score"] if one["high"] is None else one["high"]) - one["score"])],
    ]
    axis.errorbar(
        [one["cost"]], [one["score"]], yerr=ends, marker=marker, markersize=size, color=colour, linestyle="none",
        capsize=3, linewidth=1, label=label, zorder=4,
    )  # fmt: skip


def _short(plan: str) -> str:
    return plan if len(plan) <= 44 else plan[:43] + "…"

"""The tables of the README for a new user: recommended plans, their cost on Qwen2.5-VL-7B, and throughput in vLLM."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from foveate.benchmark.results import read_results
from foveate.core.full_model import FULL_MODEL
from foveate.core.method import Site
from foveate.core.plan import Plan
from foveate.core.registry import all_methods
from foveate.cost import Cost, cost, follow, named, processed_image, shape_of
from generator.accuracy import Row, runs
from generator.tables import table

MODEL = "qwen2.5-vl-7b"
#: Size of the image in pixels, and number of text tokens.
IMAGE = (1024, 768)
TEXT = 64
BUDGETS = ("50%", "25%", "10%")


class Use(NamedTuple):
    """A kind of use, and the results by which its plan is chosen.

    Attributes:
        name: The kind of use.
        task: The task, or the group of tasks, of `foveate bench accuracy`.
        budget: The share of tokens.
        baseline: The method of random tokens to compare with.
        sites: Where the method may act.
    """

    name: str
    task: str
    budget: str
    baseline: str
    sites: frozenset[Site]


USES = (
    Use("general", "all", "25%", "random", frozenset({Site.PRE_LLM})),
    Use("text-heavy: documents, screens, signs", "group:reading", "50%", "random", frozenset({Site.PRE_LLM})),
    Use("aggressive", "all", "10%", "random-decoder", frozenset({Site.PRE_LLM, Site.DECODER})),
)


def start_here(root: Path) -> str:
    """The most accurate training-free plan for each kind of use, averaged over the measured models."""
    results = runs(root)
    lines = []
    for use in USES:
        baselines = [_relative(results, use.task, f"{name}:{use.budget}") for name in (use.baseline, "downsample")]
        plan, relative = _best(results, use)
        cells = [relative, *(value for value in baselines if value is not None)]
        lines.append([use.name, f"`{plan}`", *(f"{value:.0%}" for value in cells)])
    return table(["images", "plan", "relative accuracy", "random tokens", "smaller image"], lines)


def costs(root: Path) -> str:
    """FLOPs to the first token and KV cache on Qwen2.5-VL-7B, and measured accuracy at the same share of tokens."""
    results = runs(root)
    general = _best(results, USES[0])[0].partition(":")[0]
    tokens, full = _cost(None)
    lines = [[FULL_MODEL, f"{tokens:,}", f"{full.total / 1e12:.1f} T", f"{2 * full.cached / 2**20:.0f} MiB", "100%"]]
    for budget in BUDGETS:
        for name in (general, "random", "downsample"):
            plan = f"{name}:{budget}"
            tokens, part = _cost(plan)
            relative = _relative(results, "all", plan)
            lines.append([
                f"`{plan}`" if name == general else f"*{plan}*",
                f"{tokens:,}",
                f"{part.total / full.total:.0%}",
                f"{part.cached / full.cached:.0%}",
                "" if relative is None else f"{relative:.0%}",
            ])  # fmt: skip
    return table(["plan", "visual tokens", "FLOPs to the first token", "KV cache", "relative accuracy"], lines)


def vllm(root: Path) -> str:
    """Throughput in vLLM relative to the full model."""
    run = read_results(root / "benchmarks/results/serving-vllm-cpu.json")
    plan = run["settings"]["plans"][0]
    rows = [row for row in run["rows"] if row["plan"] == plan]
    lines = [
        [
            str(row["clients"]),
            f"{row['times_full_model']['requests_per_second']['median']:.1f}x",
            f"{row['times_full_model']['first_token']['median']:.1f}x",
        ]
        for row in rows
    ]
    return table(["clients", "requests per second", "first token earlier"], lines)


def _best(results: list[Row], use: Use) -> tuple[str, float]:
    """The training-free plan with the highest relative accuracy that every measured model supports."""
    plans = {row["plan"] for run in results for row in run["rows"] if row["budget"] == use.budget}
    measured = {plan: _relative(results, use.task, plan) for plan in plans if _may_be_recommended(plan, use)}
    complete = {plan: relative for plan, relative in measured.items() if relative is not None}
    return max(complete.items(), key=lambda item: item[1])


def _may_be_recommended(plan: str, use: Use) -> bool:
    method = all_methods().get(plan.partition(":")[0])
    return method is not None and not method.trained and method.site in use.sites


def _relative(results: list[Row], task: str, plan: str) -> float | None:
    """Relative accuracy of a plan, averaged over the models; None unless it was measured on all of them."""
    rows: list[dict[str, Any]] = [row for run in results for row in run["rows"] if row["task"] == task]
    values = [row["relative"] for row in rows if row["plan"] == plan and row["relative"] is not None]
    return fmean(values) if len(values) == len({row["model"] for row in rows}) else None


def _cost(plan: str | None) -> tuple[int, Cost]:
    """Visual tokens that the first layer processes, and the cost of the image and the text."""
    model = named(MODEL)
    shape, image = shape_of(model.config), processed_image(model.config, *IMAGE)
    run = follow(None if plan is None else Plan.of(plan), shape, image)
    return run.kept[0], cost(shape, run, TEXT)

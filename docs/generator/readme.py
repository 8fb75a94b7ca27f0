"""The tables of the README: what plans cost on Qwen2.5-VL-7B, and throughput in vLLM."""

from __future__ import annotations

from pathlib import Path

from foveate.benchmark.results import read_results
from foveate.core.full_model import FULL_MODEL
from foveate.core.plan import Plan
from foveate.cost import Cost, cost, follow, named, processed_image, shape_of
from generator.accuracy import runs
from generator.choices import GENERAL, complete_plans, mean, recommended
from generator.tables import table

MODEL = "qwen2.5-vl-7b"
#: Size of the image in pixels, and number of text tokens.
IMAGE = (1024, 768)
TEXT = 64
BUDGETS = ("50%", "25%", "10%")


def costs(root: Path) -> str:
    """FLOPs to the first token and KV cache on Qwen2.5-VL-7B, and measured accuracy at the same share of tokens."""
    results = runs(root)
    best = recommended(complete_plans(results, GENERAL.task, GENERAL.budget), GENERAL.sites)[0].partition(":")[0]
    tokens, full = _cost(None)
    lines = [[FULL_MODEL, f"{tokens:,}", f"{full.total / 1e12:.1f} T", f"{2 * full.cached / 2**20:.0f} MiB", "100%"]]
    for budget in BUDGETS:
        measured = complete_plans(results, "all", budget)
        for name in (best, "random", "downsample"):
            plan = f"{name}:{budget}"
            tokens, part = _cost(plan)
            lines.append(
                [
                    f"`{plan}`" if name == best else f"*{plan}*",
                    f"{tokens:,}",
                    f"{part.total / full.total:.0%}",
                    f"{part.cached / full.cached:.0%}",
                    f"{mean(measured[plan]):.0%}" if plan in measured else "",
                ]
            )
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


def _cost(plan: str | None) -> tuple[int, Cost]:
    """Visual tokens that the first layer processes, and the cost of the image and the text."""
    model = named(MODEL)
    shape, image = shape_of(model.config), processed_image(model.config, *IMAGE)
    run = follow(None if plan is None else Plan.of(plan), shape, image)
    return run.kept[0], cost(shape, run, TEXT)

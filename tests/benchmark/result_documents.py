"""Small result files in the forms that the benchmark commands write."""

import json
from pathlib import Path
from typing import Any

TASKS = {"read_word": 0.9, "shape_colour": 0.6}
HEAD = {
    "command": "foveate bench something",
    "hardware": {"cpu": "a CPU", "threads": 1},
    "versions": {"foveate": "0.0", "torch": "2.0"},
    "settings": {"count": 40},
    "note": "What columns mean.",
}
#: Plans with the tokens that stay and how much of the accuracy does.
PLANS = {
    "full model": (100, 1.0),
    "random:10": (10, 0.5),
    "downsample:10": (10, 0.55),
    "divprune:10": (10, 0.8),
    "fastv:10@1": (10, 0.7),
    "random:50": (50, 0.75),
    "downsample:50": (50, 0.8),
    "divprune:50": (50, 0.9),
    "fastv:50@1": (50, 0.95),
}


def parts(plan: str) -> dict[str, Any]:
    method, _, budget = plan.partition("@")[0].partition(":")
    return {"plan": plan, "method": method, "budget": budget or None}


def accuracy(model: str = "small", plans: dict[str, tuple[int, float]] = PLANS) -> dict[str, Any]:
    rows = []
    for plan, (tokens, share) in plans.items():
        found = {task: round(full * share, 3) for task, full in TASKS.items()}
        found |= {"group:reading": found["read_word"], "all": sum(found.values()) / len(found)}
        for task, value in found.items():
            rows.append(
                {
                    "model": model, **parts(plan), "task": task, "count": 40, "right": round(40 * value),
                    "accuracy": value, "low": max(0, value - 0.1), "high": min(1, value + 0.1), "majority": 0.25,
                    "relative": share, "relative_low": share - 0.04, "relative_high": share + 0.04,
                    "agreement": share, "tokens_in": 100, "tokens_kept": tokens,
                    "difficult": None if plan == "full model" else {"count": 8, "accuracy": 0.375, "full_model": 1.0},
                }
            )  # fmt: skip
    refused = {"code": "needs-weights", "reason": "focusui needs trained weights."}
    lines = [{"model": model, "plan": "focusui:10", **refused}]
    return {"kind": "accuracy", **HEAD, "rows": rows, "impossible": lines}


def speed(model: str = "small", plans: dict[str, tuple[int, float]] = PLANS) -> dict[str, Any]:
    rows = []
    for plan, (tokens, _) in plans.items():
        ttft = 0.04 + 0.001 * tokens + (0.02 if plan.startswith("divprune") else 0)
        rows.append(
            {
                "model": model, **parts(plan), "group": parts(plan)["budget"], "batch": 1, "device": "cpu",
                "dtype": "float32", "tokens_in": 100, "tokens": tokens,
                "seconds": {"preprocess": None, "encoder": 0.04, "selection": 0.0, "prefill": ttft - 0.04, "ttft": ttft,
                            "decode_per_token": 0.01},
                "spread": {"ttft": {"median": ttft, "min": ttft - 0.01, "max": ttft + 0.02, "all": []}},
                "peak_bytes": 3 * 2**20, "kv_bytes": tokens * 2**17,
                "flops": {"counted": tokens * 1e9, "formula": None}, "speed_up": 0.14 / ttft,
                "efficiency": None if plan == "full model" else 0.9, "selection_of_prefill": 0.0,
            }
        )  # fmt: skip
    return {"kind": "speed", **HEAD, "rows": rows, "impossible": []}


def joint(model: str = "small") -> dict[str, Any]:
    rows = [
        {
            "model": model, **parts(plan), "weights": weights, "cache": "full", "task": "all", "count": 80,
            "accuracy": 0.5, "low": 0.4, "high": 0.6, "relative": 0.67, "seconds": 1.25,
            "bytes": {"weights": 2**20, "kv": None},
        }
        for plan in ("full model", "divprune:10")
        for weights in ("float32", "int8")
    ]  # fmt: skip
    return {"kind": "joint", **HEAD, "rows": rows, "impossible": []}


def save(folder: Path, **documents: Any) -> list[str]:
    """Write documents by name; their paths."""
    paths = []
    for name, document in documents.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        paths.append(str(path))
    return paths

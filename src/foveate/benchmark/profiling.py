"""Time, memory and the machine they were measured on."""

from __future__ import annotations

import ctypes
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


@contextmanager
def threads(count: int | None) -> Generator[None]:
    """Inside this context PyTorch works with so many threads of the CPU; None: with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def clock(device: torch.device) -> float:
    """Seconds, after everything asked of the device has been done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `run` needs at its worst moment beyond what is allocated before it.

    On a GPU what PyTorch's allocator hands out; on Linux the resident memory of the process, whose high-water mark
    is reset first; `None` elsewhere, after running all the same.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if sys.platform != "linux":
        run()
        return None
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # memory that is only kept for later would hide what the run needs
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    run()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(match[1]) * 1024


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and every value of repeated times."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "all": [round(value, 6) for value in seconds],
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """What the measurement ran on."""
    described = {"cpu": _cpu_name(), "threads": torch.get_num_threads(), "system": platform.platform(terse=True)}
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def head(kind: str, command: str, hardware: dict[str, Any], settings: dict[str, Any], note: str) -> dict[str, Any]:
    """What every result begins with: what it is, how and where it was made."""
    return {
        "kind": kind,
        "command": command,
        "hardware": hardware,
        "versions": versions(),
        "settings": settings,
        "note": note,
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.+)", path.read_text()) if path.exists() else None
    return match[1] if match else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what was measured."""
    names = ("foveate", "torch", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}

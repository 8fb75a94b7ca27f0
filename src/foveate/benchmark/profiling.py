"""Time and memory measurement, and a description of the machine."""

from __future__ import annotations

import ctypes
import math
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
#: Standard error of a median as a share of it, above which times are unsteady.
_STEADY = 0.05


@contextmanager
def threads(count: int | None) -> Generator[None]:
    """Set the number of CPU threads of PyTorch inside this context; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def clock(device: torch.device) -> float:
    """Return the time in seconds after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Measure the peak memory of `run` in bytes beyond what is allocated before it.

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


def in_turn(items: Iterable[Item], turn: int) -> list[Item]:
    """Return what is compared in the order of a turn: mixed, and in the odd turn that follows the other way round.

    In two turns every item has the same mean place, so that a machine that slows down slows all alike. What disturbs it
    for a while meets others each time, and not a method in every turn and its control in none.
    """
    mixed = list(items)
    random.Random(turn // 2).shuffle(mixed)
    return mixed[::-1] if turn % 2 else mixed


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Return median, extremes and all values of repeated times."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "all": [round(value, 6) for value in seconds],
    }


def unsteady(times: Iterable[tuple[str, Sequence[float]]]) -> str:
    """Return a sentence about times whose median is not reliable to 5 %; "" where there are none.

    Args:
        times: What was measured, and the seconds of its turns.
    """
    known = [(median_error(seconds), name, seconds) for name, seconds in times if len(seconds) > 1]
    wide = [line for line in known if line[0] > _STEADY]
    if not wide:
        return ""
    _, name, seconds = max(wide, key=lambda line: line[0])
    return (
        f"Unsteady: {len(wide)} of {len(known)} times, most that of {name} ({min(seconds):.3g} to {max(seconds):.3g} "
        "s). Ratios of these are not reliable to 5 %: measure again on a machine without other work, or with more "
        "turns (--repeats)."
    )


def median_error(seconds: Sequence[float]) -> float:
    """Return the standard error of the median as a share of it, from the quartiles, which outliers do not move."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    deviation = (high - low) / 1.349  # of normally distributed times
    return math.sqrt(math.pi / 2 / len(seconds)) * deviation / middle


def hardware(device: torch.device) -> dict[str, Any]:
    """Describe the hardware."""
    described = {"cpu": _cpu_name(), "threads": torch.get_num_threads(), "system": platform.platform(terse=True)}
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def head(kind: str, command: str, hardware: dict[str, Any], settings: dict[str, Any], note: str) -> dict[str, Any]:
    """Return the head of every result: what it is, how and on which machine it was made."""
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
    """Return the versions of the measured packages."""
    names = ("foveate", "torch", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}

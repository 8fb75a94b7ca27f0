"""Measures the reading of clips: peak memory and time on rendered files of growing length.

    python benchmarks/clips.py [--minutes 1 10 100] [--output benchmarks/results/clips.json]

Every reader runs in a process of its own. `uniform-frames:16` goes to the keyframe before each of 16 frames, and
`scene:16` decodes every frame once. Both are compared with a loop that decodes every frame up to the last of the same
16, as foveate did before, and with one that holds all frames in memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from foveate.benchmark.profiling import hardware, head, peak_memory
from foveate.benchmark.results import write_json
from foveate.clips import open_clip
from foveate.clips.writing import write_clip
from foveate.core.plan import Plan

#: Of the rendered files: pixels, frames per second, frames from one keyframe to the next, and seconds of a scene.
SIZE, FPS, KEYFRAMES, SCENE = (160, 96), 2, 40, 45
FRAMES = 16


def frames(count: int) -> Iterator[np.ndarray]:
    """Render a bright square that moves over a background whose colour changes with every scene."""
    width, height = SIZE
    for number in range(count):
        colour = np.random.default_rng(number // (SCENE * FPS)).integers(0, 200, 3)
        picture = np.empty((height, width, 3), np.uint8)
        picture[:] = colour
        left = 3 * number % (width - 20)
        picture[30:50, left : left + 20] = 255
        yield picture


def render(path: Path, minutes: int) -> None:
    """Write a file of so many minutes."""
    write_clip(path, frames(60 * FPS * minutes), FPS, keyframes=KEYFRAMES)


def by_plan(path: Path, plan: str) -> int:
    """Read the frames that a plan chooses."""
    return len(open_clip(path, sampler=Plan.of(plan).frame_step).frames)


def up_to_the_last(path: Path) -> int:
    """Decode every frame up to the last of the same frames as `uniform-frames`, and keep those."""
    with av.open(str(path)) as container:
        total = container.streams.video[0].frames
        wanted = {int((place + 0.5) * total / FRAMES) for place in range(FRAMES)}
        kept = []
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                kept.append(frame.to_ndarray(format="rgb24"))
                if len(kept) == len(wanted):
                    break
    return len(np.stack(kept))


def in_memory(path: Path) -> int:
    """Decode all frames into one array, and take some."""
    with av.open(str(path)) as container:
        every = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return len(every[:: len(every) // FRAMES][:FRAMES])


READERS: dict[str, Callable[[Path], int]] = {
    f"uniform-frames:{FRAMES}": lambda path: by_plan(path, f"uniform-frames:{FRAMES}"),
    f"scene:{FRAMES}": lambda path: by_plan(path, f"scene:{FRAMES}"),
    "every frame up to the last": up_to_the_last,
    "all frames in memory": in_memory,
}


def measure(path: Path, reader: str, warm: Path, repeats: int) -> dict[str, Any]:
    """Measure one reader in this process, after it has read a short file."""
    run = READERS[reader]
    run(warm)
    memory = peak_memory(lambda: run(path), torch.device("cpu"))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        count = run(path)
        seconds.append(time.perf_counter() - start)
    return {
        "frames": count,
        "peak_bytes": memory,
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
    }


def main() -> None:
    """Render, measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/clips.json"))
    options = parser.parse_args()
    rows = []
    processes = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        warm = Path(folder) / "warm.mp4"
        render(warm, 1)
        for minutes in options.minutes:
            path = Path(folder) / f"{minutes}.mp4"
            render(path, minutes)
            for reader in READERS:
                with processes.Pool(1) as pool:
                    measured = pool.apply(measure, (path, reader, warm, options.repeats))
                rows.append({"minutes": minutes, "file_bytes": path.stat().st_size, "reader": reader} | measured)
                print(rows[-1], file=sys.stderr)
            path.unlink()
    settings = {
        "size": SIZE,
        "fps": FPS,
        "frames_to_a_keyframe": KEYFRAMES,
        "seconds_of_a_scene": SCENE,
        "repeats": options.repeats,
    }
    command = shlex.join(["python", "benchmarks/clips.py", *sys.argv[1:]])
    note = "Files are rendered; times include opening the file. Memory is the peak beyond that of the idle process."
    document = head("clips", command, hardware(torch.device("cpu")), settings, note)
    document["versions"] |= {"av": av.__version__}
    document["rows"] = rows
    write_json(options.output, document)


if __name__ == "__main__":
    main()

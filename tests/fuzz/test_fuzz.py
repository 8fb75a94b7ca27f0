"""The fuzz targets in the small: drawn by hypothesis, all seeds, all that was ever found; and the library's traps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import LONGEST, NAMES, target

HERE = Path(__file__).parent
FOUND = HERE / "found"


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes], words: list[bytes]) -> bytes:
    """A seed with pieces cut out, changed, doubled, or with a word put in."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        piece = draw(
            st.one_of(st.sampled_from(words), st.binary(max_size=6), st.just(data[start:end] * 2), st.just(b""))
        )
        data = data[:start] + piece + data[end:]
    return data


@pytest.mark.parametrize("name", NAMES)
def test_drawn_inputs(name: str) -> None:
    one = target(name)
    pieces = st.lists(st.one_of(st.sampled_from(one.words), st.binary(max_size=4)), max_size=12).map(b"".join)

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(damaged(one.seeds, one.words), pieces, st.binary(max_size=200)))
    def check(data: bytes) -> None:
        one.check(data)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_what_was_found(name: str) -> None:
    one = target(name)
    found = sorted(FOUND.glob(f"{name}-*"))
    for data in [*one.seeds, *(path.read_bytes() for path in found)]:
        one.check(data)
    assert len(one.seeds) > 10


def test_traps_of_the_library_end_in_one_sentence_in_bounded_time_and_memory() -> None:
    run = subprocess.run(
        [sys.executable, str(HERE / "library.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), *sys.path])},
    )
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    last = rows[-1] if rows else None
    assert run.returncode == 0, f"ended with {run.returncode} after {last}: {run.stderr[-2000:]}"
    assert [row for row in rows if "fault" in row] == []
    assert all(0 < len(row["error"]) <= LONGEST and "Traceback" not in row["error"] for row in rows)
    kinds = Counter(row["kind"] for row in rows)
    assert sum(kinds.values()) >= 60 and min(kinds.values()) >= 10, kinds

"""A Ray cluster of two workers on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import ray

from foveate.integrations.ray.cluster import _ENVIRONMENT


@contextmanager
def two_workers() -> Iterator[None]:
    """Room for two replicas; commands of this process find it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 2**20,
    )
    try:
        yield
    finally:
        ray.shutdown()


def processes(name: str, pid: int | None = None) -> list[psutil.Process]:
    """Processes of Ray below this one, or below another, that call themselves so."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it has just ended
            continue
    return found

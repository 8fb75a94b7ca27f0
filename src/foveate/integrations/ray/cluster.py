"""Connection to a Ray cluster, and the resources of replicas."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.core.registry import IMPORTS
from foveate.loading import load_apart, plan_asked

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_worker_niceness": "0",
}
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d{1,5}")


@dataclass(frozen=True)
class Replicas:
    """Number of model replicas and the resources of each.

    Args:
        count: Processes.
        cpus: CPUs of each; may be a fraction. A replica computes with as many threads, at least one.
        gpus: GPUs of each; may be a fraction, for several replicas on one.
        address: Of a cluster, such as "10.0.0.1:6379", or "auto" for the one this machine belongs to; None begins one
            on this machine that ends with the run.

    Raises:
        FoveateError: a number is out of range, or the address is one of Ray Client, which cannot carry this.
    """

    count: int = 1
    cpus: float = 1
    gpus: float = 0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise FoveateError(f"there must be at least one replica, not {self.count}.")
        if not 0 < self.cpus < 1e6 or not 0 <= self.gpus < 1e6:  # NaN is neither
            raise FoveateError(
                f"a replica needs more than 0 CPUs and at least 0 GPUs, not {self.cpus:g} and {self.gpus:g}."
            )
        if self.address is not None and self.address != "auto" and not _ADDRESS.fullmatch(self.address):
            raise FoveateError(f"{self.address!r} is not an address here; write host:port of the cluster, or auto.")


@dataclass(frozen=True)
class Model:
    """Model settings that replicas load.

    Args:
        name: Folder, Hub id, or None for the embedded model. A folder must be there on every machine of the cluster.
        plan: Default plan as text; "full model" disables compression; None is the plan saved with the model, if any.
        dtype: As `foveate.load` takes it.
        device: As `foveate.load` takes it; None: the GPU that the replica got, or the CPU.
        options: Further options of `foveate.load`, such as `revision`.
    """

    name: str | None = None
    plan: str | None = None
    dtype: str = "auto"
    device: str | None = None
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def anywhere(self) -> Model:
        """Make a folder's path absolute, since replicas work in folders of their own."""
        if self.name is None or not Path(self.name).is_dir():
            return self
        return replace(self, name=str(Path(self.name).resolve()))

    def load(self) -> tuple[Any, Any, Plan | None]:
        """Load the model as `foveate.loading.load_apart` does."""
        return load_apart(self.name, plan_asked(self.plan), dtype=self.dtype, device=self.device, **self.options)


@contextmanager
def connected(replicas: Replicas) -> Generator[None]:
    """Connect to Ray with enough resources for the replicas; a cluster started here is stopped on exit.

    An existing connection of this process is reused and kept open.

    Raises:
        FoveateError: Ray is not installed, nothing answers at the address, or the machine has less than is wanted.
    """
    # No usage reports; no GPU is visible to replicas without one; replicas run at normal priority.
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise FoveateError("replicas need Ray: pip install 'foveate[ray]'.") from error
    started_here = not ray.is_initialized()
    if started_here:
        _check_address(replicas.address)
        options: dict[str, Any] = {"include_dashboard": False} if replicas.address is None else {}
        # Replicas import the methods that this process has imported, or say why they cannot; those of a cluster that is
        # begun here inherit the environment.
        if os.environ.get(IMPORTS) and replicas.address is not None:
            options["runtime_env"] = {"env_vars": {IMPORTS: os.environ[IMPORTS]}}
        try:
            ray.init(address=replicas.address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise FoveateError(
                f"no Ray cluster answers at {replicas.address!r}: {str(error).splitlines()[0].rstrip('.')}."
                if replicas.address is not None
                else f"Ray does not start here: {str(error).splitlines()[0].rstrip('.')}."
            ) from error
    try:
        if replicas.address is None:  # a real cluster may grow
            _check_resources(replicas, ray.cluster_resources())
        yield
    finally:
        if started_here:
            ray.shutdown()


def _check_address(address: str | None) -> None:
    """Check that the address accepts connections, since Ray itself retries for minutes."""
    if address is None or address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise FoveateError(f"no Ray cluster answers at {address!r}: {error}.") from None


def _check_resources(replicas: Replicas, there: dict[str, float]) -> None:
    for name, each in (("CPU", replicas.cpus), ("GPU", replicas.gpus)):
        if replicas.count * each > there.get(name, 0):
            raise FoveateError(
                f"{replicas.count} replicas with {each:g} {name} each need {replicas.count * each:g}, and there are "
                f"{there.get(name, 0):g}; use fewer replicas or smaller fractions."
            )


def take_threads(cpus: float) -> None:
    """Set as many threads as the replica has CPUs, at least one."""
    torch.set_num_threads(max(1, int(cpus)))


def sentence(error: BaseException) -> str:
    """Return a remote error as one sentence, without the traceback that Ray wraps around it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, FoveateError):
        return str(cause)
    text = str(error)
    if messages := re.findall(r"^(?:\w+\.)*FoveateError: (.+)$", text, re.MULTILINE):
        return messages[-1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"a replica failed ({(lines[-1] if lines else type(error).__name__).rstrip('.')[:300]})."

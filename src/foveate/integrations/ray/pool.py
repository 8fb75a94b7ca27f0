"""Replicas behind a server with Ray Serve: `deployed` and `Pool`.

`foveate serve --ray` takes requests in one process, with the limits, the key and the counters of any server
(`foveate.serving.app`), and opens their images there. A replica is an `Engine` on a machine of the cluster, which forms
batches of what reaches it; Ray Serve chooses the replica with less to do and begins a new one for one that died. A
request whose replica died before its client saw anything is answered by another one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.integrations.ray.cluster import Model, Replicas, sentence, take_threads
from foveate.serving.engine import Engine, Job
from foveate.serving.generation import FirstToken, Piece, Sampling
from foveate.serving.limits import BusyError, EngineDeadError, Limits
from foveate.serving.metrics import Metrics
from foveate.serving.result import Result

log = logging.getLogger("foveate.serving")
#: How often a request is tried: it may itself be what kills replicas.
TRIES = 2
#: Seconds between two counts of the replicas.
_LOOK = 1.0


class Replica:
    """Model on one machine that answers its requests in batches.

    Args:
        model: To load.
        limits: Of the server.
        cpus: That the replica has.
    """

    def __init__(self, model: Model, limits: Limits, cpus: float) -> None:
        take_threads(cpus)
        net, processor, _ = model.load()
        self.engine = Engine(net, processor, replace(limits, queue=limits.queue + limits.batch))
        self.engine.start()

    def check_health(self) -> None:
        """Raise if the replica has failed; Ray Serve then starts a new one."""
        if not self.engine.alive:
            raise EngineDeadError("the model's thread has failed.")

    async def answer(
        self,
        messages: list[dict[str, Any]],
        plan: str | None,
        limit: int | None,
        sampling: Sampling,
        stops: tuple[str, ...],
        hands_over: bool = False,
    ) -> AsyncGenerator[FirstToken | Piece | Result | Exception]:
        """Yield `FirstToken`, pieces of text, then a `Result`, or the request's error."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[FirstToken | Piece | Result | BaseException] = asyncio.Queue()

        def deliver(piece: FirstToken | Piece | Result | BaseException) -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(inbox.put_nowait, piece)

        wanted = None if plan is None else Plan.of(plan)
        job = Job(messages, wanted, limit, sampling, stops, deliver, hands_over=hands_over)
        try:
            self.engine.submit(job)
            while True:
                piece = await inbox.get()
                if isinstance(piece, (FirstToken, Piece)):
                    yield piece
                    continue
                if isinstance(piece, Result):
                    yield piece
                elif isinstance(piece, EngineDeadError):
                    raise piece  # another replica may do better
                elif isinstance(piece, FoveateError):  # what it was besides need not be known elsewhere
                    yield FoveateError(piece.refusal or str(piece))
                else:
                    known = isinstance(piece, BusyError)
                    yield BusyError(str(piece)) if known else RuntimeError(f"{type(piece).__name__}: {piece}")
                return
        finally:
            self.engine.cancel(job)


@contextmanager
def deployed(model: Model, replicas: Replicas, limits: Limits, name: str) -> Generator[Any]:
    """Deploy replicas on the cluster, yield their handle, and remove them at the end.

    Call it inside `cluster.connected`.

    Args:
        model: As every replica loads it.
        replicas: How many, and what each takes.
        limits: Of the server.
        name: Of the server in the cluster. Replicas of that name that a killed server left behind are replaced.

    Raises:
        FoveateError: replicas do not start.
    """
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(proxy_location="Disabled", logging_config=quiet)  # requests come through this process
    deployment: Any = serve.deployment(
        Replica,
        name="replica",
        num_replicas=replicas.count,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        # One batch that is answered and one that forms; the rest waits where any replica can take it.
        max_ongoing_requests=2 * limits.batch,
        max_constructor_retry_count=2,
        health_check_period_s=2,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=2,
        logging_config=quiet,
    )
    name = _plain(name)
    try:
        handle = serve.run(
            deployment.bind(model.anywhere, limits, replicas.cpus), name=name, route_prefix=None, logging_config=quiet
        )
    except RuntimeError as error:
        status = serve.status().applications.get(name)
        messages = [] if status is None else [deployment.message for deployment in status.deployments.values()]
        serve.delete(name)
        raise FoveateError(sentence(RuntimeError("\n".join([str(error), *messages])))) from error
    try:
        yield handle
    finally:
        serve.delete(name)


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name)


class Pool:
    """Dispatcher of requests to replicas; replaces an `Engine`.

    Args:
        handle: Of `deployed`.
        name: As given to `deployed`.
        replicas: How many there are to be, and what each takes.
        limits: Of the server.

    Attributes:
        metrics: What was done, by all replicas together.
    """

    def __init__(self, handle: Any, name: str, replicas: Replicas, limits: Limits) -> None:
        self.limits = limits
        self.metrics = Metrics(lambda: self._waiting, lambda: len(self._jobs) - self._waiting)
        self._handle = handle.options(method_name="answer", stream=True)
        self._name, self._replicas = _plain(name), replicas
        self._there = replicas.count
        self._jobs: set[Job] = set()
        self._tasks: dict[Job, asyncio.Task[Result | Exception]] = {}  # the loop's alone
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._threads = [
            threading.Thread(target=work, name="foveate-pool", daemon=True)
            for work in (self._loop.run_forever, self._watch)
        ]

    def start(self) -> None:
        """Start dispatching requests."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Abort running requests and refuse new ones."""
        with self._lock:
            self._stopping.set()
            remaining = list(self._jobs)
        for job in remaining:
            self.cancel(job)
        while self._jobs:
            time.sleep(0.01)
        self._loop.call_soon_threadsafe(self._loop.stop)
        for thread in self._threads:
            thread.join()
        self._loop.close()

    @property
    def alive(self) -> bool:
        """Whether requests are accepted; they wait while replicas restart."""
        return self._threads[0].is_alive() and not self._stopping.is_set()

    @property
    def state(self) -> dict[str, Any]:
        """Return the status for /health: "ok", "ending", or "failed" without a replica, and the number of replicas."""
        status = "ending" if not self.alive else "ok" if self._there else "failed"
        return {
            "status": status,
            "waiting": self._waiting,
            "replicas": {"running": self._there, "wanted": self._replicas.count},
        }

    @property
    def _waiting(self) -> int:
        return sum(not job.begun for job in list(self._jobs))

    def submit(self, job: Job) -> None:
        """Accept a request.

        Raises:
            BusyError: too many wait, or the server is shutting down.
        """
        with self._lock:
            if not self.alive:
                raise BusyError("the server is shutting down.")
            if self._waiting >= self.limits.queue + self._replicas.count * self.limits.batch:
                raise BusyError(f"{self.limits.queue} requests are waiting already; retry later.")
            self._jobs.add(job)
        self._loop.call_soon_threadsafe(self._begin, job)

    def cancel(self, job: Job) -> None:
        """Cancel a request: its replica stops it at the model's next step."""
        job.cancelled.set()
        with self._lock:
            if job in self._jobs:
                self._loop.call_soon_threadsafe(lambda: self._tasks[job].cancel() if job in self._tasks else None)

    # In the loop's thread

    def _begin(self, job: Job) -> None:
        task = self._tasks[job] = self._loop.create_task(self._answer(job))
        task.add_done_callback(lambda task: self._end(job, task))

    def _end(self, job: Job, task: asyncio.Task[Result | Exception]) -> None:
        end: Any = BusyError("the server is shutting down.")
        if not task.cancelled():
            end = task.exception() or task.result()
        if isinstance(end, Result):
            self.metrics.answered(end, job.images, job.clips, time.monotonic() - job.arrived)
        elif isinstance(end, Exception) and not isinstance(end, (FoveateError, BusyError, EngineDeadError)):
            log.error("answering failed: %s", end)
        job.deliver(end)
        del self._tasks[job]
        self._jobs.remove(job)

    async def _answer(self, job: Job) -> Result | Exception:
        for _ in range(TRIES):
            end = await self._try(job)
            # Text that a client has received cannot begin again.
            if not isinstance(end, EngineDeadError) or (job.begun and job.streamed):
                break
        return end

    async def _try(self, job: Job) -> Result | Exception:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        plan = None if job.plan is None else str(job.plan)
        pieces = self._handle.remote(job.messages, plan, job.limit, job.sampling, job.stops, job.hands_over)
        try:
            async for piece in pieces:
                if not job.begun and not isinstance(piece, Exception):
                    job.begun = True
                    self.metrics.ttft.observe(time.monotonic() - job.arrived)
                if not isinstance(piece, (FirstToken, Piece)):
                    return piece
                job.deliver(piece)
        except (RayError, RayServeException) as error:
            log.warning("a replica was lost: %s", sentence(error))
        except asyncio.CancelledError:
            pieces.cancel()
            raise
        return EngineDeadError("the replica that answered this request failed; send the request again.")

    # In a thread, since the status call may take a while

    def _watch(self) -> None:
        from ray import serve

        while not self._stopping.wait(_LOOK):
            try:
                states = serve.status().applications[self._name].deployments["replica"].replica_states
                self._there = states.get("RUNNING", 0)
            except Exception:  # the cluster is gone, or busy; replicas that cannot be asked for are not there
                if self._there:
                    log.warning("the cluster does not report the status of its replicas", exc_info=True)
                self._there = 0

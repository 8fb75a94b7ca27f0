"""The training loop of small networks, with resumable runs.

The model keeps its weights. What a step learns from follows from the number of the step alone, so that a run that was
stopped gives the same weights as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.training.callbacks import StopRequest
from foveate.training.methods.shared.config import TrainConfig
from foveate.training.run_directory import OnProgress, RunDirectory, quiet

#: Steps after which the state of a run is written.
SAVE_EVERY = 50
_CLIP = 1.0

Network = TypeVar("Network")
#: The losses of a step, whose sum is what it lowers: the seed of each one's chance, and what computes it.
Losses = Iterator[tuple[int, Callable[[], Tensor]]]


@dataclass(frozen=True)
class TrainState(Generic[Network]):
    """What was trained after `step` steps; `finished`: after all of them."""

    network: Network
    step: int
    finished: bool


def fit(
    network: nn.Module,
    losses: Callable[[int], Losses],
    config: TrainConfig,
    of: dict[str, Any],
    run: RunDirectory,
    on_progress: OnProgress = quiet,
    stop: StopRequest | None = None,
) -> TrainState[Any]:
    """Train a network, or go on from the last state of a run.

    Args:
        network: With its first weights, on its device.
        losses: Of a step. One graph exists at a time.
        config: Schedule.
        of: What the run is of; a state of another one, or of a network with other sizes, is refused.
        run: Gets the state every 50 steps and when stopped, and a line of the log every step.
        on_progress: Called after every step.
        stop: Asked after every step.

    Raises:
        FoveateError: the directory holds a run of another network.
    """
    stop = stop or StopRequest()
    of = of | {"weights": {name: list(value.shape) for name, value in network.state_dict().items()}}
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate)
    done = 0
    state = run.load_state(("of", "step", "network", "optimizer"), next(network.parameters()).device)
    if state is not None:
        if state["of"] != of:
            raise FoveateError(f"{run.path} holds a run with other settings; remove it, or write another file.")
        done = state["step"]
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    earlier, start = run.log.rewind(done), time.perf_counter()
    network.train()
    while done < config.steps and not stop.requested:
        rate = optimizer.param_groups[0]["lr"] = config.rate(done)
        optimizer.zero_grad()
        total = 0.0
        for seed, compute in losses(done):
            # Chance that does not depend on what was drawn before.
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                torch.manual_seed(seed)
                loss = compute()
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
        optimizer.step()
        done += 1
        seconds = round(earlier + time.perf_counter() - start, 3)
        run.log.append({"step": done, "loss": total, "learning_rate": rate, "seconds": seconds})
        on_progress("training", done, config.steps, total)
        if done % SAVE_EVERY == 0 or done == config.steps or stop.requested:
            run.save_state(
                {"of": of, "step": done, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
            )
    return TrainState(network.eval(), done, done == config.steps)

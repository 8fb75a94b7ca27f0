"""How small networks beside a model are trained: the schedule, the steps, and runs that go on where they stood.

The model keeps its weights. What a step learns from follows from the number of the step alone, so that a run that was
stopped gives the same weights as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.core.weights import read_state
from foveate.training.callbacks import StopRequest
from foveate.training.methods.relevance import RunDirectory, write_atomically

#: Steps after which the state of a run is written.
SAVE_EVERY = 50
_CLIP = 1.0

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class TrainConfig:
    """AdamW, the learning rate rising over a twentieth of the steps, then falling to 0.

    Args:
        steps: Optimizer steps.
        batch_size: Samples a step.
        learning_rate: Greatest step size.
        seed: Of first weights, samples and chance.
    """

    steps: int = 2000
    batch_size: int = 8
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise FoveateError(f"{name} must be 1 or more, not {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise FoveateError(f"learning_rate must be greater than 0, not {self.learning_rate}.")
        if self.seed < 0:
            raise FoveateError(f"seed must be 0 or more, not {self.seed}.")

    def rate(self, step: int) -> float:
        """Step size of a step, counted from 0."""
        rising = max(1, self.steps // 20)
        return self.learning_rate * min((step + 1) / rising, (self.steps - step) / max(1, self.steps - rising + 1), 1)

    def samples(self, step: int) -> range:
        """Numbers of the samples of a step."""
        return range(step * self.batch_size, (step + 1) * self.batch_size)


@dataclass(frozen=True)
class TrainState(Generic[Network]):
    """A network after `step` steps; `finished`: after all of them."""

    network: Network
    step: int
    finished: bool


def fit(
    network: Network,
    losses: Callable[[int], Iterator[tuple[int, Callable[[], Tensor]]]],
    config: TrainConfig,
    of: dict[str, object],
    folder: RunDirectory,
    on_progress: Callable[[int, float], None] = lambda step, loss: None,
    stop: StopRequest | None = None,
) -> TrainState[Network]:
    """Train a network, or go on from the last state of a run.

    Args:
        network: With its first weights, on its device.
        losses: The losses of a step, whose sum is what it lowers: the seed of each one's chance, and what computes it.
            One graph exists at a time.
        config: Schedule.
        of: Sizes of the network; a state with others, or with another schedule, is refused.
        folder: Of the run: the state every 50 steps and when stopped, and a line of the log every step.
        on_progress: Called with how many steps are done, and the loss of the last.
        stop: Asked after every step.

    Raises:
        FoveateError: the folder holds a run of another network.
    """
    stop, of = stop or StopRequest(), asdict(config) | of
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate)
    done = 0
    if folder.state.is_file():
        state = read_state(folder.state, ("of", "step", "network", "optimizer"), device)
        if state["of"] != of:
            raise FoveateError(f"{folder.path} holds a run with other settings; remove it, or write another file.")
        done = state["step"]
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    earlier, start = folder.log.rewind(done), time.perf_counter()
    network.train()
    while done < config.steps and not stop.wanted:
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
        folder.log.append({"step": done, "loss": total, "learning_rate": rate, "seconds": seconds})
        on_progress(done, total)
        if done % SAVE_EVERY == 0 or done == config.steps or stop.wanted:
            state = {"of": of, "step": done, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
            write_atomically(folder.state, lambda path, state=state: torch.save(state, path))
    return TrainState(network.eval(), done, done == config.steps)

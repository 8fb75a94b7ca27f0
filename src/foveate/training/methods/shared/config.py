"""Options of trainers: fields of frozen dataclasses, each with the help that the command line shows."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from foveate.core.errors import FoveateError


def option(
    default: Any = MISSING,
    help: str = "",  # noqa: A002 - what typer calls it
    *,
    minimum: float | None = None,
    flags: str | None = None,
    shown: str | None = None,
    identifies: bool = True,
) -> Any:
    """A field of a trainer's options.

    Args:
        default: Its default; without one it must be given.
        help: One line.
        minimum: The least that a number may be, checked on the command line; the class checks it too.
        flags: How it is written; by default its name after two hyphens.
        shown: What the help shows as default in place of None.
        identifies: Whether a run with another value is another run, which a directory of a run refuses.
    """
    metadata = {"help": help, "minimum": minimum, "flags": flags, "shown": shown, "identifies": identifies}
    return field(default=default, metadata=metadata)


def option_names(config_class: Any) -> list[str]:
    """How the options of a class are written."""
    names: list[str] = []
    for field_ in fields(config_class):
        written = field_.metadata.get("flags") or f"--{field_.name.replace('_', '-')}"
        names += written.split("/")
    return names


def identity(config: Any) -> dict[str, Any]:
    """The options that make a run what it is, in plain types."""
    return {
        field_.name: _plain(getattr(config, field_.name))
        for field_ in fields(config)
        if field_.metadata.get("identifies")
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """AdamW, the learning rate rising over a twentieth of the steps, then falling to 0."""

    steps: int = option(2000, "Optimizer steps.", minimum=1)
    batch_size: int = option(8, "Samples a step.", minimum=1)
    learning_rate: float = option(1e-3, "Greatest step size.")
    seed: int = option(0, "Of first weights, samples and chance.", minimum=0)

    def __post_init__(self) -> None:
        at_least_one(self, "steps", "batch_size")
        check_schedule(self.learning_rate, self.seed)

    def rate(self, step: int) -> float:
        """Step size of a step, counted from 0."""
        warmup = max(1, self.steps // 20)
        return self.learning_rate * min((step + 1) / warmup, (self.steps - step) / max(1, self.steps - warmup + 1), 1)

    def samples(self, step: int) -> range:
        """Numbers of the samples of a step."""
        return range(step * self.batch_size, (step + 1) * self.batch_size)


def at_least_one(config: Any, *names: str) -> None:
    """Refuse numbers below 1.

    Raises:
        FoveateError: one is.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise FoveateError(f"{name} must be 1 or more, not {value}.")


def check_schedule(learning_rate: float, seed: int) -> None:
    """Refuse what no optimizer can start with.

    Raises:
        FoveateError: the learning rate is not above 0, or the seed below 0.
    """
    if not learning_rate > 0:
        raise FoveateError(f"learning_rate must be greater than 0, not {learning_rate}.")
    if seed < 0:
        raise FoveateError(f"seed must be 0 or more, not {seed}.")

"""The interface of method trainers: data, step, evaluate, save."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn

from foveate.training.callbacks import StopRequest
from foveate.training.methods.shared import loop
from foveate.training.methods.shared.config import TrainConfig, identity
from foveate.training.methods.shared.frozen import frozen
from foveate.training.methods.shared.loop import Losses, TrainState
from foveate.training.run_directory import OnProgress, RunDirectory, quiet

Config = TypeVar("Config")
StepConfig = TypeVar("StepConfig", bound=TrainConfig)


class MethodTrainer(ABC, Generic[Config]):
    """Trainer of the weights that one method needs for one model; the model's own weights are frozen by default.

    `foveate train-method NAME` makes one of its options, lets it read its data, opens the directory of the run, loads
    the model, and calls `fit`, `save` and `evaluate`. A trainer is one file, `training/methods/NAME.py`, whose first
    line is what the command says of it; one of another package is named by an entry point of the group
    `foveate.trainers`, or registered with `foveate.register_trainer`.

    Args:
        config: The options.

    Attributes:
        name: Of the method.
        config_class: Frozen dataclass of fields made by `option`, which raises `FoveateError` for what is wrong.
        output: What is written, as an example: a folder, or a file with its suffix.
        resumable: Whether a stopped run can go on, and stops after some minutes.
        needs_model: Whether a model must be named; else it is the embedded one by default.
        trains_model: Whether the model's own weights are trained, and written with it.
        examples: Command lines, one a line.
    """

    name: ClassVar[str]
    config_class: ClassVar[Any]
    output: ClassVar[str]
    resumable: ClassVar[bool] = True
    needs_model: ClassVar[bool] = False
    trains_model: ClassVar[bool] = False
    examples: ClassVar[str] = ""

    def __init__(self, config: Config) -> None:
        self.config = config

    def about(self) -> dict[str, Any]:
        """Identity of a run besides the model, in plain types."""
        return {"method": self.name, **identity(self.config)}

    def load(self, model: str | None, device: str | None) -> tuple[Any, Any]:
        """Model and processor of a name; the embedded ones for None."""
        from foveate.loading import load

        return load(model, device=device, plan=None)

    @abstractmethod
    def data(self) -> Any:
        """Read the training data, before a model is loaded.

        Raises:
            FoveateError: files cannot be read.
        """

    @abstractmethod
    def fit(
        self,
        model: Any,
        processor: Any,
        data: Any,
        run: RunDirectory,
        on_progress: OnProgress = quiet,
        stop: StopRequest | None = None,
    ) -> TrainState[Any]:
        """Train, or resume from the last state of a run.

        Args:
            model: A model of a known family, without a plan attached.
            processor: Its processor.
            data: See `data`.
            run: Keeps log and state; None where the trainer is not resumable.
            on_progress: Called after every step.
            stop: Checked after every step.

        Raises:
            FoveateError: the model cannot be read, or the directory holds another run.
        """

    @abstractmethod
    def save(self, network: Any, output: Path) -> None:
        """Save the trained weights in the format that the method reads."""

    @abstractmethod
    def evaluate(self, model: Any, processor: Any, state: TrainState[Any], output: Path) -> dict[str, Any]:
        """Evaluate the trained weights on held-out samples, as parts of the command's JSON document.

        Args:
            model: The model that it was trained for.
            processor: Its processor.
            state: What `fit` gave, finished.
            output: What `save` wrote.
        """

    def describe(self, model: Any, state: TrainState[Any]) -> dict[str, Any]:
        """Describe the training, as parts of the command's JSON document."""
        return {"steps": state.step}

    @abstractmethod
    def report(self, document: dict[str, Any]) -> Iterable[str]:
        """Format a finished run's JSON document as lines of text."""


class StepTrainer(MethodTrainer[StepConfig]):
    """Trains a network in optimizer steps: `network` gives the first weights, `step` the losses."""

    @abstractmethod
    def network(self, model: Any) -> nn.Module:
        """The network with its first weights, the same for the same seed.

        Raises:
            FoveateError: there is none for this model.
        """

    @abstractmethod
    def step(self, model: Any, processor: Any, network: Any, data: Any, step: int) -> Losses:
        """The losses of a step, which follow from its number alone.

        Args:
            model: The model, its weights frozen.
            processor: Its processor.
            network: What is trained.
            data: See `data`.
            step: Number of the step, from 0.
        """

    def fit(
        self,
        model: Any,
        processor: Any,
        data: Any,
        run: RunDirectory,
        on_progress: OnProgress = quiet,
        stop: StopRequest | None = None,
    ) -> TrainState[Any]:
        """See `MethodTrainer.fit`."""
        network = self.network(model).to(model.device)
        with frozen(model):
            return loop.fit(
                network,
                lambda step: self.step(model, processor, network, data, step),
                self.config,
                self.about(),
                run,
                on_progress,
                stop,
            )

    def describe(self, model: Any, state: TrainState[Any]) -> dict[str, Any]:
        """Steps and samples."""
        return {"steps": state.step, "samples": state.step * self.config.batch_size}

    def report(self, document: dict[str, Any]) -> Iterable[str]:
        """What was written, then `report_measured`."""
        yield f"{document['output']} written: {document['steps']} steps, {document['samples']} samples."
        yield from self.report_measured(document)

    @abstractmethod
    def report_measured(self, document: dict[str, Any]) -> Iterable[str]:
        """Format the results of `evaluate` as lines of text."""

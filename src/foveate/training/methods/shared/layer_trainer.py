"""Base class of trainers with one network per decoder layer, evaluated by `fidelity`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from foveate.training.examples import Example
from foveate.training.methods.shared import fidelity
from foveate.training.methods.shared.base import StepTrainer
from foveate.training.methods.shared.loop import TrainState
from foveate.training.methods.shared.questions import QuestionsConfig
from foveate.training.methods.shared.teacher_forcing import check_layers, text_of

Config = TypeVar("Config", bound=QuestionsConfig)


class LayerTrainer(StepTrainer[Config]):
    """Trains a network for each of some decoder layers; the options have `layers`."""

    def about(self) -> dict[str, Any]:
        """Options and the content of files."""
        return {"method": self.name, **self.config.about()}

    def data(self) -> Callable[[int], Example]:
        """Questions by number."""
        return self.config.examples()

    def layers(self, model: Any) -> tuple[int, ...]:
        """The layers that get networks.

        Raises:
            FoveateError: the model does not have them.
        """
        text, layers = text_of(model), getattr(self.config, "layers")  # noqa: B009 - of the subclass
        return check_layers(text, self.default_layers(len(text.layers)) if layers is None else layers)

    @abstractmethod
    def default_layers(self, count: int) -> tuple[int, ...]:
        """The layers of a language model of `count` layers where none are named."""

    @abstractmethod
    def plans(self, output: str, layers: Sequence[int]) -> list[str]:
        """Plans that show what training was good for, at these layers."""

    def evaluate(self, model: Any, processor: Any, state: TrainState[Any], output: Path) -> dict[str, Any]:
        """`fidelity.measure` of the plans on held-out questions."""
        questions = self.config.pages.held_out(self.config.held_out)
        plans = self.plans(str(output), self.layers(model))
        return {"held_out": len(questions), "measured": fidelity.measure(model, processor, questions, plans)}

    def describe(self, model: Any, state: TrainState[Any]) -> dict[str, Any]:
        """Layers, steps and samples."""
        return {"layers": list(self.layers(model)), **super().describe(model, state)}

    def report_measured(self, document: dict[str, Any]) -> Iterable[str]:
        """A line for every plan."""
        yield f"On {document['held_out']} held-out questions (loss and distance from all tokens in nats a token):"
        for plan, row in document["measured"].items():
            yield (
                f"  {plan}: loss {row['loss']:.3f}, distance {row['kl']:.3f}, same token "
                f"{100 * row['agreement']:.1f} %, {100 * row['tokens']:.0f} % of the tokens in the last layer"
            )

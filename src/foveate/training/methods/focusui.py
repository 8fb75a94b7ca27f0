"""FocusUI's scorer (arXiv 2601.03928) of screen tokens by an instruction, trained on rendered screens.

For every screen and instruction the model encodes the image and reads the prompt up to its language model, where a plan
of `foveate.compress` sees what the method will see: the tokens of the image and the embeddings of the instruction. The
scorer learns the method's label by its loss (see `foveate.methods.pre_llm.focusui`). Screens are drawn from the number
of the step, so that a run that was stopped goes on where it stood and gives the same weights.

The paper trains the scorer together with the language model, on screenshots from the web. Alone, on rendered screens,
with this schedule, is a choice made here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.answering.conversations import inputs_of
from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write
from foveate.core.method import BudgetRule
from foveate.core.plan import Budget as Share
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens
from foveate.methods.pre_llm.focusui import FocusUI, Scorer, box_overlap, scorer_loss, screen_label, ui_graph
from foveate.methods.pre_llm.random import Random
from foveate.methods.pre_llm.uniform import Uniform
from foveate.runtime import compress
from foveate.synthetic.page import Box
from foveate.synthetic.screens import Element, Screen, render_screen
from foveate.training.methods.shared.base import StepTrainer
from foveate.training.methods.shared.config import TrainConfig, at_least_one, option
from foveate.training.methods.shared.loop import Losses, TrainState

#: Shares of tokens at which a scorer is measured.
BUDGETS = ("25%", "50%")
#: Pixels on the side of a token's cell at which even regions are found: the threshold of `ui_graph` is meant for it.
CELL = 28


@dataclass(frozen=True, kw_only=True)
class FocusUITrainConfig(TrainConfig):
    """How a scorer is trained; a sample is a screen with one instruction."""

    batch_size: int = option(8, "Screens a step, each with one instruction.", minimum=1)
    heads: int = option(8, "Heads of the scorer's attention.", minimum=1)
    dropout: float = option(0.1, "In training, 0 to 1.", minimum=0)
    held_out: int = option(200, "Held-out screens to measure the scorer on.", minimum=1, identifies=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "heads", "held_out")
        if not 0 <= self.dropout < 1:
            raise FoveateError(f"dropout must be at least 0 and less than 1, not {self.dropout}.")


class _TokensCaptured(Exception):  # noqa: N818 - ends a forward pass before the language model, whose output nobody needs
    def __init__(self, tokens: VisualTokens) -> None:
        self.tokens = tokens


@dataclass(frozen=True)
class _CaptureTokens(PreLLMMethod):
    """Captures the tokens that a method with the instruction would get."""

    name: ClassVar[str] = "watch"
    budget: ClassVar[BudgetRule] = "none"
    handles_tiles: ClassVar[bool] = True

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The instruction."""
        return (Need("instruction"),)

    def __call__(self, tokens: VisualTokens, count: int | None) -> Selection:
        """Never returns."""
        raise _TokensCaptured(tokens)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """Never called."""
        raise _TokensCaptured(tokens)


#: The tokens of an image and an instruction, as a method sees them.
Reader = Callable[[Image.Image, str], VisualTokens]


@contextmanager
def token_reader(model: Any, processor: Any) -> Generator[Reader]:
    """A reader of the tokens that methods get for an image and an instruction, without running the language model.

    Args:
        model: A model of a known family.
        processor: Its processor; the prompt is that of `foveate.ask`.

    Raises:
        FoveateError: the model is of no known family, or a plan is attached to it.
    """
    with compress(model, _CaptureTokens(), processor=processor):

        def read(image: Image.Image, instruction: str) -> VisualTokens:
            try:
                with torch.no_grad():
                    model(**inputs_of(model, processor, image, instruction), use_cache=False)
            except _TokensCaptured as captured:
                return captured.tokens
            raise FoveateError("this model's processor gives no image for a prompt that has one.")

        yield read


def box_coverage(tokens: VisualTokens, image: Image.Image, box: Box) -> Tensor:
    """The share of every token's cell that a box in pixels of the image covers: (N,), on the CPU; separators: 0."""
    coverage = torch.zeros(len(tokens))
    for crop in tokens.crops:
        left, top, right, bottom = crop.box
        x = [(edge / image.width - left) / (right - left) for edge in (box.left, box.right)]
        y = [(edge / image.height - top) / (bottom - top) for edge in (box.top, box.bottom)]
        coverage[crop.present.cpu()] = box_overlap(crop.grid, (x[0], y[0], x[1], y[1]))[crop.index.cpu() >= 0]
    return coverage


def token_labels(tokens: VisualTokens, image: Image.Image, box: Box) -> Tensor:
    """What the scorer shall say of every token, (N,), -1 to 1, on the CPU: `screen_label`, crop by crop."""
    graph = torch.zeros(len(tokens))
    for crop in tokens.crops:
        left, top, right, bottom = crop.box
        edges = (left * image.width, top * image.height, right * image.width, bottom * image.height)
        shown = image.convert("RGB").crop(tuple(round(edge) for edge in edges))  # ty: ignore[invalid-argument-type]
        shown = shown.resize((crop.grid.columns * CELL, crop.grid.rows * CELL), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(shown).copy()).permute(2, 0, 1).float() / 255
        graph[crop.present.cpu()] = ui_graph(pixels, crop.grid)[crop.index.cpu() >= 0]
    return screen_label(box_coverage(tokens, image, box), graph)


def sample_element(seed: int, split: str) -> tuple[Screen, Element]:
    """A screen, and the element that is meant: its kind is drawn first, because lists have many rows."""
    screen = render_screen(seed, split)
    generator = np.random.default_rng((seed, split == "heldout"))
    kinds = sorted({element.kind for element in screen.elements})
    kind = kinds[generator.integers(len(kinds))]
    of_kind = [element for element in screen.elements if element.kind == kind]
    return screen, of_kind[generator.integers(len(of_kind))]


def loss_of(scorer: Scorer, read: Reader, screen: Screen, element: Element) -> Tensor:
    """The loss of one screen with the instruction of one of its elements."""
    tokens = read(screen.image, element.instruction)
    scores = scorer(tokens.features.float(), tokens.get(Need("instruction")).float())
    label = token_labels(tokens, screen.image, element.box).to(scores.device)
    if tokens.separators is not None:
        scores, label = scores[~tokens.separators], label[~tokens.separators]
    return scorer_loss(scores, label)


class FocusUITrainer(StepTrainer[FocusUITrainConfig]):
    """Trains a scorer on rendered screens with instructions and the box of the element that is meant."""

    name = FocusUI.name
    config_class = FocusUITrainConfig
    output = "focusui.safetensors"
    examples = """
        foveate train-method focusui -o focusui.safetensors
        foveate train-method focusui --model Qwen/Qwen2.5-VL-3B-Instruct -o focusui.safetensors --steps 5000
        foveate ask screen.png "Click Save." --plan "pospad(selector=focusui(weights=focusui.safetensors)):50%"
    """

    def data(self) -> None:
        """Nothing: screens are drawn from their number."""

    def network(self, model: Any) -> Scorer:
        """A scorer for the width of the model's embeddings."""
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.config.seed)
            return Scorer(model.get_input_embeddings().embedding_dim, self.config.heads, self.config.dropout)

    def step(self, model: Any, processor: Any, network: Any, data: None, step: int) -> Losses:
        """One loss a screen."""
        with token_reader(model, processor) as read:
            for number in self.config.samples(step):
                seed = self.config.seed * 1_000_003 + number
                yield (
                    seed,
                    lambda seed=seed: loss_of(network, read, *sample_element(seed, "train")) / self.config.batch_size,
                )

    def save(self, network: Scorer, output: Path) -> None:
        """Write a trained scorer to a file that `focusui` reads."""
        with atomic_write(output) as partial:
            network.save(partial)

    def evaluate(self, model: Any, processor: Any, state: TrainState[Scorer], output: Path) -> dict[str, Any]:
        """Shares of elements that stay on held-out screens; see `measure`."""
        count = self.config.held_out
        return {"held_out": count, "measured": measure(model, processor, output, count)}

    def report_measured(self, document: dict[str, Any]) -> Iterable[str]:
        """A line for every budget."""
        yield f"Of the elements that are meant, in {document['held_out']} held-out screens, stays:"
        for budget, shares in document["measured"].items():
            listed = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
            yield f"  {budget} of the tokens: {listed}"


def measure(model: Any, processor: Any, weights: Path, count: int) -> dict[str, dict[str, float]]:
    """How much of the elements that instructions mean lies in the tokens that stay, on `count` held-out screens.

    Args:
        model: The model that the scorer was trained for.
        processor: Its processor.
        weights: The file of the scorer.
        count: Screens, with one instruction each.

    Returns:
        For every budget of `BUDGETS` the mean share of an element's area under ``focusui``, ``random``, ``uniform``.
    """
    shares: dict[str, dict[str, list[float]]] = {
        text: {name: [] for name in ("focusui", "random", "uniform")} for text in BUDGETS
    }
    with token_reader(model, processor) as read:
        for seed in range(count):
            screen, element = sample_element(seed, "heldout")
            tokens = read(screen.image, element.instruction)
            area = box_coverage(tokens, screen.image, element.box)
            methods = {"focusui": FocusUI(str(weights)), "random": Random(seed), "uniform": Uniform()}
            for text, values in shares.items():
                for name, method in methods.items():
                    indices = method(tokens, Share.parse(text).of(len(tokens))).indices.cpu()
                    values[name].append(float(area[indices].sum() / area.sum()))
    return {text: {name: float(np.mean(share)) for name, share in values.items()} for text, values in shares.items()}

"""Training of FocusUI's scorer (arXiv 2601.03928) on rendered screens, for one model whose weights stay as they are.

For every screen and instruction the model encodes the image and reads the prompt up to its language model, where a plan
of `foveate.compress` sees what the method will see: the tokens of the image and the embeddings of the instruction. The
scorer learns the method's label by its loss (see `foveate.methods.pre_llm.focusui`). Screens are drawn from the number
of the step, so that a run that was stopped goes on where it stood and gives the same weights.

The paper trains the scorer together with the language model, on screenshots from the web. Alone, on rendered screens,
with this schedule, is a choice made here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
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
from foveate.core.plan import Budget as Share
from foveate.core.pre_llm import Budget, Method
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens
from foveate.methods.pre_llm.focusui import FocusUI, Scorer, box_overlap, scorer_loss, screen_label, ui_graph
from foveate.methods.pre_llm.random import Random
from foveate.methods.pre_llm.uniform import Uniform
from foveate.runtime import compress
from foveate.synthetic.page import Box
from foveate.synthetic.screens import Element, Screen, render_screen
from foveate.training.callbacks import StopRequest
from foveate.training.methods import loop
from foveate.training.methods.relevance import RunDirectory, write_atomically

#: Shares of tokens at which a scorer is measured.
BUDGETS = ("25%", "50%")
#: Pixels on the side of a token's cell at which even regions are found: the threshold of `ui_graph` is meant for it.
CELL = 28


@dataclass(frozen=True)
class TrainConfig(loop.TrainConfig):
    """How a scorer is trained; a sample is a screen with one instruction.

    Args:
        heads: Of the scorer's attention.
        dropout: In training.
    """

    heads: int = 8
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1:
            raise FoveateError(f"heads must be 1 or more, not {self.heads}.")
        if not 0 <= self.dropout < 1:
            raise FoveateError(f"dropout must be at least 0 and less than 1, not {self.dropout}.")


class _Seen(Exception):  # noqa: N818 - ends a forward pass before the language model, whose output nobody needs
    def __init__(self, tokens: VisualTokens) -> None:
        self.tokens = tokens


@dataclass(frozen=True)
class _Watch(Method):
    """Shows what a method that needs the instruction would be given."""

    name: ClassVar[str] = "watch"
    budget: ClassVar[Budget] = "none"
    handles_tiles: ClassVar[bool] = True

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The instruction."""
        return (Need("instruction"),)

    def __call__(self, tokens: VisualTokens, count: int | None) -> Selection:
        """Never returns."""
        raise _Seen(tokens)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """Never called."""
        raise _Seen(tokens)


#: The tokens of an image and an instruction, as a method sees them.
Reader = Callable[[Image.Image, str], VisualTokens]


@contextmanager
def reading(model: Any, processor: Any) -> Generator[Reader]:
    """What a model's methods see of an image with an instruction, without running its language model.

    Args:
        model: A model of a known family.
        processor: Its processor; the prompt is that of `foveate.ask`.

    Raises:
        FoveateError: the model is of no known family, or a plan is attached to it.
    """
    with compress(model, _Watch(), processor=processor):

        def read(image: Image.Image, instruction: str) -> VisualTokens:
            try:
                with torch.no_grad():
                    model(**inputs_of(model, processor, image, instruction), use_cache=False)
            except _Seen as seen:
                return seen.tokens
            raise FoveateError("this model's processor gives no image for a prompt that has one.")

        yield read


def covered(tokens: VisualTokens, image: Image.Image, box: Box) -> Tensor:
    """The share of every token's cell that a box in pixels of the image covers: (N,), on the CPU; separators: 0."""
    found = torch.zeros(len(tokens))
    for crop in tokens.crops:
        left, top, right, bottom = crop.box
        x = [(edge / image.width - left) / (right - left) for edge in (box.left, box.right)]
        y = [(edge / image.height - top) / (bottom - top) for edge in (box.top, box.bottom)]
        found[crop.present.cpu()] = box_overlap(crop.grid, (x[0], y[0], x[1], y[1]))[crop.index.cpu() >= 0]
    return found


def labelled(tokens: VisualTokens, image: Image.Image, box: Box) -> Tensor:
    """What the scorer shall say of every token, (N,), -1 to 1, on the CPU: `screen_label`, crop by crop."""
    graph = torch.zeros(len(tokens))
    for crop in tokens.crops:
        left, top, right, bottom = crop.box
        edges = (left * image.width, top * image.height, right * image.width, bottom * image.height)
        shown = image.convert("RGB").crop(tuple(round(edge) for edge in edges))  # ty: ignore[invalid-argument-type]
        shown = shown.resize((crop.grid.columns * CELL, crop.grid.rows * CELL), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(shown).copy()).permute(2, 0, 1).float() / 255
        graph[crop.present.cpu()] = ui_graph(pixels, crop.grid)[crop.index.cpu() >= 0]
    return screen_label(covered(tokens, image, box), graph)


def drawn(seed: int, split: str) -> tuple[Screen, Element]:
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
    label = labelled(tokens, screen.image, element.box).to(scores.device)
    if tokens.separators is not None:
        scores, label = scores[~tokens.separators], label[~tokens.separators]
    return scorer_loss(scores, label)


def fit(
    model: Any,
    processor: Any,
    config: TrainConfig,
    folder: RunDirectory,
    on_progress: Callable[[int, float], None] = lambda step, loss: None,
    stop: StopRequest | None = None,
) -> loop.TrainState[Scorer]:
    """Train a scorer, or go on from the last state of a run.

    Args:
        model: A model of a known family; its weights stay as they are.
        processor: Its processor.
        config: Sizes and schedule.
        folder: Of the run.
        on_progress: Called with how many steps are done, and the loss of the last.
        stop: Asked after every step.

    Raises:
        FoveateError: the model cannot be read, or the folder holds a run of another scorer.
    """
    size = model.get_input_embeddings().embedding_dim
    scorer = _new(size, config).to(model.device)
    with reading(model, processor) as read:

        def losses(step: int) -> Iterator[tuple[int, Callable[[], Tensor]]]:
            for number in config.samples(step):
                seed = config.seed * 1_000_003 + number
                yield seed, lambda seed=seed: loss_of(scorer, read, *drawn(seed, "train")) / config.batch_size

        return loop.fit(scorer, losses, config, {"size": size}, folder, on_progress, stop)


def _new(size: int, config: TrainConfig) -> Scorer:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(config.seed)
        return Scorer(size, config.heads, config.dropout)


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
    with reading(model, processor) as read:
        for seed in range(count):
            screen, element = drawn(seed, "heldout")
            tokens = read(screen.image, element.instruction)
            area = covered(tokens, screen.image, element.box)
            methods = {"focusui": FocusUI(str(weights)), "random": Random(seed), "uniform": Uniform()}
            for text, found in shares.items():
                for name, method in methods.items():
                    kept = method(tokens, Share.parse(text).of(len(tokens))).indices.cpu()
                    found[name].append(float(area[kept].sum() / area.sum()))
    return {text: {name: float(np.mean(all_)) for name, all_ in found.items()} for text, found in shares.items()}


def save(scorer: Scorer, output: Path) -> None:
    """Write a trained scorer, completely or not at all."""
    write_atomically(output, scorer.save)

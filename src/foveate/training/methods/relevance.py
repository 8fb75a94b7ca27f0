"""Training of the explainability-based compressor's mapper (arXiv 2506.01097).

First what to learn from: for every sample, first-layer attention and the relevance of visual tokens for the answer, by
`foveate.training.methods.shared.relevance_targets`. This is the dear part, so each sample's is a file in the run's folder,
written at once or not at all. Then the mapper, a few thousand weights, learns relevance from attention; after every
epoch its state is written too. A run that is stopped goes on where it stood and gives the same weights.

The paper's details of training are not public; sizes, schedule and the share that is held out are choices made here.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.plan import Budget
from foveate.core.text_files import read_json
from foveate.core.tokens import topk_indices
from foveate.core.weights import read_state
from foveate.methods.pre_llm.relevance import Mapper, mapper_loss
from foveate.training.batch_stream import Draw, ListSource, RenderedSource
from foveate.training.dataset import read_conversations
from foveate.training.examples import PLACEHOLDER
from foveate.training.log import RunLog
from foveate.training.methods.shared.relevance_targets import Picture, explain, read_example
from foveate.training.recipe import Rendered, Sizes

#: Shares of tokens at which a mapper is measured.
BUDGETS = ("25%", "50%")
#: Samples kept out of training, which the mapper is measured on.
HELD_OUT = 0.1
#: Sizes of rendered images; each sample costs a backward pass through every pair of tokens.
SIZES = Sizes((96, 512), (96, 512), 150_000)

#: Told of what is being done, how much of it is done, and how much there is.
Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainConfig:
    """How a mapper is trained: AdamW, the learning rate falling to 0 by a cosine.

    Args:
        epochs: Times that every picture is seen.
        learning_rate: Greatest step size.
        batch_size: Pictures a step.
        seed: Of first weights and orders.
        width: Channels of the mapper.
        depth: Its layers between the first and the last.
    """

    epochs: int = 30
    learning_rate: float = 3e-3
    batch_size: int = 16
    seed: int = 0
    width: int = 16
    depth: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "width"):
            if getattr(self, name) < 1:
                raise FoveateError(f"{name} must be 1 or more, not {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise FoveateError(f"learning_rate must be greater than 0, not {self.learning_rate}.")


def rendered_samples(count: int, seed: int) -> list[Draw]:
    """Questions about rendered images; of another `count` the first ones are the same."""
    return [rendered_sample(number, seed) for number in range(count)]


def rendered_sample(number: int, seed: int, pages: Rendered | None = None) -> Draw:
    """Question `number` about a rendered image."""
    source = RenderedSource(pages or Rendered(sizes=SIZES), unit=32)
    return source.draws(range(number, number + 1), 1.0, np.random.default_rng((seed, number)))[0]


def file_samples(paths: Sequence[Path], images: Path | None, limit: int | None, seed: int) -> list[Draw]:
    """Conversations with images of files in LLaVA's format, in a random order, `limit` of them at most.

    Raises:
        FoveateError: a file has problems (all are named), or none shows an image.
    """
    examples = [example for path in paths for example in read_conversations(path, images)]
    shown = [e for e in examples if any(PLACEHOLDER in turn["value"] for turn in e.conversations)]
    if not shown:
        raise FoveateError(f"{', '.join(map(str, paths))}: no conversation there shows an image.")
    source = ListSource(shown.__getitem__, len(shown), seed)
    count = len(shown) if limit is None else min(limit, len(shown))
    return source.draws(range(count), 0.0, np.random.default_rng(seed))


class RunDirectory:
    """Where a run keeps what it has done, beside the file that it will write.

    Args:
        output: The file.
        about: What the run is of; a folder of another run is refused.
        resume: Whether a folder that is there already may be gone on with.

    Raises:
        FoveateError: the folder is of another run, or there is one and `resume` is False.
    """

    def __init__(self, output: Path, about: dict[str, Any], resume: bool = True) -> None:
        if not output.parent.is_dir():
            raise FoveateError(f"there is no folder {output.parent} to write {output.name} into.")
        self.path = output.with_name(f"{output.name}.run")
        self.log = RunLog(self.path / "log.jsonl")
        known = self.path / "about.json"
        if known.is_file():
            if not resume:
                raise FoveateError(f"{self.path} holds a run already; remove it, or leave --no-resume out to go on.")
            before = read_json(known)
            if differs := sorted(name for name in before.keys() | about if before.get(name) != about.get(name)):
                raise FoveateError(
                    f"{self.path} holds a run with another {', '.join(differs)}; remove it, or write another file."
                )
        else:
            self.path.mkdir(exist_ok=True)
            write_atomically(known, lambda path: path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8"))

    def pictures(self, number: int) -> list[Picture] | None:
        """What was found of a sample; None: nothing yet."""
        path = self._sample(number)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise FoveateError(f"{path} cannot be read ({error}); remove it, and it will be made again.") from error
        count = len(tensors) // len(fields(Picture))
        return [Picture(**{f.name: tensors[f"{place}.{f.name}"] for f in fields(Picture)}) for place in range(count)]

    def keep(self, number: int, pictures: list[Picture]) -> None:
        """Write what was found of a sample."""
        tensors = {f"{place}.{name}": value.contiguous() for place, own in enumerate(pictures)
                   for name, value in vars(own).items()}  # fmt: skip
        self._sample(number).parent.mkdir(exist_ok=True)
        write_atomically(self._sample(number), lambda path: save_file(tensors, path))

    def _sample(self, number: int) -> Path:
        return self.path / "samples" / f"{number:06}.safetensors"

    @property
    def state(self) -> Path:
        """The mapper and its optimizer after the last epoch that was finished."""
        return self.path / "state.pt"


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file that is there completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        partial.replace(path)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # torch and safetensors say with their own that it is full
        partial.unlink(missing_ok=True)
        raise FoveateError(f"{path} could not be written: {str(error).splitlines()[0]}") from error


def find_pictures(
    model: Any,
    processor: Any,
    samples: Sequence[Draw],
    folder: RunDirectory,
    own_answers: int | None,
    on_progress: Told,
) -> list[list[Picture]]:
    """What to learn from every sample: read where it is known, found by the model where it is not.

    Args:
        model: A model of a known family.
        processor: Its processor.
        samples: Make the examples.
        folder: Of the run.
        own_answers: The most tokens of the model's own answers, which are then explained; None: the data's answers.
        on_progress: Told of every sample.

    Raises:
        FoveateError: a sample cannot be read, or the model cannot be asked.
    """
    found = []
    for number, draw in enumerate(samples):
        on_progress("relevance", number, len(samples))
        pictures = folder.pictures(number)
        if pictures is None:
            start = time.perf_counter()
            try:
                inputs, answer = read_example(model, processor, draw())
                pictures = explain(model, inputs, answer if own_answers is None else own_answers)
            except FoveateError as error:
                raise FoveateError(f"sample {number}: {error}") from error
            folder.keep(number, pictures)
            tokens = sum(int(picture.present.sum()) for picture in pictures)
            took = round(time.perf_counter() - start, 3)
            folder.log.append({"step": 0, "sample": number, "pictures": len(pictures), "tokens": tokens,
                               "took": took, "seconds": 0.0})  # fmt: skip
        found.append(pictures)
    on_progress("relevance", len(samples), len(samples))
    return found


def divide(samples: list[list[Picture]]) -> tuple[list[Picture], list[Picture]]:
    """Pictures to learn from and pictures held out, from different samples.

    A picture whose tokens are all alike to the answer, or that has a single one, teaches nothing and is left out.

    Raises:
        FoveateError: there are too few.
    """
    first = max(1, round(HELD_OUT * len(samples)))
    held, learned = ([p for own in part for p in own if _tells(p)] for part in (samples[:first], samples[first:]))
    if not held or not learned:
        raise FoveateError(
            f"{len(samples)} samples leave {len(learned)} pictures to learn from and {len(held)} to measure on; give "
            "more samples, with images of at least two tokens."
        )
    return learned, held


def _tells(picture: Picture) -> bool:
    target = picture.target[picture.present]
    return bool(target.max() > target.min())


def fit(
    learned: Sequence[Picture], held: Sequence[Picture], config: TrainConfig, folder: RunDirectory, on_progress: Told
) -> Mapper:
    """Train a mapper, or go on from the last finished epoch of a run with the same pictures.

    Args:
        learned: Pictures to learn from.
        held: Pictures whose loss is logged.
        config: Sizes and schedule.
        folder: Of the run.
        on_progress: Told of every epoch.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        mapper = Mapper(config.width, config.depth)
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=config.learning_rate, weight_decay=0.0)
    steps_an_epoch = -(-len(learned) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * steps_an_epoch)
    kinds = {"mapper": mapper, "optimizer": optimizer, "schedule": schedule}
    of = asdict(config) | {"pictures": _digest(learned)}
    done = 0
    if folder.state.is_file():
        state = read_state(folder.state, ("of", "epoch", *kinds))
        if state["of"] == of:
            done = state["epoch"]
            for name, one in kinds.items():
                one.load_state_dict(state[name])
    earlier = folder.log.rewind(done * steps_an_epoch)
    start = time.perf_counter()
    for epoch in range(done, config.epochs):
        on_progress("mapper", epoch, config.epochs)
        order = np.random.default_rng((config.seed, epoch)).permutation(len(learned))
        total = 0.0
        for batch in np.array_split(order, steps_an_epoch):
            loss = torch.stack([_loss(mapper, learned[place]) for place in batch]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(batch)
        with torch.no_grad():
            held_loss = float(torch.stack([_loss(mapper, picture) for picture in held]).mean())
        seconds = round(earlier + time.perf_counter() - start, 3)
        folder.log.append({"step": (epoch + 1) * steps_an_epoch, "epoch": epoch + 1, "loss": total / len(learned),
                           "held_out_loss": held_loss, "seconds": seconds})  # fmt: skip
        state = {"of": of, "epoch": epoch + 1} | {name: one.state_dict() for name, one in kinds.items()}
        write_atomically(folder.state, lambda path, state=state: torch.save(state, path))
    on_progress("mapper", config.epochs, config.epochs)
    return mapper.eval()


def _loss(mapper: Mapper, picture: Picture) -> Tensor:
    return mapper_loss(mapper(picture.attention)[picture.present], picture.target[picture.present])


def _digest(pictures: Sequence[Picture]) -> str:
    """Changes when a picture does."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(picture.target.numpy().tobytes() + picture.attention.numpy().tobytes())
    return digest.hexdigest()


def kept_shares(mapper: Mapper, pictures: Sequence[Picture]) -> dict[str, dict[str, float]]:
    """Share of the relevance that stays at every budget, mean over pictures, of whom to listen to.

    Returns:
        For every budget of `BUDGETS`: ``mapper``, ``attention`` (first-layer attention as it is), ``random`` (what is
        to be expected of it) and ``relevance`` itself, the most that is possible.
    """
    shares: dict[str, dict[str, float]] = {}
    for text in BUDGETS:
        budget = Budget.parse(text)
        rows = []
        for picture in pictures:
            target = picture.target[picture.present]
            with torch.no_grad():
                scores = mapper(picture.attention)[picture.present]
            count = budget.of(len(target))
            chosen = (scores, picture.attention[picture.present], target)
            rows.append([*(float(target[topk_indices(own, count)].sum()) for own in chosen), count / len(target)])
        mean = np.mean(rows, axis=0).tolist()
        shares[text] = dict(zip(("mapper", "attention", "relevance", "random"), mean, strict=True))
    return shares


def save(mapper: Mapper, output: Path) -> None:
    """Write the trained mapper, completely or not at all."""
    write_atomically(output, mapper.save)

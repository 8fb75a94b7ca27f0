"""The explainability-based compressor's mapper (arXiv 2506.01097), from first-layer attention to relevance.

First what to learn from: for every sample, first-layer attention and the relevance of visual tokens for the answer, by
`foveate.training.methods.shared.relevance_targets`. This is the expensive part, so each sample's is a file in the
run's directory. Then the mapper, a few thousand weights, learns relevance from attention; after every epoch its state
is written too. A run that is stopped goes on where it stood and gives the same weights.

The paper's details of training are not public; sizes, schedule and the share that is held out are choices made here.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write
from foveate.core.plan import Budget
from foveate.core.tokens import topk_indices
from foveate.methods.pre_llm.relevance import Mapper, Relevance, mapper_loss
from foveate.training.batch_stream import Draw
from foveate.training.callbacks import StopRequest
from foveate.training.methods.shared.base import MethodTrainer
from foveate.training.methods.shared.config import at_least_one, check_schedule, identity, option
from foveate.training.methods.shared.loop import TrainState
from foveate.training.methods.shared.questions import (
    DATA_HELP,
    IMAGES_HELP,
    check_images,
    digests,
    file_samples,
    rendered_samples,
)
from foveate.training.methods.shared.relevance_targets import RelevanceMap, explain, read_example
from foveate.training.run_directory import OnProgress, RunDirectory, quiet

#: Shares of tokens at which a mapper is measured.
BUDGETS = ("25%", "50%")
#: Samples kept out of training, which the mapper is measured on.
HELD_OUT = 0.1


@dataclass(frozen=True, kw_only=True)
class RelevanceTrainConfig:
    """Options of the mapper's training: AdamW with a cosine learning-rate schedule."""

    data: tuple[Path, ...] = option((), DATA_HELP, identifies=False)
    images: Path | None = option(None, IMAGES_HELP, identifies=False)
    limit: int | None = option(None, "Read this many of the files' conversations.", minimum=2, identifies=False)
    rendered: int | None = option(
        None, "Without files: questions about rendered images.", minimum=2, shown="500", identifies=False
    )
    own_answers: bool = option(
        False, "Explain the model's own answers instead of the data's.", flags="--own-answers/--data-answers"
    )
    max_new_tokens: int = option(64, "Length at which own answers are cut off.", minimum=1)
    epochs: int = option(30, "Times that the network sees every picture.", minimum=1)
    learning_rate: float = option(3e-3, "Greatest step size.")
    batch_size: int = option(16, "Pictures a step.", minimum=1)
    seed: int = option(0, "Of orders, rendered images and first weights.", minimum=0)
    width: int = option(16, "Channels of the mapper.", minimum=1)
    depth: int = option(1, "Its layers between the first and the last.", minimum=0)

    def __post_init__(self) -> None:
        at_least_one(self, "epochs", "batch_size", "width", "max_new_tokens")
        check_schedule(self.learning_rate, self.seed)
        for name in ("rendered", "limit"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise FoveateError(f"{name} must be 2 or more, not {value}: a sample is held out.")
        if self.depth < 0:
            raise FoveateError(f"depth must be 0 or more, not {self.depth}.")
        if self.data and self.rendered is not None:
            raise FoveateError("--rendered makes data where there are no files; leave out one of them.")
        check_images(self.images, self.data)
        if self.limit is not None and not self.data:
            raise FoveateError("--limit is for files; --rendered says how many rendered images there are.")


@dataclass(frozen=True)
class MapperState(TrainState[Mapper]):
    """A mapper with its training and held-out maps, and the number of samples."""

    train_maps: Sequence[RelevanceMap] = ()
    held_out_maps: Sequence[RelevanceMap] = ()
    samples: int = 0


class RelevanceTrainer(MethodTrainer[RelevanceTrainConfig]):
    """Trains a mapper: a few convolutions that guess from first-layer attention what an answer rests on.

    The model answers and is differentiated, once a sample; attention times its gradient, rolled out over all layers,
    tells how much each visual token matters.
    """

    name = Relevance.name
    config_class = RelevanceTrainConfig
    output = "relevance.safetensors"
    examples = """
        foveate train-method relevance -o mapper.safetensors --rendered 500
        foveate train-method relevance --model llava-hf/llava-1.5-7b-hf --data q.jsonl -o mapper.safetensors
        foveate ask photo.jpg "What is this?" --plan "relevance(weights=mapper.safetensors):25%"
    """

    def about(self) -> dict[str, Any]:
        """Identity of the relevance maps; mappers with other settings may be trained on the same ones."""
        config = self.config
        return {
            "method": self.name,
            "data": digests(config.data) or "rendered",
            "answers": f"own, {config.max_new_tokens} tokens at most" if config.own_answers else "of the data",
            "seed": config.seed,
        }

    def data(self) -> list[Draw]:
        """Questions of the files, or about rendered images."""
        config = self.config
        if config.data:
            return file_samples(config.data, config.images, config.limit, config.seed)
        return rendered_samples(config.rendered or 500, config.seed)

    def fit(
        self,
        model: Any,
        processor: Any,
        data: Sequence[Draw],
        run: RunDirectory,
        on_progress: OnProgress = quiet,
        stop: StopRequest | None = None,
    ) -> MapperState:
        """Compute the relevance maps of all samples, then train the mapper on them."""
        stop = stop or StopRequest()
        max_new_tokens = self.config.max_new_tokens if self.config.own_answers else None
        maps = collect_relevance_maps(model, processor, data, run, max_new_tokens, on_progress, stop)
        if len(maps) < len(data):
            return MapperState(self._new(), 0, False, samples=len(maps))
        train_maps, held_out_maps = split_maps(maps)
        return replace(self.fit_mapper(train_maps, held_out_maps, run, on_progress, stop), samples=len(maps))

    def fit_mapper(
        self,
        train_maps: Sequence[RelevanceMap],
        held_out_maps: Sequence[RelevanceMap],
        run: RunDirectory,
        on_progress: OnProgress = quiet,
        stop: StopRequest | None = None,
    ) -> MapperState:
        """Train a mapper, or resume from the last finished epoch of a run with the same maps.

        Args:
            train_maps: Maps to train on.
            held_out_maps: Maps whose loss is logged.
            run: Keeps log and state.
            on_progress: Called after every epoch.
            stop: Asked after every epoch.
        """
        config, stop, mapper = self.config, stop or StopRequest(), self._new()
        optimizer = torch.optim.AdamW(mapper.parameters(), lr=config.learning_rate, weight_decay=0.0)
        steps_an_epoch = -(-len(train_maps) // config.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * steps_an_epoch)
        modules = {"mapper": mapper, "optimizer": optimizer, "schedule": schedule}
        identity_ = identity(config) | {"maps": _digest(train_maps)}
        done = 0
        state = run.load_state(("of", "epoch", *modules))
        if state is not None and state["of"] == identity_:
            done = state["epoch"]
            for name, module in modules.items():
                module.load_state_dict(state[name])
        earlier, start = run.log.rewind(done * steps_an_epoch), time.perf_counter()
        while done < config.epochs and not stop.requested:
            order = np.random.default_rng((config.seed, done)).permutation(len(train_maps))
            total = 0.0
            for batch in np.array_split(order, steps_an_epoch):
                loss = torch.stack([_loss(mapper, train_maps[place]) for place in batch]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(batch)
            with torch.no_grad():
                held_loss = float(torch.stack([_loss(mapper, map_) for map_ in held_out_maps]).mean())
            done += 1
            seconds = round(earlier + time.perf_counter() - start, 3)
            run.log.append({"step": done * steps_an_epoch, "epoch": done, "loss": total / len(train_maps),
                            "held_out_loss": held_loss, "seconds": seconds})  # fmt: skip
            run.save_state(
                {"of": identity_, "epoch": done} | {name: module.state_dict() for name, module in modules.items()}
            )
            on_progress("mapper", done, config.epochs, total / len(train_maps))
        return MapperState(mapper.eval(), done * steps_an_epoch, done == config.epochs, train_maps, held_out_maps)

    def _new(self) -> Mapper:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return Mapper(self.config.width, self.config.depth)

    def save(self, network: Mapper, output: Path) -> None:
        """Write a trained mapper to a file that `relevance` reads."""
        with atomic_write(output) as partial:
            network.save(partial)

    def evaluate(self, model: Any, processor: Any, state: TrainState[Mapper], output: Path) -> dict[str, Any]:
        """Relevance retained in the held-out maps; see `kept_shares`."""
        assert isinstance(state, MapperState)
        return {"held_out": len(state.held_out_maps), "measured": kept_shares(state.network, state.held_out_maps)}

    def describe(self, model: Any, state: TrainState[Mapper]) -> dict[str, Any]:
        """Steps and pictures."""
        assert isinstance(state, MapperState)
        counts = {"samples": state.samples, "images": len(state.train_maps), "epochs": self.config.epochs}
        return {"steps": state.step, **counts}

    def report(self, document: dict[str, Any]) -> Iterable[str]:
        """A line for every budget."""
        yield f"{document['output']} written: {document['images']} images, {document['epochs']} epochs."
        yield f"Relevance retained in {document['held_out']} held-out images:"
        for budget, shares in document["measured"].items():
            listed = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
            yield f"  {budget} of the tokens: {listed}"


class SampleFiles:
    """The relevance maps of a run's samples, one file per sample.

    Args:
        run: The run.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._folder = run.path / "samples"

    def read(self, number: int) -> list[RelevanceMap] | None:
        """Read the maps of a sample; None: not computed yet.

        Raises:
            FoveateError: its file is damaged.
        """
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise FoveateError(f"{path} cannot be read ({error}); remove it, and it will be made again.") from error
        count = len(tensors) // len(fields(RelevanceMap))
        return [
            RelevanceMap(**{f.name: tensors[f"{place}.{f.name}"] for f in fields(RelevanceMap)})
            for place in range(count)
        ]

    def write(self, number: int, maps: list[RelevanceMap]) -> None:
        """Write the maps of a sample."""
        tensors = {f"{place}.{name}": value.contiguous() for place, map_ in enumerate(maps)
                   for name, value in vars(map_).items()}  # fmt: skip
        self._folder.mkdir(exist_ok=True)
        with atomic_write(self._path(number)) as partial:
            save_file(tensors, partial)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06}.safetensors"


def collect_relevance_maps(
    model: Any,
    processor: Any,
    samples: Sequence[Draw],
    run: RunDirectory,
    own_answers: int | None,
    on_progress: OnProgress = quiet,
    stop: StopRequest | None = None,
) -> list[list[RelevanceMap]]:
    """Relevance maps of all samples: read from the run's files, or computed with the model.

    Args:
        model: A model of a known family.
        processor: Its processor.
        samples: Make the examples.
        run: Keeps what is known.
        own_answers: The most tokens of the model's own answers, which are then explained; None: the data's answers.
        on_progress: Called after every sample.
        stop: Asked before every sample; what is known until then is returned.

    Raises:
        FoveateError: a sample cannot be read, or the model does not fit.
    """
    files, stop, collected = SampleFiles(run), stop or StopRequest(), []
    for number, draw in enumerate(samples):
        if stop.requested:
            break
        maps = files.read(number)
        if maps is None:
            start = time.perf_counter()
            try:
                inputs, answer = read_example(model, processor, draw())
                maps = explain(model, inputs, answer if own_answers is None else own_answers)
            except FoveateError as error:
                raise FoveateError(f"sample {number}: {error}") from error
            files.write(number, maps)
            tokens = sum(int(map_.present.sum()) for map_ in maps)
            duration = round(time.perf_counter() - start, 3)
            run.log.append({"step": 0, "sample": number, "images": len(maps), "tokens": tokens,
                            "took": duration, "seconds": 0.0})  # fmt: skip
        collected.append(maps)
        on_progress("relevance", len(collected), len(samples), None)
    return collected


def split_maps(samples: list[list[RelevanceMap]]) -> tuple[list[RelevanceMap], list[RelevanceMap]]:
    """Split maps into training and held-out ones, from different samples.

    A map with equal relevance of all tokens, or with a single token, is uninformative and dropped.

    Raises:
        FoveateError: there are too few.
    """
    first = max(1, round(HELD_OUT * len(samples)))
    held_out_maps, train_maps = (
        [map_ for sample_maps in part for map_ in sample_maps if _is_informative(map_)]
        for part in (samples[:first], samples[first:])
    )
    if not held_out_maps or not train_maps:
        raise FoveateError(
            f"{len(samples)} samples leave {len(train_maps)} images to train on and {len(held_out_maps)} to test on; "
            "give more samples, with images of at least two tokens."
        )
    return train_maps, held_out_maps


def _is_informative(map_: RelevanceMap) -> bool:
    target = map_.target[map_.present]
    return bool(target.max() > target.min())


def _loss(mapper: Mapper, map_: RelevanceMap) -> Tensor:
    return mapper_loss(mapper(map_.attention)[map_.present], map_.target[map_.present])


def _digest(maps: Sequence[RelevanceMap]) -> str:
    """Hash of maps."""
    digest = hashlib.sha256()
    for map_ in maps:
        digest.update(map_.target.numpy().tobytes() + map_.attention.numpy().tobytes())
    return digest.hexdigest()


def kept_shares(mapper: Mapper, maps: Sequence[RelevanceMap]) -> dict[str, dict[str, float]]:
    """Relevance retained at each budget, averaged over maps, by selector.

    Returns:
        For every budget of `BUDGETS`: ``mapper``, ``attention`` (first-layer attention as it is), ``random`` (what is
        to be expected of it) and ``relevance`` itself, the most that is possible.
    """
    shares: dict[str, dict[str, float]] = {}
    for text in BUDGETS:
        budget = Budget.parse(text)
        rows = []
        for map_ in maps:
            target = map_.target[map_.present]
            with torch.no_grad():
                scores = mapper(map_.attention)[map_.present]
            count = budget.of(len(target))
            selectors = (scores, map_.attention[map_.present], target)
            rows.append(
                [
                    *(float(target[topk_indices(values, count)].sum()) for values in selectors),
                    count / len(target),
                ]
            )
        mean = np.mean(rows, axis=0).tolist()
        shares[text] = dict(zip(("mapper", "attention", "relevance", "random"), mean, strict=True))
    return shares

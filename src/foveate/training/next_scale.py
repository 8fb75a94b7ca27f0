"""Train the small next-scale model: first its tokenizer, then its transformer.

The data of a step depend on its number alone, so that a resumed run ends with the same weights.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json
from foveate.models.next_scale.configuration import NextScaleConfig
from foveate.models.next_scale.modeling import NextScaleForImageGeneration
from foveate.synthetic import class_pictures
from foveate.training.callbacks import StopRequest
from foveate.training.recipe_file import read_settings
from foveate.training.run_directory import OnProgress, RunDirectory, quiet

#: Steps after which the state of a run is written.
SAVE_EVERY = 50
#: Decay of a code's average per step; and the least weight with which a code is not reset.
_DECAY, _DEAD = 0.98, 0.3
_COMMITMENT = 0.25


@dataclass(frozen=True)
class Recipe:
    """Settings of a run.

    Args:
        tokenizer_steps: Optimizer steps of the tokenizer.
        tokenizer_batch_size: Images per step.
        tokenizer_learning_rate: Peak learning rate of the tokenizer.
        steps: Optimizer steps of the transformer.
        batch_size: Images per step.
        learning_rate: Peak learning rate of the transformer.
        class_dropout: Share of images without their class, for classifier-free guidance.
        seed: Seed of initial weights and random numbers.
    """

    tokenizer_steps: int = 600
    tokenizer_batch_size: int = 32
    tokenizer_learning_rate: float = 3e-3
    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 3e-3
    class_dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokenizer_steps", "tokenizer_batch_size", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise FoveateError(f"{name} must be 1 or more, not {getattr(self, name)}.")
        for name in ("tokenizer_learning_rate", "learning_rate"):
            if not getattr(self, name) > 0:
                raise FoveateError(f"{name} must be greater than 0, not {getattr(self, name)}.")
        if not 0 <= self.class_dropout < 1:
            raise FoveateError(f"class_dropout must be 0 or more and less than 1, not {self.class_dropout}.")


def read_recipe(path: Path) -> tuple[NextScaleConfig, Recipe]:
    """The model and the settings of a JSON file {"model": {...}, "training": {...}}.

    Raises:
        FoveateError: the file is invalid, or has an unknown setting.
    """
    try:
        document = read_json(path)
        model, training = dict(document.pop("model", {})), dict(document.pop("training", {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise FoveateError(f"{path} is no recipe of a next-scale model: {error}") from error
    known = {
        "model": {field.name for field in dataclasses.fields(NextScaleConfig)},
        "training": {field.name for field in dataclasses.fields(Recipe)},
    }
    for name, settings in (("model", model), ("training", training)):
        if unknown := sorted(settings.keys() - known[name]):
            raise FoveateError(f"{path} has no setting {unknown[0]!r} in {name!r}.")
    if document:
        raise FoveateError(f"{path} has a part {sorted(document)[0]!r}; possible are model and training.")
    settings = read_settings(Recipe, training, f"{path}: training")
    try:
        return NextScaleConfig(**model), settings
    except Exception as error:  # of the package that validates configurations, or of their arithmetic
        raise FoveateError(f"{path}: model: {' '.join(str(error).split())}") from error


class CodeAverages:
    """Codebook updates by moving averages of the cells of each code (van den Oord et al., arXiv 1711.00937, A.1).

    An unused code is reset to a cell of the batch.
    """

    def __init__(self, codebook: Tensor) -> None:
        self.codebook = codebook
        self.weight = torch.zeros(len(codebook))
        self.total = torch.zeros_like(codebook)

    @torch.no_grad()
    def begin(self, cells: Tensor, chance: torch.Generator) -> None:
        """Initialise the codes from cells (n, C) of the first batch."""
        chosen = cells[torch.randint(len(cells), (len(self.codebook),), generator=chance)]
        self.codebook.copy_(chosen)
        self.weight.fill_(1.0)
        self.total.copy_(chosen)

    @torch.no_grad()
    def update(self, cells: Tensor, ids: Tensor, chance: torch.Generator) -> None:
        """Move the codes towards the cells (n, C) that chose them (n,)."""
        hits = torch.zeros_like(self.weight).index_add_(0, ids, torch.ones(len(ids)))
        sums = torch.zeros_like(self.total).index_add_(0, ids, cells)
        # Shares of the batch times the number of codes: 1 is a code that is used as often as the mean one.
        share = len(self.codebook) / len(cells)
        self.weight.mul_(_DECAY).add_(hits * share, alpha=1 - _DECAY)
        self.total.mul_(_DECAY).add_(sums * share, alpha=1 - _DECAY)
        dead = (self.weight < _DEAD * 0.1).nonzero().flatten()
        if len(dead):
            fresh = cells[torch.randint(len(cells), (len(dead),), generator=chance)]
            self.weight[dead], self.total[dead] = 1.0, fresh
        self.codebook.copy_(self.total / self.weight[:, None])


def tokenizer_loss(model: NextScaleForImageGeneration, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tokenizer's loss on images (B, 3, H, W).

    Reconstruction error of the image, and over the maps the mean distance of the features to the quantised sum of the
    maps: with weight 0.25 for the encoder, with 1 for the refinements (VAR, equation 5, without its GAN part).

    Returns:
        The loss, the cells (n, C) of all maps and their codes (n,).
    """
    tokenizer = model.tokenizer
    features = tokenizer.encoder(pixels)
    ids, cells, sums = tokenizer.quantiser(features)
    commitment = torch.stack([F.mse_loss(features, so_far.detach()) for so_far in sums]).mean()
    refining = torch.stack([F.mse_loss(so_far, features.detach()) for so_far in sums]).mean()
    through = features + (sums[-1] - features).detach()
    loss = F.mse_loss(tokenizer.decoder(through), pixels) + _COMMITMENT * commitment + refining
    return loss, torch.cat([map_.flatten(0, 1) for map_ in cells]).detach(), torch.cat([map_.flatten() for map_ in ids])


def rate(greatest: float, step: int, steps: int) -> float:
    """Learning rate of a step: linear warm-up over a twentieth of the steps, then linear decay to 0."""
    warmup = max(1, steps // 20)
    return greatest * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup + 1), 1)


def train(
    config: NextScaleConfig,
    recipe: Recipe,
    folder: RunDirectory,
    on_progress: OnProgress = quiet,
    stop: StopRequest | None = None,
) -> tuple[NextScaleForImageGeneration, bool]:
    """Train a model, or resume from the last state of a run.

    Args:
        config: The model.
        recipe: Settings.
        folder: Directory of the run: gets its state every 50 steps and when stopped, and a log entry every 10.
        on_progress: Called with the stage, its finished steps, all its steps, and the last loss.
        stop: Checked after every step.

    Returns:
        The model, and whether all steps are done.

    Raises:
        FoveateError: the images do not fit the model.
    """
    if config.num_classes != len(class_pictures.CLASSES):
        raise FoveateError(
            f"num_classes must be {len(class_pictures.CLASSES)}, the classes of the images, not {config.num_classes}."
        )
    stop = stop or StopRequest()
    config.class_names = list(class_pictures.CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(recipe.seed)
        model = NextScaleForImageGeneration(config).train()
    averages = CodeAverages(model.tokenizer.quantiser.codebook)
    tokenizer = [parameter for parameter in model.tokenizer.parameters() if parameter.requires_grad]
    transformer = [parameter for name, parameter in model.named_parameters() if not name.startswith("tokenizer.")]
    optimizers = {
        "tokenizer": torch.optim.AdamW(tokenizer, betas=(0.9, 0.95), weight_decay=0.0),
        "transformer": torch.optim.AdamW(transformer, betas=(0.9, 0.95), weight_decay=0.02),
    }
    done = _restore(folder, model, averages, optimizers)
    stages = [("tokenizer", recipe.tokenizer_steps), ("transformer", recipe.steps)]
    passed = 0  # steps of all stages
    earlier, start = folder.log.rewind(sum(done.values())), time.perf_counter()
    for stage, steps in stages:
        while done[stage] < steps and not stop.requested:
            step, optimizer = done[stage], optimizers[stage]
            chance = torch.Generator().manual_seed(recipe.seed * 1_000_003 + passed + step)
            greatest = recipe.tokenizer_learning_rate if stage == "tokenizer" else recipe.learning_rate
            for group in optimizer.param_groups:
                group["lr"] = rate(greatest, step, steps)
            optimizer.zero_grad(set_to_none=True)
            if stage == "tokenizer":
                loss = _tokenizer_step(model, averages, recipe, step, chance)
            else:
                loss = _transformer_step(model, recipe, step, chance)
            parameters = tokenizer if stage == "tokenizer" else transformer
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            done[stage] += 1
            last = done[stage] == steps
            if done[stage] % 10 == 0 or last:
                seconds = round(earlier + time.perf_counter() - start, 3)
                folder.log.append({"step": passed + done[stage], "stage": stage, "loss": loss, "seconds": seconds})
            on_progress(stage, done[stage], steps, loss)
            if done[stage] % SAVE_EVERY == 0 or last or stop.requested:
                _keep(folder, model, averages, optimizers, done)
        passed += steps
    return model.eval(), all(done[stage] == steps for stage, steps in stages)


def _tokenizer_step(
    model: NextScaleForImageGeneration, averages: CodeAverages, recipe: Recipe, step: int, chance: torch.Generator
) -> float:
    size = recipe.tokenizer_batch_size
    pixels, _ = class_pictures.batch(range(step * size, (step + 1) * size), model.config.image_size)
    if step == 0:
        with torch.no_grad():
            features = model.tokenizer.encoder(pixels)
        averages.begin(features.flatten(2).transpose(1, 2).flatten(0, 1), chance)
    loss, cells, ids = tokenizer_loss(model, pixels)
    loss.backward()
    averages.update(cells, ids, chance)
    return float(loss.detach())


def _transformer_step(model: NextScaleForImageGeneration, recipe: Recipe, step: int, chance: torch.Generator) -> float:
    size = recipe.batch_size
    pixels, labels = class_pictures.batch(range(step * size, (step + 1) * size), model.config.image_size)
    with torch.no_grad():
        ids = model.tokenizer.encode(pixels)
    unconditional = torch.rand(size, generator=chance) < recipe.class_dropout
    loss = model(labels.masked_fill(unconditional, model.config.num_classes), ids).loss
    assert loss is not None
    loss.backward()
    return float(loss.detach())


def _keep(
    folder: RunDirectory,
    model: NextScaleForImageGeneration,
    averages: CodeAverages,
    optimizers: dict[str, Any],
    done: dict[str, int],
) -> None:
    state = {
        "done": dict(done),
        "model": model.state_dict(),
        "averages": {"weight": averages.weight, "total": averages.total},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
    }
    folder.save_state(state)


def _restore(
    folder: RunDirectory, model: NextScaleForImageGeneration, averages: CodeAverages, optimizers: dict[str, Any]
) -> dict[str, int]:
    """Load the last state; returns the finished steps of each stage."""
    state = folder.load_state(("done", "model", "averages", "optimizers"))
    if state is None:
        return dict.fromkeys(optimizers, 0)
    model.load_state_dict(state["model"])
    averages.weight.copy_(state["averages"]["weight"])
    averages.total.copy_(state["averages"]["total"])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    return dict(state["done"])


@torch.no_grad()
def measure(model: NextScaleForImageGeneration, count: int = 64) -> dict[str, float]:
    """Evaluate a model on held-out images: mean squared reconstruction error of [-1, 1], and nats per token."""
    pixels, labels = class_pictures.batch(range(count), model.config.image_size, "held-out")
    ids = model.tokenizer.encode(pixels)
    loss = model(labels, ids).loss
    assert loss is not None
    return {
        "reconstruction": float(F.mse_loss(model.tokenizer.decode(ids), pixels)),
        "nats": float(loss),
        "codes_used": len(ids.unique()),
    }

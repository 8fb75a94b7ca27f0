"""Registers for a pretrained vision transformer (PH-Reg, arXiv 2505.21501), trained by self-distillation.

The teacher is the tower itself, averaged over shifted and mirrored views of an image (`shared/shifted_views.py`). The
student has the same weights and some registers, and sees the image alone. Registers, positions, the patch embedding
and the block that is distilled are trained:

    loss = 1 - mean cos(student, teacher) + mean (student - teacher)^2        over the patches

Where this differs from the authors' code (0raiser0/PH-Reg, for DINOv2): the learning rate falls with every step from
its first to its last value, as the paper says; their code computes it from the number of the epoch after every step, so
that the first step alone has the first value and an epoch is constant. Outside of an image there is white in the
normalization of the tower's image processor; theirs is white in that of DINOv2, written as numbers. Gradients are
clipped to a norm of 1, images are cut as the image processor does and not at random, and weights are float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.models.encoders.registers import Outliers, RegistersModel, norm_outliers
from foveate.models.encoders.registers.towers import core_of
from foveate.training.callbacks import StopRequest
from foveate.training.methods.shared.base import StepTrainer
from foveate.training.methods.shared.config import TrainConfig, at_least_one, option
from foveate.training.methods.shared.images import image_files, load_with_encoder, pixels_of
from foveate.training.methods.shared.loop import Losses, TrainState
from foveate.training.methods.shared.questions import Pages
from foveate.training.methods.shared.shifted_views import averaged, draw_views
from foveate.training.run_directory import OnProgress, RunDirectory, quiet


@dataclass(frozen=True, kw_only=True)
class PHRegTrainConfig(TrainConfig):
    """How registers are trained; the authors take 30,000 photos up to 100 times in batches of 8."""

    images: tuple[Path, ...] = option((), "Image or folder of images; may be repeated. Else rendered pages.")
    steps: int = option(4000, "Optimizer steps.", minimum=1)
    learning_rate: float = option(1e-4, "Learning rate of the first step.")
    last_learning_rate: float = option(5e-6, "Learning rate of the last step; it falls exponentially.")
    registers: int = option(16, "Registers; 0 distils the tower without them, as a baseline.", minimum=0)
    views: int = option(10, "Views of an image that the teacher averages.", minimum=1)
    shift: float = option(0.15, "Greatest shift of a view, as a share of the image.", minimum=0)
    layer: int = option(
        -1, "Hidden state to distil: -1 is the output after the last layer norm, -2 what LLaVA-1.5 reads."
    )
    held_out: int = option(32, "Images to measure on, which are not trained on.", minimum=1, identifies=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "views", "held_out")
        if self.registers < 0:
            raise FoveateError(f"registers must be 0 or more, not {self.registers}.")
        if not 0 < self.last_learning_rate <= self.learning_rate:
            raise FoveateError(
                f"last_learning_rate must be above 0 and at most learning_rate, not {self.last_learning_rate}."
            )
        if not 0 <= self.shift < 1:
            raise FoveateError(f"shift is a share of the image, at least 0 and below 1, not {self.shift}.")

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.learning_rate * (self.last_learning_rate / self.learning_rate) ** (step / max(1, self.steps - 1))


@dataclass(frozen=True)
class Images:
    """Images to train on and to measure on.

    Args:
        files: Shuffled files, of which the first `held_out` are measured on; empty: rendered pages.
        held_out: Images to measure on.
        seed: Of rendered pages.
    """

    files: Sequence[Path]
    held_out: int
    seed: int

    def training(self, number: int) -> Path | Image.Image:
        """Image `number` to train on; files come over and over."""
        if not self.files:
            return Pages().sample(number, self.seed).images[0]
        return self.files[self.held_out + number % (len(self.files) - self.held_out)]

    def measured(self) -> list[Path | Image.Image]:
        """Those to measure on."""
        if not self.files:
            return [example.images[0] for example in Pages().held_out(self.held_out)]
        return list(self.files[: self.held_out])


class Unlocked(nn.Module):
    """The parameters of a student that are trained, and nothing else, so that states of a run are small.

    Args:
        student: The student; its other parameters are frozen.
        names: Beginnings of their names.
    """

    student: RegistersModel

    def __init__(self, student: RegistersModel, names: Sequence[str]) -> None:
        super().__init__()
        object.__setattr__(self, "student", student)  # no submodule, whose parameters would all be among these
        self.image_processor: Any = None
        for name, parameter in student.named_parameters():
            if parameter.requires_grad_(name.startswith(tuple(names))).requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)


class PHRegTrainer(StepTrainer[PHRegTrainConfig]):
    """Adds registers to a vision transformer, which remove outlier tokens.

    The tower, averaged over shifted views of an image, teaches itself with registers. The model is a CLIP, SigLIP or
    DINOv2 encoder, or one that has such an encoder; the result is a folder of the encoder `registers`.
    """

    name = "ph-reg"
    config_class = PHRegTrainConfig
    output = "ph-reg"
    needs_model = True
    examples = """
        foveate train-method ph-reg --model facebook/dinov2-base --images photos -o dinov2-registers
        foveate train-method ph-reg --model llava-hf/llava-1.5-7b-hf --images photos --layer -2 -o clip-registers
        foveate train-method ph-reg --model google/siglip-base-patch16-224 --steps 500 -o siglip-registers
    """

    def load(self, model: str | None, device: str | None) -> tuple[RegistersModel, Any]:
        """The teacher, which is the tower without registers, and its image processor."""
        if model is None:
            raise FoveateError("say whose encoder: --model, a folder or Hub id of a CLIP, SigLIP or DINOv2 encoder.")
        loaded, processor = load_with_encoder(model, device)
        return RegistersModel.from_tower(loaded, 0), processor

    def about(self) -> dict[str, Any]:
        """Options; of files also which there are and how many are held out, on which follows what is trained on."""
        about, config = super().about(), self.config
        if not config.images:
            return about
        files = [(path.name, path.stat().st_size) for path in image_files(config.images)]
        digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        return {**about, "held_out": config.held_out, "files": digest}

    def data(self) -> Images:
        """The images."""
        config, files = self.config, []
        if config.images:
            files = image_files(config.images)
            files = [files[place] for place in np.random.default_rng(config.seed).permutation(len(files))]
            if len(files) <= config.held_out:
                raise FoveateError(
                    f"there are {len(files)} images, and {config.held_out} are held out to measure on; set --held-out "
                    "to fewer, or name more images."
                )
        return Images(files, config.held_out, config.seed)

    def network(self, model: RegistersModel) -> Unlocked:
        """The unlocked parameters of the student."""
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.config.seed)
            student = RegistersModel.from_tower(model.tower, self.config.registers)
        layout, prefix = (
            student.layout,
            "tower.vision_model." if core_of(student.tower) is not student.tower else "tower.",
        )
        parts = (layout.patches, layout.positions, layout.block(self._layer(model)))
        return Unlocked(student, ("registers.", *(f"{prefix}{part}" for part in parts)))

    def fit(
        self,
        model: RegistersModel,
        processor: Any,
        data: Images,
        run: RunDirectory,
        on_progress: OnProgress = quiet,
        stop: StopRequest | None = None,
    ) -> TrainState[Any]:
        """See `MethodTrainer.fit`."""
        state = super().fit(model, processor, data, run, on_progress, stop)
        state.network.image_processor = processor
        return state

    def step(self, model: RegistersModel, processor: Any, network: Unlocked, data: Images, step: int) -> Losses:
        """One loss for all images of a step."""
        config, layer = self.config, self._layer(model)

        def compute() -> Tensor:
            pixels = self._pixels(model, processor, [data.training(number) for number in config.samples(step)])
            target = self._target(model, processor, pixels, step)
            return distillation_loss(tokens_of(network.student, pixels, layer), target)

        yield config.seed * 1_000_003 + step, compute

    def save(self, network: Unlocked, output: Path) -> None:
        """Write the student and its image processor to a folder for `from_pretrained`."""
        network.student.save_pretrained(output)
        network.image_processor.save_pretrained(output)

    def evaluate(self, model: RegistersModel, processor: Any, state: TrainState[Any], output: Path) -> dict[str, Any]:
        """Outlier tokens and cosine similarity to the averaged teacher on held-out images, before and after."""
        layer, batch = self._layer(model), self.config.batch_size
        images = self.data().measured()
        models = {"before": model, "after": state.network.student}
        rows: dict[str, list[tuple[int, float, Outliers]]] = {name: [] for name in models}
        for start in range(0, len(images), batch):
            pixels = self._pixels(model, processor, images[start : start + batch])
            target = self._target(model, processor, pixels, -1 - start)  # other views than those of any step
            for name, tower in models.items():
                with torch.no_grad():
                    similarity = F.cosine_similarity(tokens_of(tower, pixels, layer), target, dim=-1).mean()
                    outliers = norm_outliers(tokens_of(tower, pixels, layer, normalize=False))
                rows[name].append((len(pixels), float(similarity), outliers))
        measured = {name: _mean(values) for name, values in rows.items()}
        return {"held_out": len(images), "layer": self.config.layer, "measured": measured}

    def report_measured(self, document: dict[str, Any]) -> Iterable[str]:
        """A line for the tower before and after training."""
        yield f"On {document['held_out']} held-out images:"
        for name, row in document["measured"].items():
            yield (
                f"  {name}: {100 * row['outliers']:.2f} % outlier tokens, largest norm {row['largest_norm']:.2f} times "
                f"the median, cosine similarity to the averaged teacher {row['similarity']:.4f}"
            )

    def _layer(self, model: RegistersModel) -> int:
        """The hidden state that is distilled, from 1 on.

        Raises:
            FoveateError: There is none.
        """
        blocks, layer = model.config.num_hidden_layers, self.config.layer
        if not (1 <= layer <= blocks or -blocks <= layer <= -1):
            raise FoveateError(
                f"layer must be from 1 to {blocks}, or from -{blocks} to -1, the hidden states after the blocks of "
                f"this tower, not {layer}."
            )
        return layer % (blocks + 1)

    def _pixels(self, model: RegistersModel, processor: Any, images: Sequence[Path | Image.Image]) -> Tensor:
        return pixels_of(processor, images).to(model.device, model.dtype)

    @torch.no_grad()
    def _target(self, model: RegistersModel, processor: Any, pixels: Tensor, number: int) -> Tensor:
        """The averaged teacher `(B, N, D)` of images, whose views follow from a number."""
        config, layer = self.config, self._layer(model)
        grid = model.config.output_grid(*pixels.shape[-2:])
        rng = np.random.default_rng((config.seed, number % 2**32))
        views = [draw_views(grid, config.views, config.shift, rng) for _ in pixels]
        shifts, flips = (torch.stack(parts) for parts in zip(*views, strict=True))
        return averaged(lambda view: tokens_of(model, view, layer), pixels, grid, shifts, flips, white(processor))


def tokens_of(tower: RegistersModel, pixels: Tensor, layer: int, normalize: bool = True) -> Tensor:
    """Tokens `(B, N, D)` of the patches in a hidden state; the last one after the last layer norm or before it."""
    states = tower(pixels, output_hidden_states=True, normalize=normalize).hidden_states
    assert states is not None
    return states[layer]


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`1 - mean cos + mean squared error` of tokens `(B, N, D)`."""
    return 1 - F.cosine_similarity(student, teacher, dim=-1).mean() + F.mse_loss(student, teacher)


def white(processor: Any) -> Tensor:
    """Pixel values `(3,)` of white, as an image processor normalizes them."""
    if not processor.do_normalize:
        return torch.ones(3)
    return (1 - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)


def _mean(rows: list[tuple[int, float, Outliers]]) -> dict[str, float]:
    """Means over batches, weighted by their images."""
    count = sum(images for images, _, _ in rows)
    values = {"outliers": 0.0, "largest_norm": 0.0, "similarity": 0.0}
    for images, similarity, outliers in rows:
        values["outliers"] += outliers.share * images / count
        values["largest_norm"] += outliers.largest * images / count
        values["similarity"] += similarity * images / count
    return {name: round(value, 4) for name, value in values.items()}

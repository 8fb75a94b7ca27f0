"""Training recipes: a model, its data and the stages of training. `foveate.training.recipe_file` reads them.

A recipe holds nothing about the machine it runs on: no devices, no process counts, no absolute paths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from foveate.core.frames import FrameSampler
    from foveate.core.plan import Step

#: The groups of parameters that a recipe trains or freezes, and gives learning rates to.
PARTS = ("vision_tower", "stages", "connector", "language_model", "heads")

#: Optimisers of a stage.
OPTIMIZERS = ("adamw", "muon")

#: How a stage trains the lengths of a nested connector.
Lengths = Literal["full", "all", "sampled"]


@dataclass(frozen=True)
class NewModel:
    """A model that starts from random weights.

    Args:
        vision: Fields of the vision tower's configuration (`ViTUHDConfig` for LLaVA-UHD); with `type`, an encoder of
            `foveate.models.encoders` and its fields, for `llava`, `llava-uhd` and `llava-video`; for `llava-video` also
            `siglip_vision_model`.
        text: Fields of the language model's configuration, with its `model_type`. The vocabulary and the special
            tokens follow the tokenizer.
        tokenizer: `bytes` (256 bytes and the special tokens), or a folder or Hub id with a tokenizer.
        phrases: Strings that become one token each, such as what every question begins with: prompts get shorter.
        images: Settings of the image processor; patch size and stages follow `vision`. For `llava` also `layout`, the
            `name` of a layout of views (`foveate.models.llava.layouts`) and its options. For `qwen2.5-vl` also `clips`,
            settings of the video processor such as `min_pixels` and `max_pixels` of a frame.
        architecture: `llava-uhd`, `llava` (a CLIP tower), `llava-video` (the same for clips) or `qwen2.5-vl`.
        connector: `type`, a connector of `foveate.models.connectors`, and its options, for `llava-uhd` and `llava`; by
            default two linear layers. For `llava-video` one of `foveate.models.video_connectors`; by default `average`.
        instruction: Fields of the configuration of a text encoder, with its `model_type` (`clip_text_model` or
            `siglip_text_model`), for connectors of `llava-video` that read the question with one. It is trained with
            `connector`.
        language_model: Folder or Hub id of a model whose language model's weights are taken to start with, or
            `embedded`; random weights by default. Of one with more layers the first are taken.
        vision_tower: The same for the vision tower. Where its image size differs, position embeddings are resized. A
            `temporal_pvc` is made of a SigLIP or an InternViT.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    tokenizer: str = "bytes"
    phrases: list[str] = field(default_factory=list)
    images: dict[str, Any] = field(default_factory=dict)
    architecture: str = "llava-uhd"
    connector: dict[str, Any] = field(default_factory=dict)
    instruction: dict[str, Any] = field(default_factory=dict)
    language_model: str | None = None
    vision_tower: str | None = None


@dataclass(frozen=True)
class ModelChoice:
    """Which model is trained: exactly one of a pretrained one and a new one.

    Args:
        pretrained: Folder or Hub id of a model of one of these architectures, or `embedded` (`from:` in the file).
        new: Configuration of a model that starts from random weights.
        voco: Tokens after every image through which text attends to it (VoCo-LLaMA, `foveate.models.llava_uhd.voco`),
            for `llava-uhd`; default: those of the pretrained model, none for a new one.
        remember: Layers of the language model before which visual tokens attend to the encoder's features again (Vision
            Remember, `foveate.models.llava_uhd.vision_remember`), for `llava-uhd`. The modules are trained with
            `connector`.
    """

    pretrained: str | None = field(default=None, metadata={"key": "from"})
    new: NewModel | None = None
    voco: int | None = None
    remember: list[int] | None = None

    def check(self, where: str) -> None:
        """Raise FoveateError unless exactly one of the two is given."""
        if (self.pretrained is None) == (self.new is None):
            raise FoveateError(f"{where}: give either `from` (a folder or Hub id) or `new`, and not both.")
        if self.voco is not None and self.voco < 1:
            raise FoveateError(f"{where}.voco: {self.voco} must be at least 1; leave it out for none.")


@dataclass(frozen=True)
class Sizes:
    """Range of the sizes of rendered images, in pixels.

    Args:
        width: Least and greatest width.
        height: Least and greatest height.
        pixels: Greatest area; larger images are redrawn.
    """

    width: tuple[int, int]
    height: tuple[int, int]
    pixels: int | None = None

    def check(self, where: str) -> None:
        """Raise FoveateError for an empty range, or one whose images all exceed `pixels`."""
        for name in ("width", "height"):
            least, greatest = getattr(self, name)
            if not 1 <= least <= greatest:
                raise FoveateError(
                    f"{where}.{name}: [{least}, {greatest}] is not a range of pixels from least to greatest."
                )
        if self.pixels is not None and self.pixels < self.width[0] * self.height[0]:
            raise FoveateError(
                f"{where}.pixels: {self.pixels} is less than the smallest image, {self.width[0]} x {self.height[0]}."
            )


@dataclass(frozen=True)
class Rendered:
    """Images rendered while training, by `foveate.synthetic`.

    Args:
        tasks: Weight of every task (`foveate.synthetic.TASKS`, and `text_page` for pages that are full of
            text); empty means all tasks with their own weights.
        sizes: Range of image sizes.
        final_sizes: Range to which `sizes` grows over the first `growth` of the stage; None: it does not grow.
        difficulty: Range of difficulties, from 0 (large type, clean paper) to 1.
        final_difficulty: Range to which `difficulty` grows in the same way; None: it does not grow.
        growth: Fraction of the stage over which sizes and difficulties grow.
        caps: Smallest and largest height of capitals in pixels on text pages.
        least: Smallest height of capitals in pixels elsewhere; default: by difficulty.
        questions: Largest number of questions about one image.
        read_on: Share of the images with a further question: what is written after a word
            (`foveate.synthetic.continuation`).
    """

    tasks: dict[str, float] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=lambda: Sizes((128, 640), (128, 640)))
    final_sizes: Sizes | None = None
    difficulty: tuple[float, float] = (0.0, 1.0)
    final_difficulty: tuple[float, float] | None = None
    growth: float = 0.5
    caps: tuple[float, float] = (7.0, 28.0)
    least: float | None = None
    questions: int = 3
    read_on: float = 0.0

    def check(self, where: str) -> None:
        """Raise FoveateError for weights that are not positive and for invalid ranges."""
        _check_rendered(self, where)
        if not 0 <= self.read_on <= 1:
            raise FoveateError(f"{where}.read_on: {self.read_on} is not a share from 0 to 1.")
        if not 4 <= self.caps[0] <= self.caps[1]:
            raise FoveateError(f"{where}.caps: {list(self.caps)} is not a range of pixels from 4 on.")
        if self.least is not None and not self.least >= 4:
            raise FoveateError(f"{where}.least: {self.least} is not a height of at least 4 pixels.")


@dataclass(frozen=True)
class Clips:
    """Clips rendered while training, by `foveate.synthetic.clips`, for `qwen2.5-vl` and `llava-video`.

    Args:
        tasks: Weight of every task (`foveate.synthetic.clips.CLIP_TASKS`); empty means all alike.
        sizes: Range of frame sizes; sides are multiples of those of a token.
        seconds: Shortest and longest duration, in whole seconds.
        final_seconds: Range to which `seconds` grows over the first `growth` of the stage; None: it does not grow.
        fps: Frame rates, one drawn for every group.
        difficulty: Range of difficulties, from 0 (few large shapes, no noise) to 1.
        final_difficulty: Range to which `difficulty` grows in the same way; None: it does not grow.
        growth: Fraction of the stage over which durations and difficulties grow.
        questions: Largest number of questions about one clip.
    """

    tasks: dict[str, float] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=lambda: Sizes((112, 112), (112, 112)))
    seconds: tuple[int, int] = (4, 6)
    final_seconds: tuple[int, int] | None = None
    fps: list[float] = field(default_factory=lambda: [2.0])
    difficulty: tuple[float, float] = (0.0, 1.0)
    final_difficulty: tuple[float, float] | None = None
    growth: float = 0.5
    questions: int = 3

    def check(self, where: str) -> None:
        """Raise FoveateError for weights that are not positive and for invalid ranges."""
        from foveate.synthetic.clips.rendering import LONGEST, MOST_FRAMES, SHORTEST

        _check_rendered(self, where)
        if not self.fps or min(self.fps) < 1:
            raise FoveateError(f"{where}.fps: {self.fps} are not frame rates of at least 1 per second.")
        for name in ("seconds", "final_seconds"):
            least, greatest = getattr(self, name) or self.seconds
            if not SHORTEST <= least <= greatest <= LONGEST or greatest * max(self.fps) > MOST_FRAMES:
                raise FoveateError(
                    f"{where}.{name}: [{least}, {greatest}] is not a range from {SHORTEST:g} to {LONGEST:g} seconds, "
                    f"with at most {MOST_FRAMES} frames."
                )


def _check_rendered(data: Rendered | Clips, where: str) -> None:
    """Raise FoveateError for what rendered images and clips share: weights, difficulties, growth and questions."""
    for task, weight in data.tasks.items():
        if not weight > 0:
            raise FoveateError(f"{where}.tasks.{task}: the weight {weight} is not positive; leave the task out.")
    for name in ("difficulty", "final_difficulty"):
        least, greatest = getattr(data, name) or (0.0, 1.0)
        if not 0 <= least <= greatest <= 1:
            raise FoveateError(f"{where}.{name}: [{least}, {greatest}] is not a range between 0 and 1.")
    if not 0 < data.growth <= 1:
        raise FoveateError(f"{where}.growth: {data.growth} is not a fraction between 0 and 1.")
    if data.questions < 1:
        raise FoveateError(f"{where}.questions: {data.questions} must be at least 1.")


@dataclass(frozen=True)
class Files:
    """Conversations in LLaVA's format, about images, and for `qwen2.5-vl` and `llava-video` about clips.

    Args:
        path: JSON or JSONL file.
        images: Folder that the image paths in the file are relative to; the file's own folder by default.
        videos: The same for the paths of clips.
        frames: Step that chooses the frames of clips (`foveate.methods.frames`), such as `uniform-frames:8` or
            `fps(rate=1):32`; by default two per second, at most 32.
    """

    path: str
    images: str | None = None
    videos: str | None = None
    frames: str | None = None

    @property
    def sampler(self) -> Step[FrameSampler] | None:
        """The step of `frames`."""
        from foveate.core.plan import Plan  # only now: the methods it reads need torch

        return None if self.frames is None else Plan.of(self.frames).frame_step

    def check(self, where: str) -> None:
        """Raise FoveateError if `frames` is not one step that chooses frames."""
        from foveate.core.plan import Plan

        if self.frames is None:
            return
        try:
            plan = Plan.of(self.frames)
        except FoveateError as error:
            raise FoveateError(f"{where}.frames: {error}") from error
        if plan.frame_step is None or plan.for_model is not None:
            raise FoveateError(
                f"{where}.frames: {plan} is not one step that chooses frames, such as uniform-frames:8 or "
                "fps(rate=1):32."
            )


@dataclass(frozen=True)
class Data:
    """One source of training data; exactly one of the kinds, with its share of the batches.

    Args:
        rendered: Images rendered while training.
        clips: Clips rendered while training.
        files: A file in LLaVA's format.
        easy_vqa: The public easy-VQA data set (the `easy-vqa` package), training split.
        weight: Share of the batch groups that come from this source, relative to the others.
    """

    rendered: Rendered | None = None
    clips: Clips | None = None
    files: Files | None = None
    easy_vqa: bool = False
    weight: float = 1.0

    def check(self, where: str) -> None:
        """Raise FoveateError unless exactly one kind of source is given, with a positive weight."""
        given = [self.rendered is not None, self.clips is not None, self.files is not None, self.easy_vqa]
        if sum(given) != 1:
            raise FoveateError(f"{where}: give exactly one of `rendered`, `clips`, `files` and `easy_vqa: true`.")
        if not self.weight > 0:
            raise FoveateError(f"{where}.weight: {self.weight} is not positive.")


@dataclass(frozen=True)
class Losses:
    """Weights of the losses. With `answer: 0` the language model does not run at all.

    Args:
        answer: Cross entropy of the answer's tokens.
        cells: Characters per cell, from the tower's final tokens.
        early_cells: Characters per cell, from the tokens before the last stage.
        blank: Weight of a blank cell, relative to 1 for a cell with a character.
        answer_attention: Attention supervision of answers: attend to the image token of the next character
            (`foveate.training.attention_supervision`).
        answer_attention_layers: Layers of the language model whose first head is supervised so.
        question_attention: Attention supervision of questions: attend to the image token of each character of a word
            that the image contains (`foveate.training.attention_supervision`).
        question_attention_layer: Layer whose first head is supervised so; none of `answer_attention_layers`.
        page: Characters in an image, predicted from its [CLS] token, so that this token attends to text; for towers
            that have one.
        colours: Colours of the parts of an image, from the tower's final tokens; squared error of values from -1 to 1.
        captions: Captions of rendered clips, for connectors that learn from them (`langdc`).
        recalibration: Tokens of the stage's `teacher` after every block, recovered from those of a tower that slims
            them (`sit`); squared error. 2 in the paper (`foveate.models.encoders.sit.FRD`).
    """

    answer: float = 1.0
    cells: float = 0.0
    early_cells: float = 0.0
    blank: float = 0.1
    answer_attention: float = 0.0
    answer_attention_layers: tuple[int, int] = (1, 2)
    question_attention: float = 0.0
    question_attention_layer: int = 0
    page: float = 0.0
    colours: float = 0.0
    captions: float = 0.0
    recalibration: float = 0.0

    #: Former keys, which are refused with their new names.
    renamed: ClassVar[dict[str, str]] = {
        "before": "early_cells",
        "pointing": "answer_attention",
        "pointing_layers": "answer_attention_layers",
        "matching": "question_attention",
        "matching_layer": "question_attention_layer",
    }

    @property
    def reads_tokens(self) -> bool:
        """Whether a loss has a head on the tower's tokens."""
        return bool(self.cells or self.early_cells or self.page or self.colours)

    def check(self, where: str) -> None:
        """Raise FoveateError for negative weights, or if all losses are off."""
        for name in (
            "answer",
            "cells",
            "early_cells",
            "blank",
            "answer_attention",
            "question_attention",
            "page",
            "colours",
            "captions",
            "recalibration",
        ):
            if getattr(self, name) < 0:
                raise FoveateError(f"{where}.{name}: {getattr(self, name)} is negative.")
        for name in ("answer_attention", "question_attention", "captions"):
            if getattr(self, name) and not self.answer:
                raise FoveateError(f"{where}.{name}: needs the language model, which does not run with answer: 0.")
        if (
            self.answer_attention
            and self.question_attention
            and self.question_attention_layer in self.answer_attention_layers
        ):
            raise FoveateError(
                f"{where}.question_attention_layer: {self.question_attention_layer} is one of answer_attention_layers."
            )
        if not (self.answer or self.reads_tokens or self.recalibration):
            raise FoveateError(f"{where}: all losses have weight 0; give one of them a positive weight.")


@dataclass(frozen=True)
class Schedule:
    """Learning-rate schedule, as a factor on the rate of every part.

    Args:
        kind: `constant`, or `cosine` or `linear` decay after the warm-up.
        warmup: Steps over which the factor rises linearly to 1.
        final: Factor at the last step of a decay.
    """

    kind: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: int = 0
    final: float = 0.0

    def check(self, where: str) -> None:
        """Raise FoveateError for a negative warm-up or a final factor outside 0 to 1."""
        if self.warmup < 0:
            raise FoveateError(f"{where}.warmup: {self.warmup} steps are negative.")
        if not 0 <= self.final <= 1:
            raise FoveateError(f"{where}.final: {self.final} is not between 0 and 1.")

    def factor(self, step: int, steps: int) -> float:
        """Factor at optimiser step `step`, counted from 0, of a stage of `steps`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "constant":
            return 1.0
        done = min((step - self.warmup) / max(steps - self.warmup, 1), 1.0)
        fall = done if self.kind == "linear" else 0.5 * (1 - math.cos(math.pi * done))
        return 1.0 - (1.0 - self.final) * fall


@dataclass(frozen=True)
class Stage:
    """One stage of training: data, losses and learning rates stay the same throughout.

    Args:
        name: Name of the stage, also of its folder.
        steps: Optimiser steps.
        data: Sources, mixed by their weights.
        train: Learning rate of each part that trains; parts left out are frozen.
        batch_size: Samples of one forward and backward pass, over all processes.
        accumulate: Passes per optimiser step.
        groups: Parts into which a batch is divided, each with its own source and image size. Images of equal size
            are encoded together, so fewer groups are faster, and more groups mix better.
        loss: Weights of the losses.
        schedule: Learning-rate schedule.
        weight_decay: Decay of the weight matrices (not of biases, norms and embeddings).
        optimizer: `adamw`; or `muon`, which moves the weight matrices of towers, connectors and language models by Muon
            and the rest by AdamW, with the same learning rates (`foveate.training.muon`).
        betas: Decay rates of AdamW's averages.
        clip: Greatest norm of the gradient; 0 does not clip.
        window: Train on small images, which cost far less than full ones. For towers with a fixed number of positions
            (`llava`) images of this many patches a side, each batch at a random offset of the positions; for
            `qwen2.5-vl` images of about as many patches as such a square has.
        plan: The plan that the model trains under, such as `pool-decoder:12.5%@2` or `pyramiddrop:50%@8,16,24`
            (`foveate.core.plan`); default: all visual tokens.
        lengths: Numbers of tokens of a nested connector (`foveate.models.connectors`) that a batch is trained at:
            `full`, its default number; `all`, the mean of the losses of all lengths of its paper, for which the
            encoder runs once and the language model once a length; `sampled`, one of them, drawn for every batch.
            Default: what the paper does, `all` for M3 and `sampled` for MQT and TokenFLEX, and `full` with a plan, with
            attention supervision and for connectors of one length. The first stage of MQT is `full`.
        teacher: Folder or Hub id of a model whose vision tower teaches that of this one (`loss.recalibration`): the
            same tower without what makes tokens fewer, such as `sit` with `slimming: false`.
    """

    name: str
    steps: int
    data: list[Data]
    train: dict[str, float]
    batch_size: int = 32
    accumulate: int = 1
    groups: int = 1
    loss: Losses = field(default_factory=Losses)
    schedule: Schedule = field(default_factory=Schedule)
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    window: int | None = None
    plan: str | None = None
    lengths: Lengths | None = None
    teacher: str | None = None

    def excludes_lengths(self) -> str | None:
        """The key with which a batch can be trained at the full length alone; None: there is none."""
        if self.plan is not None:
            return "plan"
        if not self.loss.answer:
            return "loss.answer: 0"
        supervised = [name for name in ("answer_attention", "question_attention") if getattr(self.loss, name)]
        return f"loss.{supervised[0]}" if supervised else None

    def check(self, where: str) -> None:
        """Raise FoveateError for invalid numbers and unknown parts."""
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise FoveateError(
                f"{where}.name: {self.name!r} must consist of letters, digits, - and _; it names a folder."
            )
        for name in ("steps", "batch_size", "accumulate", "groups"):
            if getattr(self, name) < 1:
                raise FoveateError(f"{where}.{name}: {getattr(self, name)} must be at least 1.")
        if self.batch_size % self.groups:
            raise FoveateError(f"{where}.groups: {self.groups} groups do not divide a batch of {self.batch_size}.")
        for name in ("weight_decay", "clip"):
            if getattr(self, name) < 0:
                raise FoveateError(f"{where}.{name}: {getattr(self, name)} is negative.")
        if any(not 0 <= beta < 1 for beta in self.betas):
            raise FoveateError(f"{where}.betas: {list(self.betas)} are not decay rates from 0 to below 1.")
        if self.optimizer not in OPTIMIZERS:
            raise FoveateError(f"{where}.optimizer: {self.optimizer!r} is none of {', '.join(OPTIMIZERS)}.")
        if not self.data:
            raise FoveateError(f"{where}.data: at least one source of data is needed.")
        reached = {"vision_tower", "stages"}
        reached |= {"connector", "language_model"} if self.loss.answer else set()
        reached |= {"heads"} if self.loss.reads_tokens else set()
        if self.window is not None and self.window < 1:
            raise FoveateError(f"{where}.window: {self.window} must be at least 1 patch.")
        if self.plan is not None:
            self._check_plan(f"{where}.plan", self.plan)
        if any(data.clips is not None for data in self.data) and (why := self.excludes_clips()):
            raise FoveateError(f"{where}.data: {why}.")
        if self.lengths not in (None, "full") and (other := self.excludes_lengths()):
            raise FoveateError(f"{where}.lengths: {self.lengths} is not possible with {other}; leave one of them out.")
        if bool(self.loss.recalibration) != (self.teacher is not None):
            raise FoveateError(f"{where}: loss.recalibration and teacher are given together or not at all.")
        if self.loss.recalibration and "vision_tower" not in self.train:
            raise FoveateError(f"{where}.loss.recalibration: it trains the vision tower, which is missing in train.")
        if not self.train:
            raise FoveateError(f"{where}.train: at least one part must train; parts are {', '.join(PARTS)}.")
        for part, rate in self.train.items():
            if part not in PARTS:
                raise FoveateError(f"{where}.train: unknown part {part!r}; parts are {', '.join(PARTS)}.")
            if part not in reached:
                raise FoveateError(f"{where}.train.{part}: none of the losses of this stage reaches this part.")
            if not rate > 0:
                raise FoveateError(
                    f"{where}.train.{part}: the learning rate {rate} is not positive; leave a frozen part out."
                )

    def excludes_clips(self) -> str | None:
        """Why the stage cannot train on clips, whose tokens have no labels; None: it can."""
        if self.loss.answer and not self.loss.reads_tokens and self.window is None:
            return None
        return (
            "clips are trained on answers, with attention supervision or without: leave out the losses cells, "
            "early_cells, page and colours and `window`, or train on clips in a stage of their own"
        )

    def _check_plan(self, where: str, text: str) -> None:
        from foveate.core.plan import Plan  # only now: the methods it reads need torch

        try:
            plan = Plan.of(text)
        except FoveateError as error:
            raise FoveateError(f"{where}: {error}") from error
        sites = {step.method.site for step in plan.steps}
        if not self.loss.answer:
            raise FoveateError(
                f"{where}: a plan needs the language model, which does not run with answer: 0; leave it out."
            )
        if self.loss.answer_attention:
            raise FoveateError(
                f"{where}: answer_attention supervises attention to all visual tokens; use it without a plan."
            )
        if sites & {"encoder", "image"} and self.loss.reads_tokens:
            raise FoveateError(
                f"{where}: the losses cells, early_cells, page and colours read every token of the encoder; with them "
                "a plan can act before or inside the language model only."
            )


@dataclass(frozen=True)
class Recipe:
    """A whole training run.

    Args:
        model: The model to train.
        stages: Stages, trained one after the other.
        output: Folder for checkpoints, log, loss plot and the trained model.
        seed: Seed of initial weights and data.
        bf16: Compute in bfloat16 where that is safe; weights and optimiser state stay float32. `auto`: where the
            processor has such arithmetic (`foveate.training.precision`).
        log_every: Steps between lines of the log.
        save_every: Steps between checkpoints.
        save_minutes: Minutes between checkpoints, whichever comes first.
        keep: Checkpoints kept per stage.
        cells: Rows and columns of the cells into which a final token of the tower is divided for the losses `cells` and
            `early_cells`, both even; by default cells are one patch high and half a patch wide.
    """

    model: ModelChoice
    stages: list[Stage]
    output: str
    seed: int = 0
    bf16: Literal["auto", True, False] = "auto"
    log_every: int = 20
    save_every: int = 1000
    save_minutes: float = 10.0
    keep: int = 2
    cells: tuple[int, int] | None = None

    def check(self, where: str) -> None:
        """Raise FoveateError for missing or ambiguous stages and counts below 1."""
        if not self.stages:
            raise FoveateError(f"{where}.stages: at least one stage is needed.")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise FoveateError(f"{where}.stages: two stages have the same name; names are {', '.join(names)}.")
        for number, stage in enumerate(self.stages):
            if self.model.remember is not None and stage.plan is not None:
                raise FoveateError(
                    f"{where}.stages[{number}].plan: model.remember needs every visual token in its layers; leave the "
                    "plan out."
                )
            if self.model.voco is not None and (stage.plan is not None or stage.loss.answer_attention):
                key = "plan" if stage.plan is not None else "loss.answer_attention"
                raise FoveateError(
                    f"{where}.stages[{number}].{key}: with model.voco text sees no visual token, but those "
                    f"{self.model.voco} after the image; leave it out."
                )
        for name in ("log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise FoveateError(f"{where}.{name}: {getattr(self, name)} must be at least 1.")
        if not 0 <= self.seed < 2**32:
            raise FoveateError(f"{where}.seed: {self.seed} is not a number from 0 to 2^32 - 1.")
        if self.cells is not None and any(number < 2 or number % 2 for number in self.cells):
            raise FoveateError(f"{where}.cells: {list(self.cells)} must be even numbers of rows and columns.")
        if not self.save_minutes > 0:
            raise FoveateError(f"{where}.save_minutes: {self.save_minutes} is not positive.")

"""Settings of the benchmark of trained connectors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.benchmark.questions import QuestionSettings
from foveate.benchmark.tasks import ClipSettings, Item, items
from foveate.benchmark.trained.systems import CLIP_TOWER, SYSTEMS, VIDEO_SYSTEMS, System
from foveate.core.errors import FoveateError

#: The LLaVA model of this repository whose vision tower and language model are taken; see `TrainedSettings`.
BASE = "benchmarks/models/measure-llava"
#: The same for clips: what `foveate train recipe:video/base` leaves.
CLIP_BASE = "runs/video/base/model"


@dataclass(frozen=True, kw_only=True)
class TrainedSettings(QuestionSettings):
    """Settings that all trainings of a table share; a table can be continued only with the same settings.

    All trainings start from the vision tower and the language model of `BASE`, with a new connector. The tower is
    frozen, as CLIP is in LLaVA: it costs a forward pass only, and differences in accuracy come from the connector. It
    has the layout of LLaVA-1.5 ([CLS], the last layer but one is read) and hours of training, which no run of this
    benchmark has. Images have 12 x 12 patches in place of its 24 x 24, so that the full sequence can be trained in the
    same time: with resized positions `BASE` answers these questions no worse (loss 0.58, and 0.70 at 24 x 24) at a
    quarter of the operations. Rows of encoders do not have this tower: they train one from random weights.

    The language model is that of the embedded model, trained further on the features of this tower. Straight from the
    embedded model it has to learn other features within one run: the loss at 36 tokens was still between 1.6 and 1.9
    after 1,100 images. The tower of the embedded model is not used, because it merges tokens inside: its blocks after a
    stage have never processed unmerged patches, and those of merged tokens take several times the operations.

    Args:
        base: Folder or Hub id of that model; "" for random weights, in tests.
        steps: Steps of the recipe's last stage; None: those of the recipe.
        batch_size: Questions answered at once in the evaluation.
        train_batch_size: Images of a step; None: those of the recipe.
        seed: Of initial weights and data; None: that of the recipe.
        turns: Timed turns of the time to the first token, after a warm-up.

    Raises:
        FoveateError: If something is not known or not possible.
    """

    systems: ClassVar[tuple[System, ...]] = SYSTEMS
    #: Sizes of the tower of the base, where the recipes of the connectors have another one.
    vision: ClassVar[Mapping[str, Any]] = {}

    tasks: tuple[str, ...] = ("shape_colour", "count_shapes", "shape_exists", "read_word", "easy_vqa")
    count: int = 200
    sides: tuple[int, int] = (80, 136)
    difficulty: float = 0.1
    batch_size: int = 16
    dtype: str = "float32"
    device: str | None = "cpu"
    threads: int | None = 1
    base: str = BASE
    steps: int | None = None
    train_batch_size: int | None = None
    seed: int | None = None
    turns: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.steps or 1, self.train_batch_size or 1, self.turns) < 1:
            raise FoveateError("steps, batch sizes and turns must be at least 1.")

    @property
    def described(self) -> dict[str, Any]:
        """Settings as the result file has them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclass(frozen=True, kw_only=True)
class ClipTrainedSettings(TrainedSettings):
    """Settings of video connectors, on clips of 8 frames as their recipes render them.

    All trainings start from the vision tower and the language model of `base`, which has learned these questions with
    average pooling and with supervised attention, with a new connector. The tower is frozen. Without such a start,
    thousands of clips teach no more than the form of the answers. The tower is a SigLIP, whose head HICom reads; that
    of PVC, with attention over time in its blocks, is trained from random weights.
    """

    systems: ClassVar[tuple[System, ...]] = VIDEO_SYSTEMS
    vision: ClassVar[Mapping[str, Any]] = CLIP_TOWER
    #: Of the questions, as in the recipes.
    clips: ClassVar[ClipSettings] = ClipSettings(size=(112, 112), seconds=(4, 4), fps=2.0)

    tasks: tuple[str, ...] = ("clip_order", "clip_count", "clip_direction", "clip_moving", "clip_change")
    difficulty: float = 0.0
    base: str = CLIP_BASE

    def items_of(self, task: str) -> Iterator[Item]:
        """See `QuestionSettings.items_of`."""
        return items(task, self.count, difficulty=self.difficulty, clips=self.clips)


def quick(settings: type[TrainedSettings] = TrainedSettings) -> TrainedSettings:
    """Settings that take seconds and say nothing about accuracy, for trying the command."""
    return settings(base="", count=2, steps=2, train_batch_size=4, batch_size=2, turns=1)

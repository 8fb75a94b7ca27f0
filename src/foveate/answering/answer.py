"""Answer of a model with its token counts and timings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from foveate.answering.acquisition import Turn
from foveate.answering.pooling import Pooling
from foveate.answering.stages import Stage

#: The parts of an answer's time, in order.
PARTS = ("preprocess", "encoder", "connector", "prefill", "decode")


@dataclass(frozen=True)
class Tokens:
    """Token counts of one answer.

    Attributes:
        read: image tokens that the first layer of the language model reads.
        full: image tokens that it reads without a plan.
        unmerged: image tokens before any merging: one a patch.
        text: text tokens of the prompt.
        generated: tokens of the answer.
        by_layer: image tokens in each layer of the language model.
    """

    read: int
    full: int
    unmerged: int
    text: int
    generated: int
    by_layer: list[int] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Image tokens relative to the model without a plan, averaged over the layers of the language model."""
        read = sum(self.by_layer) / len(self.by_layer) if self.by_layer else self.read
        return read / self.full if self.full else 1.0

    def summary(self, of: str = "the image") -> str:
        """Image tokens that the language model reads, by layers if they differ, compared with the full model."""
        groups: list[tuple[int, int, int]] = []  # tokens, first layer, last layer
        for tokens, layers in groupby(range(len(self.by_layer)), key=self.by_layer.__getitem__):
            numbers = list(layers)
            groups.append((tokens, numbers[0], numbers[-1]))
        counts = [f"{self.read} of {of}"]
        if len(groups) > 1:
            counts = [
                f"{tokens}{'' if number else f' of {of}'} in "
                + (f"layer {first}" if first == last else f"layers {first} to {last}")
                for number, (tokens, first, last) in enumerate(groups)
            ]
        text = counts[0] if len(counts) == 1 else f"{', '.join(counts[:-1])} and {counts[-1]}"
        if self.share == 1:
            return text
        average = "on average " if len(groups) > 1 else ""
        return f"{text}, {average}{self.share:.0%} of the full model's {self.full}"


@dataclass(frozen=True)
class Answer:
    """Text of an answer, with token counts and timings.

    Attributes:
        text: the answer.
        question: the question.
        model: the name of the model.
        image_sizes: ``(width, height)`` in pixels of every upright input image, or of the frames of a clip.
        processed_size: ``(width, height)`` in pixels to which a single image was resized, where the model encodes it as
            one sequence.
        stages: the tokens of the images or the clip from patches to what the language model reads.
        tokens: token counts.
        times: seconds for ``preprocess`` (opening, resizing, patches, tokenising), ``encoder``, ``connector``,
            ``prefill`` (the language model reads the prompt), ``decode`` (it writes the answer), and ``total``, which
            is a little more than their sum. Parts that a model does not have are missing.
        device: where the model ran.
        plan: the plan that was followed, as text, or None.
        selection: token selection of each image, as plain values; see `selected`.
        pooling: pooling maps of each content-adaptive stage, if `ask` was called with `keep_pooling`.
        draft: report of a draft, as plain values (`foveate.runtime.Speculation`), or None.
        frames: number of frames of a clip that were read; None for images.
        timestamps: seconds of each of these frames from the first one of the clip; None for images.
        turns: the turns under a plan that begins with an acquisition, such as visionthink.
        warnings: tool calls that were not followed, and how the images differ from those that the model was trained on,
            where it says what these were.
    """

    text: str
    question: str
    model: str
    image_sizes: list[tuple[int, int]]
    processed_size: tuple[int, int] | None
    stages: list[Stage]
    tokens: Tokens
    times: dict[str, float]
    device: str
    plan: str | None = None
    selection: list[dict[str, Any]] = field(default_factory=list, repr=False)
    pooling: list[Pooling] = field(default_factory=list, repr=False)
    draft: dict[str, Any] | None = None
    frames: int | None = None
    timestamps: list[float] | None = None
    warnings: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """``(width, height)`` in pixels of the upright input image; None of several images and of a clip."""
        return self.image_sizes[0] if len(self.image_sizes) == 1 and self.frames is None else None

    @property
    def inert(self) -> bool:
        """Whether a plan was applied that kept every token of every image."""
        return bool(self.selection) and all(image["inert"] for image in self.selection)

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain JSON values without pooling maps; ``inert``: whether the plan kept every token."""
        document = {name: value for name, value in vars(self).items() if name != "pooling"}
        document["image_size"] = self.image_size
        document["turns"] = [asdict(turn) for turn in self.turns]
        document["stages"] = [asdict(stage) for stage in self.stages]
        document["tokens"] = asdict(self.tokens)
        document["inert"] = self.inert
        return document

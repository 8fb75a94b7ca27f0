"""What a compressed run did, image by image."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from foveate.core.tokens import Need, Selection
from foveate.families import ImageLayout

#: Images that a handle remembers.
REMEMBERED = 1024
#: What is said of a plan that costs time and saves none.
NOTHING_LEFT_OUT = "nothing was left out: every layer of the language model reads all visual tokens"


@dataclass(frozen=True)
class StepReport:
    """What one step of a plan did to one image.

    Args:
        method: The step as text.
        site: Where it acts.
        tokens_in: Tokens that arrived.
        tokens_kept: Tokens that stayed.
        milliseconds: Time of the selection; on a GPU the time to queue it.
    """

    method: str
    site: str
    tokens_in: int
    tokens_kept: int
    milliseconds: float

    def __str__(self) -> str:
        return f"{self.method} {self.tokens_in} -> {self.tokens_kept} ({self.milliseconds:.1f} ms)"


@dataclass(frozen=True)
class LayerReport:
    """What one step inside the language model did to one image.

    Args:
        method: The step as text.
        layer: The decoder layer before which it acted.
        tokens_in: Tokens that arrived there.
        tokens_kept: Tokens that went on.
        milliseconds: Time of the choice; on a GPU the time to queue it.
        indices: (k,) which of the tokens that the encoder made of the image went on.
    """

    method: str
    layer: int
    tokens_in: int
    tokens_kept: int
    milliseconds: float
    indices: Tensor = field(repr=False, compare=False, default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def as_json(self) -> dict[str, object]:
        """The report in plain types."""
        return {name: value for name, value in vars(self).items() if name != "indices"}

    def __str__(self) -> str:
        return f"{self.method} {self.tokens_in} -> {self.tokens_kept} from layer {self.layer}"


@dataclass(frozen=True)
class ImageReport:
    """What happened to one image or clip.

    Args:
        number: Which of the images of the call.
        modality: "image" or "video".
        row: First sequence of the batch that holds it.
        layout: Its tokens before anything was left out.
        selection: What stayed of them, after all steps.
        steps: What every step before the language model did.
        layers: What every step inside it did, from the first layer on.
        notes: What a user should know, such as a substitute for what the encoder lacks.
        measured: (N,) what the probes found of each token, for those needs that have one value a token.
        read: Tokens of it in the sequence that the language model was given, counted there; None: not given yet.
    """

    number: int
    modality: str
    row: int
    layout: ImageLayout
    selection: Selection
    steps: tuple[StepReport, ...]
    notes: tuple[str, ...] = ()
    layers: tuple[LayerReport, ...] = ()
    measured: Mapping[Need, Tensor] = field(repr=False, compare=False, default_factory=dict)
    read: int | None = None

    @property
    def tokens_in(self) -> int:
        """Tokens of the untouched model."""
        return self.layout.count

    @property
    def tokens_kept(self) -> int:
        """Tokens that the language model read."""
        return len(self.selection) if self.read is None else self.read

    @property
    def tokens_left(self) -> int:
        """Tokens that are there in the last layer of the language model."""
        return self.layers[-1].tokens_kept if self.layers else self.tokens_kept

    @property
    def inert(self) -> bool:
        """Whether the plan left out and merged nothing: every layer of the language model worked on all tokens."""
        return min(self.tokens_left, len(self.selection)) >= self.tokens_in

    def mean_tokens(self, num_layers: int) -> float:
        """Tokens that a language model of so many layers worked on, the mean over its layers."""
        # From the first layer on so many, and from each layer that a step names on fewer.
        changes = [
            (0, self.tokens_kept),
            *((step.layer, step.tokens_kept) for step in self.layers),
            (num_layers, 0),
        ]
        return sum(kept * (later - layer) for (layer, kept), (later, _) in pairwise(changes)) / num_layers

    def as_json(self) -> dict[str, object]:
        """The report in plain types."""
        crops = [
            {"kind": crop.kind, "grid": list(crop.grid), "tokens": len(crop.present), "kept": kept}
            for crop, kept in zip(self.layout.crops, self.kept_by_crop, strict=True)
        ]
        return {
            "image": self.number,
            "modality": self.modality,
            "row": self.row,
            "tokens_in": self.tokens_in,
            "tokens_kept": self.tokens_kept,
            "tokens_left": self.tokens_left,
            "inert": self.inert,
            "crops": crops,
            "steps": [vars(step) for step in self.steps],
            "layers": [layer.as_json() for layer in self.layers],
            "notes": list(self.notes),
        }

    @property
    def kept_by_crop(self) -> list[int]:
        """Tokens that stayed of every crop."""
        kept = set(self.selection.indices.tolist())
        return [sum(place in kept for place in crop.present.tolist()) for crop in self.layout.crops]


@dataclass(frozen=True)
class Report:
    """What a handle remembers.

    Args:
        plan: The plan as text.
        images: Those of the last call, in its order; or all that are remembered, oldest first.
        kv_bytes: Bytes of keys and values that the last call left in its cache; None without a cache.
    """

    plan: str
    images: tuple[ImageReport, ...] = ()
    kv_bytes: int | None = None

    @property
    def tokens_in(self) -> int:
        """Tokens of the untouched model, over all images."""
        return sum(image.tokens_in for image in self.images)

    @property
    def tokens_kept(self) -> int:
        """Tokens that the language model read, over all images."""
        return sum(image.tokens_kept for image in self.images)

    @property
    def tokens_left(self) -> int:
        """Tokens that are there in the last layer of the language model, over all images."""
        return sum(image.tokens_left for image in self.images)

    @property
    def inert(self) -> bool:
        """Whether there were images and the plan left out nothing of any."""
        return bool(self.images) and all(image.inert for image in self.images)

    def as_json(self) -> dict[str, object]:
        """The report in plain types."""
        return {
            "plan": self.plan,
            "tokens_in": self.tokens_in,
            "tokens_kept": self.tokens_kept,
            "tokens_left": self.tokens_left,
            "inert": self.inert,
            "kv_bytes": self.kv_bytes,
            "images": [image.as_json() for image in self.images],
        }

    def __str__(self) -> str:
        of = f"{self.tokens_kept} of {self.tokens_in} visual tokens"
        later = f", {self.tokens_left} up to the last layer" if self.tokens_left != self.tokens_kept else ""
        lines = [f"{self.plan}: {of} of {len(self.images)} images stay{later}"]
        if self.inert:
            lines.append(f"  {NOTHING_LEFT_OUT}")
        for image in self.images:
            steps = ", ".join(
                f"{s.method} {s.tokens_in} -> {s.tokens_kept} ({s.milliseconds:.1f} ms)" for s in image.steps
            )
            lines += [f"  {image.modality} {image.number}: {steps or 'all tokens'}"]
            lines += [f"    {layer}" for layer in image.layers]
            lines += [f"    {note}" for note in image.notes]
        return "\n".join(lines)


@dataclass
class ReportLog:
    """Reports of the calls of many threads: the last call of each, and all that fit."""

    _all: deque[ImageReport] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _local: threading.local = field(default_factory=threading.local)

    def write(self, images: list[ImageReport], kv_bytes: int | None = None) -> None:
        """Note the images of one call of this thread (none of text alone), and what its cache holds after it."""
        with self._lock:
            self._all.extend(images)
        self._local.last = tuple(images)
        self._local.kv_bytes = kv_bytes

    @property
    def kv_bytes(self) -> int | None:
        """What the cache of this thread's last call held after it."""
        return getattr(self._local, "kv_bytes", None)

    def last(self) -> tuple[ImageReport, ...]:
        """The images of this thread's last call, none after one of text alone; those of all threads before any."""
        images = getattr(self._local, "last", None)
        return self.all() if images is None else images

    def all(self) -> tuple[ImageReport, ...]:
        """The last images of all threads."""
        with self._lock:
            return tuple(self._all)

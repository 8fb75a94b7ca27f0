"""Reports of compressed runs, per image."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from foveate.core.tokens import Need, Selection
from foveate.families import ImageLayout

#: Images whose reports a handle keeps; those of earlier calls without features, which are as large as the images.
REMEMBERED = 1024
#: Note for a plan that removes nothing.
NOTHING_LEFT_OUT = "nothing was left out: every layer of the language model reads all visual tokens"


@dataclass(frozen=True)
class StepReport:
    """The effect of one plan step before the language model on one image.

    Args:
        method: The step as text.
        site: Its site.
        tokens_in: Tokens before the step.
        tokens_kept: Tokens after it.
        milliseconds: Time of the selection; on a GPU the time to enqueue it.
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
    """The effect of one plan step inside the language model on one image.

    Args:
        method: The step as text.
        layer: The decoder layer before which it acts.
        tokens_in: Tokens before the layer.
        tokens_kept: Tokens that enter the layer.
        milliseconds: Time of the selection; on a GPU the time to enqueue it.
        indices: (k,) the kept tokens, as indices into the image's encoder tokens.
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
    """Report on one image or clip.

    Args:
        number: Index of the image in the call.
        modality: "image" or "video".
        row: Index of the first sequence of the batch that holds it.
        layout: Its token layout before pruning.
        selection: The selection after all steps before the language model.
        steps: One report per step before the language model.
        layers: One report per step inside it, by ascending layer.
        notes: Notes for the user, such as a substitute for a missing [CLS] token.
        measured: (N,) measured values of the tokens, for needs with one value per token.
        read: Its tokens in the language model's input, counted there; None: it has not run yet.
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
        """Tokens of the full model."""
        return self.layout.count

    @property
    def tokens_kept(self) -> int:
        """Tokens in the input of the language model."""
        return len(self.selection) if self.read is None else self.read

    @property
    def tokens_left(self) -> int:
        """Tokens remaining in the last layer of the language model."""
        return self.layers[-1].tokens_kept if self.layers else self.tokens_kept

    @property
    def inert(self) -> bool:
        """Whether the plan removed and merged nothing: every layer of the language model ran on all tokens."""
        return min(self.tokens_left, len(self.selection)) >= self.tokens_in

    def tokens_by_layer(self, num_layers: int) -> list[int]:
        """Number of tokens in each layer of a language model of `num_layers`."""
        # (first layer of a segment, its tokens), closed by the end of the model.
        changes = [
            (0, self.tokens_kept),
            *((step.layer, step.tokens_kept) for step in self.layers),
            (num_layers, 0),
        ]
        return [kept for (layer, kept), (later, _) in pairwise(changes) for _ in range(layer, later)]

    def mean_tokens(self, num_layers: int) -> float:
        """Mean number of tokens per layer, for a language model of `num_layers`."""
        return sum(self.tokens_by_layer(num_layers)) / num_layers

    def as_json(self) -> dict[str, object]:
        """The report in plain types."""
        crops: list[dict[str, object]] = [
            {"kind": crop.kind, "grid": list(crop.grid), "tokens": len(crop.present), "kept": kept}
            for crop, kept in zip(self.layout.crops, self.kept_by_crop, strict=True)
        ]
        if self.layout.timestamps is not None:
            for crop, time in zip(crops, self.layout.timestamps.tolist(), strict=True):
                crop["seconds"] = time
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
    def frames(self) -> str:
        """Number and times of the frames of a clip, in words; empty for images."""
        count, times = len(self.layout.crops), self.layout.timestamps
        if self.modality != "video" or count == 1:
            return ""
        return f"{count} frames" + ("" if times is None else f", {times[0]:.1f} to {times[-1]:.1f} s")

    @property
    def kept_by_crop(self) -> list[int]:
        """Kept tokens of every crop."""
        kept = set(self.selection.indices.tolist())
        return [sum(place in kept for place in crop.present.tolist()) for crop in self.layout.crops]


@dataclass(frozen=True)
class Report:
    """Report of a handle.

    Args:
        plan: The plan as text.
        images: Images of the last call, in order; or all that are stored, oldest first.
        kv_bytes: Bytes of the KV cache after the last call; None without a cache.
    """

    plan: str
    images: tuple[ImageReport, ...] = ()
    kv_bytes: int | None = None

    @property
    def tokens_in(self) -> int:
        """Tokens of the full model, over all images."""
        return sum(image.tokens_in for image in self.images)

    @property
    def tokens_kept(self) -> int:
        """Tokens in the input of the language model, over all images."""
        return sum(image.tokens_kept for image in self.images)

    @property
    def tokens_left(self) -> int:
        """Tokens remaining in the last layer of the language model, over all images."""
        return sum(image.tokens_left for image in self.images)

    @property
    def inert(self) -> bool:
        """Whether there were images and the plan removed nothing from any."""
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
            frames = f" ({image.frames})" if image.frames else ""
            lines += [f"  {image.modality} {image.number}{frames}: {steps or 'all tokens'}"]
            lines += [f"    {layer}" for layer in image.layers]
            lines += [f"    {note}" for note in image.notes]
        return "\n".join(lines)


@dataclass
class ReportLog:
    """Thread-safe log of image reports: the last call of each thread, and the latest images of all.

    The latest images of all have selections without the features of merged tokens.
    """

    _all: deque[ImageReport] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _local: threading.local = field(default_factory=threading.local)

    def write(self, images: list[ImageReport], kv_bytes: int | None = None) -> None:
        """Record the images of one call of this thread (none for text alone), and the bytes of its cache."""
        without_features = [
            replace(image, selection=replace(image.selection, features=None, remade=None)) for image in images
        ]
        with self._lock:
            self._all.extend(without_features)
        self._local.last = tuple(images)
        self._local.kv_bytes = kv_bytes

    @property
    def kv_bytes(self) -> int | None:
        """Bytes of the cache after this thread's last call."""
        return getattr(self._local, "kv_bytes", None)

    def last(self) -> tuple[ImageReport, ...]:
        """Images of this thread's last call, empty for text alone; those of all threads if it made no call yet."""
        images = getattr(self._local, "last", None)
        return self.all() if images is None else images

    def all(self) -> tuple[ImageReport, ...]:
        """The latest images of all threads."""
        with self._lock:
            return tuple(self._all)

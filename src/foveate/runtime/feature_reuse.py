"""Reuse of features between the frames of a clip, inside a live vision tower.

`STCCacher` says which tokens of a frame are computed; here the blocks of a tower compute them. All references of a call
run first through a block, together, then all other frames, together. It runs in towers whose frames attend to
themselves alone, in every block: those of CLIP and SigLIP (LLaVA-OneVision), and of Qwen2-VL and Qwen3-VL, whose frames
are packed end to end and have rotary positions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import FoveateError, Refusal
from foveate.families import Family, family_of
from foveate.methods.encoder.stc_cacher import STCCacher
from foveate.runtime.frame_blocks import FrameBlock, Frames, Reference, frame_block
from foveate.runtime.patches import NotCopyable, Patches


@dataclass
class FrameHistory:
    """The last reference frame of a stream, in every block.

    Args:
        frames: Frames so far.
        references: By block.
    """

    frames: int = 0
    references: dict[int, Reference] = field(default_factory=dict)


@dataclass(frozen=True)
class _Call:
    """Which frames of one call are references, and whose reference the others have.

    Args:
        full: Frames that are computed in full.
        reused: The others.
        sources: For each of them the row of its reference, of the last one before the call (if any) and `full`.
        history: Where the last reference comes from.
        references: The last reference of this call, by block; the history gets them after the call, if it succeeds.
    """

    full: Tensor
    reused: Tensor
    sources: Tensor
    history: FrameHistory
    references: dict[int, Reference] = field(default_factory=dict)


class FeatureReuse(NotCopyable):
    """Feature reuse attached to a model, made by `reuse_features`; a context manager that restores the model on exit.

    Args:
        model: The model.
        method: Which tokens are computed.
        streams_only: Encode clips in full but for those within `continuing`, so that other calls of a model on which a
            stream is open are as without it.
    """

    def __init__(self, model: Any, method: STCCacher, streams_only: bool = False) -> None:
        if not isinstance(method, STCCacher):
            raise FoveateError(f"features are reused by STCCacher(), not by {method!r}.")
        self.method, self._streams_only = method, streams_only
        self.family: Family = family_of(model)
        self._core: Any = self.family.core(model)
        if not hasattr(self._core, "get_video_features"):
            raise FoveateError(
                Refusal(
                    "needs-clips", f"features are reused between frames of clips, and {self.family.title} takes none"
                )
            )
        blocks = self.family.blocks(self._core)
        self._blocks = [frame_block(block, self.family) for block in blocks]
        self._local = threading.local()
        self._patches = Patches()
        names = ["_old_forward" if "_old_forward" in vars(block) else "forward" for block in blocks]
        originals = [getattr(block, name) for block, name in zip(blocks, names, strict=True)]
        if any(isinstance(original, partial) for original in originals):
            raise FoveateError(
                Refusal("attached-already", "blocks of this vision tower are replaced already", "restore that first")
            )
        for number, (block, name, original) in enumerate(zip(blocks, names, originals, strict=True)):
            self._patches.set(block, name, partial(self._forward, number, original), fallback=original)
        self._patches.wrap(self._core, "get_video_features", self._encode)

    @contextmanager
    def continuing(self, history: FrameHistory) -> Generator[None]:
        """Let clips that this thread encodes go on with the frames of a stream, while the context is open."""
        previous, self._local.history = getattr(self._local, "history", None), history
        try:
            yield
        finally:
            self._local.history = previous

    def restore(self) -> None:
        """Restore the model to its original state; a second call changes nothing."""
        self._patches.undo()

    def __enter__(self) -> FeatureReuse:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.restore()

    def _encode(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        history = getattr(self._local, "history", None)
        if history is None and self._streams_only:
            return original(*args, **kwargs)
        names = ("pixel_values_videos", "video_grid_thw")
        counts = _frame_counts({**dict(zip(names, args, strict=False)), **kwargs})
        if history is not None and len(counts) > 1:
            raise FoveateError(f"a stream is one clip, and {len(counts)} are encoded at once.")
        call = self._local.call = self._schedule(counts, FrameHistory() if history is None else history)
        try:
            output = original(*args, **kwargs)
        finally:
            self._local.call = None
        if history is not None:
            history.frames += counts[0]
            history.references.update(call.references)
        return output

    def _schedule(self, counts: Sequence[int], history: FrameHistory) -> _Call:
        """Divide the frames of clips of so many frames into references and others."""
        full: list[int] = []
        reused: list[int] = []
        sources: list[int] = []
        carried = len(history.references) > 0
        first = 0
        for count in counts:
            for place in range(count):
                if (history.frames + place) % self.method.interval == 0:
                    full.append(first + place)
                else:
                    reused.append(first + place)
                    sources.append(len(full) - 1 + carried)
            first += count
        parts = [torch.tensor(part, dtype=torch.int64) for part in (full, reused, sources)]
        return _Call(parts[0], parts[1], parts[2], history)

    def _forward(self, number: int, original: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Forward of block `number`; the original one for images."""
        call: _Call | None = getattr(self._local, "call", None)
        if call is None:
            return original(hidden, *args, **kwargs)
        block = self._blocks[number]
        frames = block.frames(hidden, len(call.full) + len(call.reused), args, kwargs)
        full, reused = call.full.to(hidden.device), call.reused.to(hidden.device)
        x = torch.empty_like(frames.x)
        references = call.history.references.get(number)
        if len(full):
            x[full], computed = block.full(frames.take(full))
            references = computed if references is None else references.join(computed)
        assert references is not None  # the first frame of a stream is a reference
        if len(reused):
            x[reused] = self._reuse(block, frames.take(reused), references.take(call.sources.to(hidden.device)))
        call.references[number] = references.take(torch.tensor([-1]))  # a copy: the others are freed
        return x.view_as(hidden)

    def _reuse(self, block: FrameBlock, frames: Frames, reference: Reference) -> Tensor:
        """Output (F, N, d) of a block for frames with their references."""
        normed = block.norm1(frames.x)
        keys = block.project(normed, "k")
        places = self.method.dynamic_tokens(keys, reference.keys)
        rows = places[..., None].expand(-1, -1, keys.shape[-1])
        chosen = normed.gather(1, rows)
        values = reference.values.scatter(1, rows, block.project(chosen, "v"))
        attended = block.attend(block.project(chosen, "q"), keys, values, frames, places)
        x = frames.x + reference.attention.scatter(1, rows, attended)
        return x + reference.mlp.scatter(1, rows, block.mlp(block.norm2(x.gather(1, rows))))


def reuse_features(model: Any, method: STCCacher | None = None) -> FeatureReuse:
    """Reuse features of static tokens between the frames of clips, inside the encoder, until the handle is restored.

        with foveate.reuse_features(model, STCCacher(dynamic=0.25)):
            model.generate(**inputs)

    Every clip of a call begins with a reference frame; images are encoded as before. A plan may be attached too, unless
    it measures attention in the encoder, or merges in it.

    Args:
        model: A model of `transformers` that takes clips: LLaVA-OneVision, Qwen2-VL or Qwen3-VL.
        method: Which tokens are computed; default `STCCacher()`.

    Raises:
        FoveateError: the model takes no clips, its blocks have another structure, or they are replaced already.
    """
    return FeatureReuse(model, STCCacher() if method is None else method)


def _frame_counts(call: Mapping[str, Any]) -> list[int]:
    """Frames, as the encoder sees them, of every clip of a call."""
    grids = call.get("video_grid_thw")
    if grids is None:
        clips, frames = call["pixel_values_videos"].shape[:2]
        return [int(frames)] * int(clips)
    if len({(int(rows), int(columns)) for _, rows, columns in grids}) > 1:
        raise FoveateError("features are reused in clips of one size; encode clips of other sizes in another call.")
    return [int(frames) for frames, _, _ in grids]

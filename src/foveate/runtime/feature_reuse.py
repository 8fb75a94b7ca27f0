"""Reuse of features between the frames of a clip, inside a live vision tower.

`STCCacher` says which tokens of a frame are computed; here the blocks of a tower compute them. All references of a call
run first through a block, together, then all other frames, together. It runs in towers whose frames attend to
themselves alone, in every block: those of CLIP and SigLIP (LLaVA-OneVision), and of Qwen2-VL and Qwen3-VL, whose frames
are packed end to end and have rotary positions.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import FoveateError, Refusal
from foveate.families import Family, family_of
from foveate.methods.encoder.stc_cacher import STCCacher
from foveate.runtime.patches import NotCopyable, Patches


@dataclass(frozen=True)
class Reference:
    """Values of reference frames in one block, (R, N, d) each.

    Args:
        keys: Keys of all heads, before rotation.
        values: Values of all heads.
        attention: Outputs of attention, without residual.
        mlp: Outputs of the MLP, without residual.
    """

    keys: Tensor
    values: Tensor
    attention: Tensor
    mlp: Tensor

    def take(self, rows: Tensor) -> Reference:
        """Those of some frames."""
        return Reference(self.keys[rows], self.values[rows], self.attention[rows], self.mlp[rows])

    def join(self, other: Reference) -> Reference:
        """These frames and others."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Reference(*(torch.cat(pair) for pair in pairs))


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
        history: Where the last reference comes from and goes to.
    """

    full: Tensor
    reused: Tensor
    sources: Tensor
    history: FrameHistory


class FeatureReuse(NotCopyable):
    """Feature reuse attached to a model, made by `reuse_features`; a context manager that restores the model on exit.

    Args:
        model: The model.
        method: Which tokens are computed.
    """

    def __init__(self, model: Any, method: STCCacher) -> None:
        self.method = method
        self.family: Family = family_of(model)
        self._core: Any = self.family.core(model)
        if not hasattr(self._core, "get_video_features"):
            raise FoveateError(
                Refusal(
                    "needs-clips", f"features are reused between frames of clips, and {self.family.title} takes none"
                )
            )
        blocks = self.family.blocks(self._core)
        self._blocks = [_block_of(block, self.family) for block in blocks]
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
        names = ("pixel_values_videos", "video_grid_thw")
        counts = _frame_counts({**dict(zip(names, args, strict=False)), **kwargs})
        history = getattr(self._local, "history", None)
        if history is not None and len(counts) > 1:
            raise FoveateError(f"a stream is one clip, and {len(counts)} are encoded at once.")
        self._local.call = self._schedule(counts, FrameHistory() if history is None else history)
        try:
            output = original(*args, **kwargs)
        finally:
            self._local.call = None
        if history is not None:
            history.frames += counts[0]
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
        return _Call(*(torch.tensor(part, dtype=torch.int64) for part in (full, reused, sources)), history)

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
        call.history.references[number] = references.take(torch.tensor([-1]))  # a copy: the others are freed
        return x.view_as(hidden)

    def _reuse(self, block: _Block, frames: _Frames, reference: Reference) -> Tensor:
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


@dataclass(frozen=True)
class _Frames:
    """Rows (F, N, d) of frames before a block, and their rotations (F, N, 1, d / heads), if there are any."""

    x: Tensor
    rotation: tuple[Tensor, Tensor] | None = None

    def take(self, rows: Tensor) -> _Frames:
        rotation = None if self.rotation is None else (self.rotation[0][rows], self.rotation[1][rows])
        return _Frames(self.x[rows], rotation)


class _Block(ABC):
    """The parts of a block."""

    norm1: Any
    norm2: Any
    mlp: Any
    heads: int
    scale: float

    @abstractmethod
    def frames(self, hidden: Tensor, count: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Frames:
        """The frames of a call of the block."""

    @abstractmethod
    def project(self, x: Tensor, which: str) -> Tensor:
        """Queries, keys or values ("q", "k", "v") of rows (F, n, d), all heads together."""

    @abstractmethod
    def output(self, x: Tensor) -> Tensor:
        """The output projection of attention."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, frames: _Frames, places: Tensor | None) -> Tensor:
        """Attention of queries (F, n, d) at `places` (F, n) of their frames (None: all) over all keys and values."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (query, keys, values))
        if frames.rotation is not None:
            q, k = _rotate(q, *_rows(frames.rotation, places)), _rotate(k, *frames.rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.output(out.transpose(1, 2).flatten(2))

    def full(self, frames: _Frames) -> tuple[Tensor, Reference]:
        """Output of the block for frames that are computed in full, and what others reuse of them."""
        normed = self.norm1(frames.x)
        query, keys, values = (self.project(normed, which) for which in "qkv")
        attention = self.attend(query, keys, values, frames, None)
        x = frames.x + attention
        mlp = self.mlp(self.norm2(x))
        return x + mlp, Reference(keys, values, attention, mlp)


class _PlainBlock(_Block):
    """A block of CLIP or SigLIP, whose batch is the frames."""

    def __init__(self, block: Any) -> None:
        self.norm1, self.norm2, self.mlp = block.layer_norm1, block.layer_norm2, block.mlp
        self.attention = block.self_attn
        self.heads, self.scale = block.self_attn.num_heads, block.self_attn.scale

    def frames(self, hidden: Tensor, count: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Frames:
        mask = args[0] if args else kwargs.get("attention_mask")
        if mask is not None:
            raise FoveateError("features are reused in frames without padded patches; give frames of one size.")
        if len(hidden) != count:
            raise FoveateError(f"the vision tower reads {len(hidden)} images for {count} frames of clips.")
        return _Frames(hidden)

    def project(self, x: Tensor, which: str) -> Tensor:
        return getattr(self.attention, f"{which}_proj")(x)

    def output(self, x: Tensor) -> Tensor:
        return self.attention.out_proj(x)


class _PackedBlock(_Block):
    """A block of Qwen2-VL or Qwen3-VL, whose rows are the frames end to end."""

    def __init__(self, block: Any) -> None:
        if type(block.attn.qkv) is not nn.Linear:
            raise FoveateError(
                f"features are reused with parts of the weights of {type(block).__name__}, which are no plain matrix "
                f"here ({type(block.attn.qkv).__name__}); merge adapters, or leave the encoder unquantized."
            )
        self.norm1, self.norm2, self.mlp, self.attention = block.norm1, block.norm2, block.mlp, block.attn
        self.heads, self.scale = block.attn.num_heads, block.attn.scaling

    def frames(self, hidden: Tensor, count: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Frames:
        cos, sin = args[1] if len(args) > 1 else kwargs["position_embeddings"]
        shape = (count, -1, 1, cos.shape[-1])
        return _Frames(hidden.view(count, -1, hidden.shape[-1]), (cos.view(shape), sin.view(shape)))

    def project(self, x: Tensor, which: str) -> Tensor:
        weights = self.attention.qkv
        part = "qkv".index(which)
        bias = None if weights.bias is None else weights.bias.chunk(3)[part]
        return F.linear(x, weights.weight.chunk(3)[part], bias)

    def output(self, x: Tensor) -> Tensor:
        return self.attention.proj(x)


def _rows(rotation: tuple[Tensor, Tensor], places: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rotations of the tokens at `places` (F, n) of their frames; None: of all."""
    if places is None:
        return rotation
    rows = places[..., None, None].expand(-1, -1, 1, rotation[0].shape[-1])
    return rotation[0].gather(1, rows), rotation[1].gather(1, rows)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads (F, n, heads, d / heads) in float32, as these towers do."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x.float() * cos.float() + turned * sin.float()).to(x.dtype)


#: Kinds of blocks: families (None: all), attributes of the block, its attention, and attributes of that.
_KINDS: tuple[tuple[type[_Block], tuple[str, ...] | None, tuple[str, ...], str, tuple[str, ...]], ...] = (
    (
        _PlainBlock,
        None,
        ("layer_norm1", "layer_norm2", "mlp", "self_attn"),
        "self_attn",
        ("q_proj", "k_proj", "v_proj", "out_proj", "num_heads", "scale"),
    ),
    (
        _PackedBlock,
        ("qwen2-vl", "qwen3-vl"),  # the same parts serve windows in Qwen2.5-VL
        ("norm1", "norm2", "mlp", "attn"),
        "attn",
        ("qkv", "proj", "num_heads", "scaling"),
    ),
)


def _block_of(block: nn.Module, family: Family) -> _Block:
    """The parts of a block of a family's tower.

    Raises:
        FoveateError: its structure is another one.
    """
    for kind, families, parts, name, inner in _KINDS:
        attention = getattr(block, name, None)
        known = families is None or family.name in families
        if known and all(hasattr(block, part) for part in parts) and all(hasattr(attention, part) for part in inner):
            return kind(block)  # ty: ignore[too-many-positional-arguments]
    raise FoveateError(
        Refusal(
            "needs-frames-apart",
            "features are reused in encoders with the blocks of CLIP, SigLIP, Qwen2-VL or Qwen3-VL, in which every "
            f"frame attends to all of itself; the encoder of {family.title} has others",
        )
    )

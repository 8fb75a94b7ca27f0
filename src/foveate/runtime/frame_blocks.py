"""Blocks of vision towers as feature reuse computes them: frame by frame, and for some tokens alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import FoveateError, Refusal
from foveate.families import Family


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


@dataclass(frozen=True)
class Frames:
    """Rows (F, N, d) of frames before a block, and their rotations (F, N, 1, d / heads), if there are any."""

    x: Tensor
    rotation: tuple[Tensor, Tensor] | None = None

    def take(self, rows: Tensor) -> Frames:
        """Those of some frames."""
        rotation = None if self.rotation is None else (self.rotation[0][rows], self.rotation[1][rows])
        return Frames(self.x[rows], rotation)


class FrameBlock(ABC):
    """The parts of a block."""

    norm1: Any
    norm2: Any
    mlp: Any
    heads: int
    scale: float

    @abstractmethod
    def frames(self, hidden: Tensor, count: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Frames:
        """The frames of a call of the block."""

    @abstractmethod
    def project(self, x: Tensor, which: str) -> Tensor:
        """Queries, keys or values ("q", "k", "v") of rows (F, n, d), all heads together."""

    @abstractmethod
    def output(self, x: Tensor) -> Tensor:
        """The output projection of attention."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, frames: Frames, places: Tensor | None) -> Tensor:
        """Attention of queries (F, n, d) at `places` (F, n) of their frames (None: all) over all keys and values."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (query, keys, values))
        if frames.rotation is not None:
            q, k = _rotate(q, *_rows(frames.rotation, places)), _rotate(k, *frames.rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.output(out.transpose(1, 2).flatten(2))

    def full(self, frames: Frames) -> tuple[Tensor, Reference]:
        """Output of the block for frames that are computed in full, and what others reuse of them."""
        normed = self.norm1(frames.x)
        query, keys, values = (self.project(normed, which) for which in "qkv")
        attention = self.attend(query, keys, values, frames, None)
        x = frames.x + attention
        mlp = self.mlp(self.norm2(x))
        return x + mlp, Reference(keys, values, attention, mlp)


class PlainBlock(FrameBlock):
    """A block of CLIP or SigLIP, whose batch is the frames."""

    def __init__(self, block: Any) -> None:
        self.norm1, self.norm2, self.mlp = block.layer_norm1, block.layer_norm2, block.mlp
        self.attention = block.self_attn
        self.heads, self.scale = block.self_attn.num_heads, block.self_attn.scale

    def frames(self, hidden: Tensor, count: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Frames:
        """See `FrameBlock.frames`."""
        mask = args[0] if args else kwargs.get("attention_mask")
        if mask is not None:
            raise FoveateError("features are reused in frames without padded patches; give frames of one size.")
        if len(hidden) != count:
            raise FoveateError(f"the vision tower reads {len(hidden)} images for {count} frames of clips.")
        return Frames(hidden)

    def project(self, x: Tensor, which: str) -> Tensor:
        """See `FrameBlock.project`."""
        return getattr(self.attention, f"{which}_proj")(x)

    def output(self, x: Tensor) -> Tensor:
        """See `FrameBlock.output`."""
        return self.attention.out_proj(x)


class PackedBlock(FrameBlock):
    """A block of Qwen2-VL or Qwen3-VL, whose rows are the frames end to end."""

    def __init__(self, block: Any) -> None:
        if type(block.attn.qkv) is not nn.Linear:
            raise FoveateError(
                f"features are reused with parts of the weights of {type(block).__name__}, which are no plain matrix "
                f"here ({type(block.attn.qkv).__name__}); merge adapters, or leave the encoder unquantized."
            )
        self.norm1, self.norm2, self.mlp, self.attention = block.norm1, block.norm2, block.mlp, block.attn
        self.heads, self.scale = block.attn.num_heads, block.attn.scaling

    def frames(self, hidden: Tensor, count: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Frames:
        """See `FrameBlock.frames`."""
        cos, sin = args[1] if len(args) > 1 else kwargs["position_embeddings"]
        shape = (count, -1, 1, cos.shape[-1])
        return Frames(hidden.view(count, -1, hidden.shape[-1]), (cos.view(shape), sin.view(shape)))

    def project(self, x: Tensor, which: str) -> Tensor:
        """See `FrameBlock.project`."""
        weights = self.attention.qkv
        part = "qkv".index(which)
        bias = None if weights.bias is None else weights.bias.chunk(3)[part]
        return F.linear(x, weights.weight.chunk(3)[part], bias)

    def output(self, x: Tensor) -> Tensor:
        """See `FrameBlock.output`."""
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
_KINDS: tuple[tuple[type[FrameBlock], tuple[str, ...] | None, tuple[str, ...], str, tuple[str, ...]], ...] = (
    (
        PlainBlock,
        None,
        ("layer_norm1", "layer_norm2", "mlp", "self_attn"),
        "self_attn",
        ("q_proj", "k_proj", "v_proj", "out_proj", "num_heads", "scale"),
    ),
    (
        PackedBlock,
        ("qwen2-vl", "qwen3-vl"),  # the same parts serve windows in Qwen2.5-VL
        ("norm1", "norm2", "mlp", "attn"),
        "attn",
        ("qkv", "proj", "num_heads", "scaling"),
    ),
)


def frame_block(block: nn.Module, family: Family) -> FrameBlock:
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

"""Slow-Fast: few pooled tokens in the sequence, and all frames as memory of some decoder layers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import initialization as init

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.configured import whole_number
from foveate.models.video_connectors.connector import ClipShape, ConnectorOptions, Instruction, VideoConnector
from foveate.models.video_connectors.mlp import MLP
from foveate.models.visual_memory import (
    MemoryReader,
    VisualMemory,
    add_rows,
    attend,
    packed_columns,
    take_memory,
)


@dataclass(frozen=True)
class SlowFastOptions(ConnectorOptions):
    """Options of `SlowFast`.

    Args:
        clip_pooling: Side of the squares of patches that are averaged in every frame of a clip, before slow and fast
            tokens part; images keep their patches.
        sampling_stride: One of so many frames becomes fast tokens.
        temporal_stride: Frames that are averaged to fast tokens.
        spatial_stride: Side of the squares that are averaged to fast tokens.
        least_frames: Frames of fast tokens that are kept of every clip that has so many.
        every: Every so many decoder layers one reads the slow tokens.
        first: The first of them.
        last: Decoder layers from this one on do not; None: up to the last.
    """

    clip_pooling: int = 2
    sampling_stride: int = 1
    temporal_stride: int = 4
    spatial_stride: int = 1
    least_frames: int = 16
    every: int = 8
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        names = ("clip_pooling", "sampling_stride", "temporal_stride", "spatial_stride", "least_frames", "every")
        for name in names:
            whole_number(name, getattr(self, name))
        whole_number("first", self.first, least=0)
        if self.last is not None:
            whole_number("last", self.last, least=self.first + 1)


class SlowFastReader(MemoryReader):
    """Lets the text of one decoder layer attend to the slow tokens, within its self-attention.

        c = softmax(q K^T / sqrt(D)) V            q: the query of the layer with its rotary position;  K, V = W LN(slow)
        a <- a + c tanh(w . a + b) tanh(g)        a: output of the self-attention before its projection

    LN is the layer norm before the self-attention of the layer. K and V have no position. g begins at zero, so that a
    new reader changes nothing.

    Args:
        text_config: Of the language model, which is built like Llama or Qwen2.
    """

    def __init__(self, text_config: Any) -> None:
        super().__init__()
        heads, width = text_config.num_attention_heads, text_config.hidden_size
        self.kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
        self.head_dim = getattr(text_config, "head_dim", None) or width // heads
        self.kv_proj = nn.Linear(width, 2 * self.kv_heads * self.head_dim)
        self.gate_proj = nn.Linear(heads * self.head_dim, 1)
        self.gate = nn.Parameter(torch.zeros(1))
        self._layer: tuple[nn.Module, ...] = ()
        self._handles: list[RemovableHandle] = []

    def reset_parameters(self) -> None:
        """See `MemoryReader.reset_parameters`."""
        init.zeros_(self.gate)

    def attach(self, layer: nn.Module) -> None:
        """See `MemoryReader.attach`; the layer hands the argument on to its self-attention."""
        self._layer = (layer,)  # in a tuple, because the layer is no part of the reader
        attention = layer.get_submodule("self_attn")
        attention.register_forward_pre_hook(self._before, with_kwargs=True)
        attention.register_forward_hook(self._after, always_call=True)

    def _before(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A pre-hook of the self-attention, which is called without the argument.

        Within the self-attention, so that a layer that runs again for its gradients reads again. Projections are hooked
        for one call, because adapters may replace them between two.
        """
        kwargs = dict(kwargs)
        memory = take_memory(kwargs)
        if memory is None:
            return args, kwargs
        rotation, norm = kwargs["position_embeddings"], self._layer[0].get_submodule("input_layernorm")
        query: list[Tensor] = []

        def keep(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            query.append(output)

        def read(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
            key, value = memory.keys_values(self, lambda: norm(memory.states))
            return (self(inputs[0], self._queries(attention, query.pop(), rotation), key, value, memory),)

        self._handles = [
            attention.get_submodule("q_proj").register_forward_hook(keep),
            attention.get_submodule("o_proj").register_forward_pre_hook(read),
        ]
        return args, kwargs

    def _after(self, attention: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A hook of the self-attention, also where it fails."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _queries(self, attention: Any, projected: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Queries `(B, heads, L, D)` with their rotary positions, as the layer has them."""
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        queries = projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return rotate(queries, queries[:, :1], *rotation)[0]

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """See `MemoryReader.keys_values`; channels are head, then key or value, as in the authors' checkpoints."""
        key, value = self.kv_proj(states).unflatten(-1, (self.kv_heads, 2, self.head_dim)).permute(3, 0, 2, 1, 4)
        return key, value

    def flops(self, memory: int, text: int, visual: int, attention: bool = True) -> int:
        """See `MemoryReader.flops`."""
        wide = self.gate_proj.in_features
        total = 2 * memory * self.kv_proj.in_features * self.kv_proj.out_features + 2 * text * wide
        return total + (4 * text * memory * wide if attention else 0)

    def forward(self, mixed: Tensor, queries: Tensor, key: Tensor, value: Tensor, memory: VisualMemory) -> Tensor:
        """Add what text reads.

        Args:
            mixed: `(B, L, heads * D)`, output of the self-attention before its projection.
            queries: `(B, heads, L, D)`.
            key: `(B, kv heads, S, D)`.
            value: `(B, kv heads, S, D)`.
            memory: Where there is text, and where padding of the memory.
        """
        columns, present = packed_columns(memory.text)
        queries = queries.take_along_dim(columns[:, None, :, None], dim=2)
        context = attend(queries, key, value, memory.mask)
        gate = self.gate_proj(mixed.take_along_dim(columns.unsqueeze(-1), dim=1)).tanh() * self.gate.tanh()
        return add_rows(mixed, columns, present, context * gate)


class SlowFast(VideoConnector[SlowFastOptions]):
    """Puts a few pooled tokens of a clip in the sequence, and lets text read all its frames in some decoder layers.

        slow = pool_{2 x 2}(MLP(x)), all frames;  fast = mean of every 4 frames of slow;  fast is in the sequence

    Slow-Fast Architecture for Video Multi-Modal Large Language Models (Shi et al., arXiv 2504.01328). Every 8th decoder
    layer has a reader of the slow tokens (`SlowFastReader`), from the first on. Fast frames beyond the last full four
    are dropped, as in the authors' code; where fewer than `least_frames` would remain, frames are averaged to so many.

    Authors' code: with its option to initialize keys and values from the language model, it stacks both weights, and
    then splits channels into heads of key and value, so that keys of half of the heads are values and the reverse.
    Weights that were trained so are loaded with the same split. While it writes, its text no longer reads the slow
    tokens: it masks them where a call has no visual token, which is every step after the prompt. Here text that is
    written reads them as answers do in training, and generation with a cache equals that without. The variant that lets
    visual tokens read too, and gates without tanh, are not here.
    """

    name: ClassVar[str] = "slow_fast"
    title: ClassVar[str] = "Slow-Fast Architecture for Video Multi-Modal Large Language Models"
    paper: ClassVar[str] = "arXiv 2504.01328"
    options_class: ClassVar = SlowFastOptions
    released_types: ClassVar[tuple[str, ...]] = ("llava_qwen_slow_fast",)
    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        r"0\.": "projector.linear_1.",
        r"2\.": "projector.linear_2.",
    }
    released_reader_keys: ClassVar[Mapping[str, str]] = {
        "cross_attn_kv_proj.": "kv_proj.",
        "cross_attn_gate_proj.0.": "gate_proj.",
        "cross_attn_warm_up_gate": "gate",
    }

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        self.projector = MLP(vision_hidden_size, text_hidden_size)

    @classmethod
    def released_options(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """See `ConfiguredModule.released_options`.

        Raises:
            FoveateError: The gates or the layers are of another variant.
        """
        gate, kind = config.get("cross_attn_gating_type"), str(config.get("cross_attn_implementation"))
        if gate != "whole-dynamic-tanh-warmup" or kind not in ("text-only-vanilla", "text-only-vanilla-flashattn"):
            raise FoveateError(
                f"released models of slow_fast have cross_attn_gating_type whole-dynamic-tanh-warmup and text-only "
                f"readers, not {gate!r} and {kind!r}."
            )
        return {
            "clip_pooling": config.get("mm_video_pooling_stride") or 1,
            "sampling_stride": config.get("fast_token_temporal_sampling_stride") or 1,
            "temporal_stride": config.get("fast_token_temporal_stride") or 1,
            "spatial_stride": config.get("fast_token_spatial_stride") or 1,
            "least_frames": config.get("min_fast_frames") or 1,
            "every": config["cross_attn_every_n_layers"],
            "first": config.get("cross_attn_min_layer_depth") or 0,
            "last": config.get("cross_attn_max_layer_depth"),
        }

    def decoder_layers(self, num_layers: int) -> tuple[int, ...]:
        """See `VideoConnector.decoder_layers`."""
        last = num_layers if self.options.last is None else min(self.options.last, num_layers)
        return tuple(range(self.options.first, last, self.options.every))

    def memory_size(self, frames: int, grid: Grid) -> int:
        """See `VideoConnector.memory_size`."""
        side = self.options.clip_pooling if frames > 1 else 1
        return frames * (grid.rows // side) * (grid.columns // side)

    def build_reader(self, text_config: Any) -> SlowFastReader:
        """See `VideoConnector.build_reader`."""
        return SlowFastReader(text_config)

    def shape(self, frames: int, grid: Grid, budget: int | None) -> ClipShape:
        """See `VideoConnector.shape`.

        Raises:
            FoveateError: No squares are left.
        """
        options = self.options
        side = options.spatial_stride * (options.clip_pooling if frames > 1 else 1)
        shape = ClipShape(self._fast_frames(frames), grid.rows // side, grid.columns // side)
        if not shape.size:
            raise FoveateError(
                f"the connector slow_fast averages squares of {side} x {side} patches, and these frames have "
                f"{grid.rows} x {grid.columns}."
            )
        return shape

    def _sampled(self, frames: int) -> list[int]:
        """Frames that become fast tokens."""
        stride, least = self.options.sampling_stride, self.options.least_frames
        if stride == 1 or frames < least:
            return list(range(frames))
        count = max(frames // stride, least)
        return [min(int(place * (frames / count)), frames - 1) for place in range(count)]

    def _fast_frames(self, frames: int) -> int:
        """Frames of fast tokens."""
        count, stride = len(self._sampled(frames)), self.options.temporal_stride
        if frames == 1 or stride == 1:
            return count
        pooled = count // stride
        return pooled if pooled >= self.options.least_frames else min(count, self.options.least_frames)

    def connect_with_memory(
        self, features: Tensor, grid: Grid, shape: ClipShape, timestamps: Tensor | None, text: Instruction | None
    ) -> tuple[Tensor, Tensor]:
        """See `VideoConnector.connect_with_memory`: fast and slow tokens."""
        options, frames = self.options, len(features)
        slow = self.projector(features).unflatten(1, grid).permute(0, 3, 1, 2)  # (T, d, rows, columns)
        if frames > 1 and options.clip_pooling > 1:
            slow = F.avg_pool2d(slow, options.clip_pooling)
        fast = slow[self._sampled(frames)]
        if shape.frames != len(fast):
            rows, columns = fast.shape[-2:]
            if len(fast) // options.temporal_stride == shape.frames:
                whole = fast[: shape.frames * options.temporal_stride]
                fast = whole.unflatten(0, (shape.frames, -1)).mean(dim=1)
            else:
                volume = F.adaptive_avg_pool3d(fast.transpose(0, 1), (shape.frames, rows, columns))
                fast = volume.transpose(0, 1)
        if options.spatial_stride > 1:
            fast = F.avg_pool2d(fast, options.spatial_stride)
        return fast.permute(0, 2, 3, 1).flatten(0, 2), slow.permute(0, 2, 3, 1).flatten(0, 2)

"""CrossLMM: few pooled tokens of a frame in the sequence, which read all tokens again, as the text does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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
class CrossLMMOptions(ConnectorOptions):
    """Options of `CrossLMM`.

    Args:
        tokens: Tokens of a frame in the sequence, a square number; the paper has 1, 9 and 16.
        every: Every so many decoder layers one reads all tokens; the paper does not say how many.
        first: The first of them.
    """

    tokens: int = 9
    every: int = 4
    first: int = 0

    def __post_init__(self) -> None:
        whole_number("tokens", self.tokens)
        whole_number("every", self.every)
        whole_number("first", self.first, least=0)
        if math.isqrt(self.tokens) ** 2 != self.tokens:
            raise FoveateError(f"tokens must be a square number, not {self.tokens}.")


class CrossAttentionOfColumns(nn.Module):
    """Attention of columns of the sequence to keys and values of the memory, with the heads of the language model.

    Args:
        width: Of the hidden states.
        heads: Of queries.
        head_dim: Their width.
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, heads * head_dim)
        self.out_proj = nn.Linear(heads * head_dim, width)

    def forward(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """What `(B, m, d)` read: `(B, m, d)`."""
        queries = self.q_proj(self.norm(hidden)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.out_proj(attend(queries, key, value, mask))


class CrossLMMReader(MemoryReader):
    """Lets pooled visual tokens (V2V) and text (T2V) attend to all visual tokens, before one decoder layer.

        h_v <- h_v + gamma V2V(LN(h_v), m)        h_t <- h_t + gamma T2V(LN(h_t), m)        m: all tokens, normalized

    Both attentions have queries and outputs of their own, and share keys, values and gamma, which begins at zero.

    Args:
        text_config: Of the language model.
    """

    def __init__(self, text_config: Any) -> None:
        super().__init__()
        heads, width = text_config.num_attention_heads, text_config.hidden_size
        self.kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
        self.head_dim = getattr(text_config, "head_dim", None) or width // heads
        self.norm = nn.LayerNorm(width)
        self.kv_proj = nn.Linear(width, 2 * self.kv_heads * self.head_dim)
        self.visual = CrossAttentionOfColumns(width, heads, self.head_dim)
        self.text = CrossAttentionOfColumns(width, heads, self.head_dim)
        self.gamma = nn.Parameter(torch.zeros(1))

    def reset_parameters(self) -> None:
        """See `MemoryReader.reset_parameters`."""
        init.zeros_(self.gamma)

    def attach(self, layer: nn.Module) -> None:
        """See `MemoryReader.attach`."""
        layer.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A pre-hook of the layer: rows read the memory, and the layer is called without the argument."""
        kwargs = dict(kwargs)
        memory = take_memory(kwargs)
        if memory is None:
            return args, kwargs
        hidden = self(args[0] if args else kwargs["hidden_states"], memory)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """See `MemoryReader.keys_values`."""
        key, value = self.kv_proj(states).unflatten(-1, (2, self.kv_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return key, value

    def flops(self, memory: int, text: int, visual: int, attention: bool = True) -> int:
        """See `MemoryReader.flops`."""
        width, wide = self.kv_proj.in_features, self.text.q_proj.out_features
        rows = text + visual
        total = 2 * memory * width * self.kv_proj.out_features + 4 * rows * width * wide
        return total + (4 * rows * memory * wide if attention else 0)

    def forward(self, hidden: Tensor, memory: VisualMemory) -> Tensor:
        """Add to hidden states `(B, L, d)` what their rows read."""
        key, value = memory.keys_values(self, lambda: self.norm(memory.states))
        result = hidden
        for columns_mask, attention in ((memory.visual, self.visual), (memory.text, self.text)):
            columns, present = packed_columns(columns_mask)
            if not columns.shape[1]:
                continue
            rows = hidden.take_along_dim(columns.unsqueeze(-1), dim=1)
            result = add_rows(result, columns, present, self.gamma * attention(rows, key, value, memory.mask))
        return result


class CrossLMM(VideoConnector[CrossLMMOptions]):
    """Pools every frame to 1, 9 or 16 tokens, and lets these and the text read all tokens in some decoder layers.

        m = MLP(x), all patches of all frames;  tokens = bilinear resize of every frame of m;  `CrossLMMReader`

    CrossLMM: Decoupling Long Video Sequences from LMMs via Dual Cross-Attention Mechanisms (Yan et al., arXiv
    2505.17020), on SigLIP2 with 27 x 27 patches.

    From the paper, known to us from its abstract and its reviews; there is no code. Our choices: the layers, one gamma
    for both attentions, as reviewers read the text, that it begins at zero, keys and values that both share, no
    positions, layer norms, and a resize that is antialiased, so that every patch counts.
    """

    name: ClassVar[str] = "crosslmm"
    title: ClassVar[str] = "CrossLMM: Decoupling Long Video Sequences from LMMs via Dual Cross-Attention Mechanisms"
    paper: ClassVar[str] = "arXiv 2505.17020"
    options_class: ClassVar = CrossLMMOptions

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        self.projector = MLP(vision_hidden_size, text_hidden_size)

    def decoder_layers(self, num_layers: int) -> tuple[int, ...]:
        """See `VideoConnector.decoder_layers`."""
        return tuple(range(self.options.first, num_layers, self.options.every))

    def memory_size(self, frames: int, grid: Grid) -> int:
        """See `VideoConnector.memory_size`."""
        return frames * grid.size

    def build_reader(self, text_config: Any) -> CrossLMMReader:
        """See `VideoConnector.build_reader`."""
        return CrossLMMReader(text_config)

    def shape(self, frames: int, grid: Grid, budget: int | None) -> ClipShape:
        """See `VideoConnector.shape`.

        Raises:
            FoveateError: Frames have fewer rows or columns than tokens.
        """
        side = math.isqrt(self.options.tokens)
        if side > min(grid):
            raise FoveateError(
                f"the connector crosslmm makes {side} x {side} tokens of a frame, and these have {grid.rows} x "
                f"{grid.columns} patches."
            )
        return ClipShape(frames, side, side)

    def connect_with_memory(
        self, features: Tensor, grid: Grid, shape: ClipShape, timestamps: Tensor | None, text: Instruction | None
    ) -> tuple[Tensor, Tensor]:
        """See `VideoConnector.connect_with_memory`."""
        memory = self.projector(features)
        raster = memory.unflatten(1, grid).permute(0, 3, 1, 2)
        pooled = F.interpolate(
            raster.float(), (shape.rows, shape.columns), mode="bilinear", antialias=True, align_corners=False
        )
        return pooled.to(memory.dtype).flatten(2).transpose(1, 2).flatten(0, 1), memory.flatten(0, 1)

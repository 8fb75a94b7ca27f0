"""Vision encoders under comparison, each with its connector, inputs and closed-form cost.

Weights are random: cost does not depend on them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from foveate import compat
from foveate.cost import flops
from foveate.models.vit_uhd import ViTUHDConfig, ViTUHDModel

QWEN2_0_5B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
QWEN2_7B: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
}


@dataclass(frozen=True)
class Geometry:
    """Model sizes; the defaults are those of the released models, tests use smaller ones.

    Args:
        width: Width of ViT-UHD, MoonViT and SigLIP2, all of them SO400M.
        hidden: Width of their MLPs.
        heads: Their attention heads, and Qwen2.5-VL's.
        blocks: Their blocks.
        stages: Blocks (0-based) after which ViT-UHD merges.
        table: Side of the table of positions of ViT-UHD and MoonViT; SigLIP2's has 16 x 16.
        qwen_width: Width of Qwen2.5-VL's encoder.
        qwen_hidden: Width of its gated MLP.
        qwen_blocks: Its blocks.
        qwen_full: Its blocks with full attention; the others attend in windows of 112 px.
        text: Fields of the `Qwen2Config` of the language model.
    """

    width: int = 1152
    hidden: int = 4304
    heads: int = 16
    blocks: int = 27
    stages: tuple[int, ...] = (4, 18)
    table: int = 64
    qwen_width: int = 1280
    qwen_hidden: int = 3420
    qwen_blocks: int = 32
    qwen_full: tuple[int, ...] = (7, 15, 23, 31)
    text: dict[str, Any] = field(default_factory=lambda: dict(QWEN2_0_5B))


class Competitor(ABC):
    """An encoder with its connector.

    Attributes:
        geometry: Its size.
        name: As in the tables.
        unit: Pixels that a side of the image must be a multiple of.
        patch: Side of a patch in pixels.
        encoder: The vision transformer, without what turns its tokens into the language model's.
        connector: What does.
    """

    geometry: Geometry
    name: str
    unit: int
    patch: int
    encoder: PreTrainedModel
    connector: nn.Module

    def side(self, pixels: int) -> int:
        """Round `pixels` to the nearest multiple of the unit: the side of a square image after resizing."""
        return max(self.unit, (2 * pixels + self.unit) // (2 * self.unit) * self.unit)

    def grid(self, pixels: int) -> int:
        """Patches along one side."""
        return self.side(pixels) // self.patch

    def patches(self, pixels: int) -> int:
        """Number of tokens that enter the first block."""
        return self.grid(pixels) ** 2

    def tokens(self, pixels: int) -> int:
        """Number of tokens that the language model reads."""
        return (self.side(pixels) // self.unit) ** 2

    @abstractmethod
    def inputs(self, pixels: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Create the arguments of `encode` for one random image."""

    @abstractmethod
    def encode(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Encode an image into the visual tokens that the connector takes."""

    @abstractmethod
    def flops(self, pixels: int) -> int:
        """FLOPs of `encode` in closed form."""

    @abstractmethod
    def connector_flops(self, pixels: int) -> int:
        """FLOPs of the connector in closed form."""

    @abstractmethod
    def full_attention_flops(self, pixels: int) -> int:
        """Part of `flops` that grows with the square of the number of tokens."""


class PlainTransformer(Competitor):
    """An encoder whose blocks all apply full attention to all patches."""

    def flops(self, pixels: int) -> int:
        """Patch embedding and blocks."""
        geometry, tokens = self.geometry, self.patches(pixels)
        block = flops.block(tokens, [tokens], geometry.width, geometry.hidden)
        return flops.linear(tokens, 3 * self.patch**2, geometry.width) + geometry.blocks * block

    def full_attention_flops(self, pixels: int) -> int:
        """Attention of all blocks."""
        return flops.attention([self.patches(pixels)] * self.geometry.blocks, self.geometry.width)


class ViTUHD(Competitor):
    """LLaVA-UHD v3's encoder: patches of 10 px, merged four to one after each stage; two-layer connector."""

    name = "ViT-UHD"
    patch = 10

    def __init__(self, geometry: Geometry, attention: str) -> None:
        self.geometry = geometry
        config = ViTUHDConfig(
            patch_size=self.patch,
            hidden_size=geometry.width,
            intermediate_size=geometry.hidden,
            num_hidden_layers=geometry.blocks,
            num_attention_heads=geometry.heads,
            merger_layer_index=geometry.stages,
            init_pos_emb_height=geometry.table,
            init_pos_emb_width=geometry.table,
        )
        self.unit = config.unit
        self.encoder = ViTUHDModel._from_config(config, attn_implementation=attention)
        self.connector = _two_layers(geometry.width, geometry.text["hidden_size"])

    def inputs(self, pixels: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Packed patches and the grid, which stays on the CPU where it is read."""
        grid = self.grid(pixels)
        patches = torch.randn(grid * grid, 3, self.patch, self.patch, device=device, dtype=dtype)
        return {"pixel_values": patches, "grid_hws": torch.tensor([[grid, grid]])}

    def encode(self, **inputs: torch.Tensor) -> torch.Tensor:
        """(L', D)."""
        return self.encoder(**inputs).last_hidden_state

    def flops(self, pixels: int) -> int:
        """Patch embedding, resize of the positions, blocks on what the stages leave, and the stages."""
        geometry, tokens = self.geometry, self.patches(pixels)
        grid = self.grid(pixels)
        total = flops.linear(tokens, 3 * self.patch**2, geometry.width)
        if grid != geometry.table:
            total += flops.linear(grid * geometry.table, geometry.table, geometry.width)
            total += flops.linear(grid * grid, geometry.table, geometry.width)
        for index in range(geometry.blocks):
            total += flops.block(tokens, [tokens], geometry.width, geometry.hidden)
            if index in geometry.stages:
                total += flops.content_adaptive_stage(tokens, geometry.width)
                tokens //= 4
        return total

    def full_attention_flops(self, pixels: int) -> int:
        """Attention of all blocks."""
        tokens, lengths = self.patches(pixels), []
        for index in range(self.geometry.blocks):
            lengths.append(tokens)
            tokens //= 4 if index in self.geometry.stages else 1
        return flops.attention(lengths, self.geometry.width)

    def connector_flops(self, pixels: int) -> int:
        """D -> d -> d."""
        text = self.geometry.text["hidden_size"]
        return flops.connector(self.tokens(pixels), self.geometry.width, text, text)


class MoonViT(PlainTransformer):
    """Kimi's native-resolution encoder (`kimi_k25`): patches of 14 px; its connector merges 2 x 2 of them."""

    name = "MoonViT + 2x2 merge"
    patch = 14
    unit = 28

    def __init__(self, geometry: Geometry, attention: str) -> None:
        from transformers import Kimi_K25VisionConfig
        from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25VisionModel

        self.geometry = geometry
        config = Kimi_K25VisionConfig(
            patch_size=self.patch,
            hidden_size=geometry.width,
            intermediate_size=geometry.hidden,
            num_hidden_layers=geometry.blocks,
            num_attention_heads=geometry.heads,
            pos_emb_height=geometry.table,
            pos_emb_width=geometry.table,
        )
        self.encoder = Kimi_K25VisionModel._from_config(config, attn_implementation=attention)
        wide = 4 * geometry.width
        self.connector = nn.Sequential(
            nn.LayerNorm(geometry.width),
            nn.Flatten(1),
            nn.Linear(wide, wide),
            nn.GELU(),
            nn.Linear(wide, geometry.text["hidden_size"]),
        )

    def inputs(self, pixels: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Packed patches and (1, rows, columns)."""
        grid = self.grid(pixels)
        patches = torch.randn(grid * grid, 3, self.patch, self.patch, device=device, dtype=dtype)
        return {"pixel_values": patches, "grid_thw": torch.tensor([[1, grid, grid]], device=device)}

    def encode(self, **inputs: torch.Tensor) -> torch.Tensor:
        """(L / 4, 4, D): windows of 2 x 2, which the connector joins."""
        return self.encoder(**inputs).pooler_output

    def connector_flops(self, pixels: int) -> int:
        """4D -> 4D -> d."""
        wide = 4 * self.geometry.width
        return flops.connector(self.tokens(pixels), wide, wide, self.geometry.text["hidden_size"])


class Qwen25Tower(Competitor):
    """Qwen2.5-VL's encoder: patches of 14 px, window attention in 28 of 32 blocks, 2 x 2 merging at the end."""

    name = "Qwen2.5-VL"
    patch = 14
    unit = 28
    window = 8

    def __init__(self, geometry: Geometry, attention: str) -> None:
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

        self.geometry = geometry
        config = Qwen2_5_VLVisionConfig(
            depth=geometry.qwen_blocks,
            hidden_size=geometry.qwen_width,
            intermediate_size=geometry.qwen_hidden,
            num_heads=geometry.heads,
            out_hidden_size=geometry.text["hidden_size"],
            window_size=self.window * self.patch,
            fullatt_block_indexes=list(geometry.qwen_full),
        )
        self.encoder = Qwen2_5_VisionTransformerPretrainedModel._from_config(config, attn_implementation=attention)
        self.connector = nn.Identity()  # its merger is part of the encoder

    def inputs(self, pixels: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Flat patches, every frame twice as the processor gives them, and (1, rows, columns)."""
        grid = self.grid(pixels)
        patches = torch.randn(grid * grid, 3 * 2 * self.patch**2, device=device, dtype=dtype)
        return {"hidden_states": patches, "grid_thw": torch.tensor([[1, grid, grid]], device=device)}

    def encode(self, **inputs: torch.Tensor) -> torch.Tensor:
        """(L / 4, d)."""
        return self.encoder(**inputs).pooler_output

    def flops(self, pixels: int) -> int:
        """Patch embedding of two frames, blocks with windows and with full attention, merger."""
        geometry, tokens = self.geometry, self.patches(pixels)
        total = flops.linear(tokens, 3 * 2 * self.patch**2, geometry.qwen_width)
        for index in range(geometry.qwen_blocks):
            lengths = [tokens] if index in geometry.qwen_full else self._windows(pixels)
            total += flops.block(tokens, lengths, geometry.qwen_width, geometry.qwen_hidden, gated=True)
        wide = 4 * geometry.qwen_width
        return total + flops.connector(tokens // 4, wide, wide, geometry.text["hidden_size"])

    def _windows(self, pixels: int) -> list[int]:
        """Lengths of the windows; the last of a row or column may be smaller."""
        grid = self.grid(pixels)
        sides = [min(self.window, grid - start) for start in range(0, grid, self.window)]
        return [height * width for height in sides for width in sides]

    def full_attention_flops(self, pixels: int) -> int:
        """Attention of the blocks without windows."""
        return flops.attention([self.patches(pixels)] * len(self.geometry.qwen_full), self.geometry.qwen_width)

    def connector_flops(self, pixels: int) -> int:
        """Return 0, since the merger is counted with the encoder."""
        return 0


class SigLIP2(PlainTransformer):
    """SigLIP2-So400m NaFlex: patches of 16 px without merging; two-layer connector."""

    name = "SigLIP2-So400m"
    patch = 16
    unit = 16
    #: Entries of the table of positions, which is resized to every image.
    positions = 256

    def __init__(self, geometry: Geometry, attention: str) -> None:
        from transformers import Siglip2VisionConfig, Siglip2VisionModel

        self.geometry = geometry
        config = Siglip2VisionConfig(
            patch_size=self.patch,
            hidden_size=geometry.width,
            intermediate_size=geometry.hidden,
            num_hidden_layers=geometry.blocks,
            num_attention_heads=geometry.heads,
            num_patches=self.positions,
            vision_use_head=False,
        )
        self.encoder = Siglip2VisionModel._from_config(config, attn_implementation=attention)
        self.connector = _two_layers(geometry.width, geometry.text["hidden_size"])

    def inputs(self, pixels: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Flat patches (1, L, 768), a mask without padding, and the grid."""
        grid = self.grid(pixels)
        return {
            "pixel_values": torch.randn(1, grid * grid, 3 * self.patch**2, device=device, dtype=dtype),
            "pixel_attention_mask": torch.ones(1, grid * grid, dtype=torch.long, device=device),
            "spatial_shapes": torch.tensor([[grid, grid]]),
        }

    def encode(self, **inputs: torch.Tensor) -> torch.Tensor:
        """(L, D)."""
        return self.encoder(**inputs).last_hidden_state[0]

    def flops(self, pixels: int) -> int:
        """Patch embedding, positions and blocks."""
        resizing = flops.linear(self.patches(pixels), self.positions, self.geometry.width)
        return super().flops(pixels) + resizing * compat.SIGLIP2_RESIZES_BY_PRODUCT

    def connector_flops(self, pixels: int) -> int:
        """D -> d -> d."""
        text = self.geometry.text["hidden_size"]
        return flops.connector(self.tokens(pixels), self.geometry.width, text, text)


COMPETITORS: dict[str, Callable[[Geometry, str], Competitor]] = {
    "vit-uhd": ViTUHD,
    "moonvit": MoonViT,
    "qwen2.5-vl": Qwen25Tower,
    "siglip2": SigLIP2,
}
"""Every competitor by its name on the command line."""


def language_model(geometry: Geometry, attention: str) -> Any:
    """Build a Qwen2 of the geometry's size with random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM._from_config(Qwen2Config(**geometry.text), attn_implementation=attention)


def _two_layers(width: int, text_width: int) -> nn.Sequential:
    """The connector of LLaVA on packed tokens (L, D)."""
    return nn.Sequential(nn.Linear(width, text_width), nn.GELU(), nn.Linear(text_width, text_width))

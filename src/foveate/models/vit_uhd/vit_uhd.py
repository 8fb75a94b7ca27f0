"""ViT-UHD: a native-resolution vision transformer with progressive visual compression.

LLaVA-UHD v3 (arXiv 2511.21150): refined patches give more and finer tokens, and stages of windowed token
compression after chosen blocks merge every 2 x 2 of them, so that most blocks run on a fraction of the
sequence. Module names are those of the released checkpoints, which therefore load as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from foveate.core.errors import FoveateError
from foveate.models.vit_uhd.attention import Segments, packed_attention, window_order
from foveate.models.vit_uhd.compression import ContentAdaptivePooling, build_stage
from foveate.models.vit_uhd.configuration import ViTUHDConfig
from foveate.models.vit_uhd.early_compression import EarlyCompressor
from foveate.models.vit_uhd.layout import Layout
from foveate.models.vit_uhd.positions import InterpolatedPositions, WindowPositions
from foveate.models.vit_uhd.rotary import packed_rotation, rotate


@dataclass
class ViTUHDOutput(ModelOutput):
    """What a [`ViTUHDModel`] returns.

    Args:
        last_hidden_state: (L', D) tokens of all images after the last stage and the final norm, packed in the
            order of the input.
        grid_hws: (n, 2) rows and columns of each image in `last_hidden_state`.
        hidden_states: With `output_hidden_states=True`: the embedded patches, then the output of every block
            (after its stage where it has one), each packed in the order of the input.
    """

    last_hidden_state: torch.Tensor | None = None
    grid_hws: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class PatchEmbedding(nn.Module):
    """Packed patches (L, C, p, p) to tokens (L, D), with absolute positions."""

    def __init__(self, config: ViTUHDConfig) -> None:
        super().__init__()
        self.patch_shape = (config.num_channels, config.patch_size, config.patch_size)
        self.proj = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
            bias=config.patch_bias,
        )
        self.pos_emb = None
        if config.position_embedding != "none":
            self.pos_emb = InterpolatedPositions(
                config.init_pos_emb_height, config.init_pos_emb_width, config.hidden_size, config.position_embedding
            )
        self.window_pos_emb = None
        if config.window_position_embedding:
            self.window_pos_emb = WindowPositions(2**config.num_stages, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor, layout: Layout) -> torch.Tensor:
        """(L, C, p, p) -> (L, D). A patch is as large as the kernel, so the convolution is one matrix product."""
        weight = self.proj.weight.flatten(1)
        x = nn.functional.linear(pixel_values.to(weight.dtype).flatten(1), weight, self.proj.bias)
        for positions in (self.pos_emb, self.window_pos_emb):
            if positions is not None:
                x = positions(x, layout)
        return x


_IN_PLACE = {
    "gelu": torch.ops.aten.gelu_.default,
    "gelu_pytorch_tanh": partial(torch.ops.aten.gelu_.default, approximate="tanh"),
}
"""Activations that can overwrite what they are given."""


class PlainMLP(nn.Module):
    """fc1(act(fc0(x)))."""

    def __init__(self, config: ViTUHDConfig) -> None:
        super().__init__()
        self.fc0 = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.act = ACT2FN[config.hidden_act]
        self.act_name = config.hidden_act
        self.fc1 = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(L, D) -> (L, D)."""
        hidden = self.fc0(x)
        if self.act_name in _IN_PLACE and not torch.is_grad_enabled():
            # The widest tensor of the block: a second one would cost memory, and on a CPU the time to map it.
            return self.fc1(_IN_PLACE[self.act_name](hidden))
        return self.fc1(self.act(hidden))


class GatedMLP(PlainMLP):
    """fc1(act(gate(x)) * fc0(x))."""

    def __init__(self, config: ViTUHDConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(L, D) -> (L, D)."""
        return self.fc1(self.act(self.gate(x)) * self.fc0(x))


def build_norm(config: ViTUHDConfig) -> nn.Module:
    """The norm a configuration names, over the width D."""
    norm = nn.LayerNorm if config.norm_type == "layer_norm" else nn.RMSNorm
    return norm(config.hidden_size, eps=config.layer_norm_eps)


class ViTUHDBlock(GradientCheckpointingLayer):
    """A pre-norm transformer block, with a stage after it where the configuration puts one."""

    def __init__(self, config: ViTUHDConfig, index: int) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False

        self.norm0 = build_norm(config)
        self.norm1 = build_norm(config)
        self.wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.mlp = GatedMLP(config) if config.mlp_type == "gated" else PlainMLP(config)
        self.merger = None
        stages = list(config.merger_layer_index or ())
        if index in stages:
            self.merger = build_stage(config, config.stage_methods[stages.index(index)])

    def forward(
        self,
        x: torch.Tensor,
        segments: Segments,
        rotation: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention within segments, then the MLP; (L, D) -> (L, D). The stage is the encoder's to call."""
        x = x + self.wo(self._attend(self.norm0(x), segments, rotation))
        return x + self.mlp(self.norm1(x))

    def _attend(self, x: torch.Tensor, segments: Segments, rotation: torch.Tensor | None) -> torch.Tensor:
        heads = self.wqkv(x).unflatten(-1, (3, self.num_heads, -1))
        query_key, value = heads[:, :2], heads[:, 2]
        if rotation is not None:
            query_key = rotate(query_key, rotation, self.config.rope_layout)
        query, key = query_key.unbind(1)
        return packed_attention(self, query, key, value, segments)


class ViTUHDEncoder(nn.Module):
    """The blocks, their stages, and the final norm."""

    def __init__(self, config: ViTUHDConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList([ViTUHDBlock(config, index) for index in range(config.num_hidden_layers)])
        self.final_layernorm = build_norm(config) if config.final_norm else nn.Identity()

    def forward(
        self, x: torch.Tensor, layout: Layout, collect: list[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, Layout]:
        """Packed tokens (L, D) and their layout -> tokens (L', D) and layout after the last stage.

        `collect`, if given, receives the input and the output of every block in the caller's image order.
        """
        if collect is not None:
            collect.append(layout.unpack(x))
        passage = _Passage(self.config, layout, x.device)
        x = passage.enter(x)
        for index, block in enumerate(self.blocks):
            x = block(x, passage.segments(index), passage.rotation)
            if block.merger is not None:
                x = block.merger(layout.windows(passage.leave(x)))  # ty: ignore[not-callable]
                layout = layout.merged()
                passage = _Passage(self.config, layout, x.device)
                x = passage.enter(x)
            if collect is not None:
                collect.append(layout.unpack(passage.leave(x)))
        return self.final_layernorm(passage.leave(x)), layout


class _Passage:
    """What all blocks between two stages share: segments, rotary tables, and the order of the tokens."""

    def __init__(self, config: ViTUHDConfig, layout: Layout, device: torch.device) -> None:
        self.full = Segments.of_images(layout)
        self.full_layers = range(config.num_hidden_layers)
        head_dim = config.hidden_size // config.num_attention_heads
        self.rotation = packed_rotation(layout, head_dim, config.rope_theta, config.rope_layout, device)
        self.order = None
        if config.window_size is not None:
            self.full_layers = config.full_attention_layers
            order, self.windowed = window_order(layout, config.window_size)
            self.order = order.to(device)
            if self.rotation is not None:
                self.rotation = self.rotation[self.order]

    def segments(self, index: int) -> Segments:
        """The segments that block `index` attends within."""
        return self.full if index in self.full_layers else self.windowed

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """Row-major images -> the order in which the blocks run."""
        return x if self.order is None else x.index_select(0, self.order)

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        """The order in which the blocks run -> row-major images."""
        return x if self.order is None else torch.empty_like(x).index_copy(0, self.order, x)


class ViTUHDPreTrainedModel(PreTrainedModel):
    """Weights, initialisation and the attention implementations a ViT-UHD supports."""

    config: ViTUHDConfig
    config_class = ViTUHDConfig
    base_model_prefix = "vit_uhd"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # ty: ignore[invalid-assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["ViTUHDBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # Saved by the authors in every stage, used by none of their code.
    _keys_to_ignore_on_load_unexpected = [r"merger\.zero_init_fc\.weight$"]

    def _initialize_weights(self, module: nn.Module, *_: bool) -> None:
        # For classes outside its own package, transformers skips modules without parameters of their own, and
        # with them the stages. That guards against initialisations that overwrite loaded weights; ours do not.
        super()._initialize_weights(module, False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            init.ones_(module.weight)
            bias = getattr(module, "bias", None)  # RMSNorm has none
            if bias is not None:
                init.zeros_(bias)
        elif isinstance(module, (InterpolatedPositions, WindowPositions)):
            init.normal_(module.weight, std=std)
        elif isinstance(module, (ContentAdaptivePooling, EarlyCompressor)):
            # Children are initialised before their parents, so this has the last word.
            module.reset_parameters()


class ViTUHDModel(ViTUHDPreTrainedModel):
    """The vision transformer of LLaVA-UHD v3.

    Loads folders and Hub ids saved by foveate and those in the released layout (`model_type: moonvit`) by
    `from_pretrained`. `foveate.models.vit_uhd.from_vit` converts other vision transformers to it.
    """

    def __init__(self, config: ViTUHDConfig) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbedding(config)
        self.encoder = ViTUHDEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The patch projection."""
        return self.patch_embed.proj

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        grid_hws: torch.Tensor,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ViTUHDOutput:
        """Encode all images of a batch.

        Args:
            pixel_values: (L, C, p, p) patches of all images one after another, each image row-major.
            grid_hws: (n, 2) patches per column and per row of each image; sums to L.
            output_hidden_states: Also return the tokens after every block.

        Returns:
            [`ViTUHDOutput`], or a tuple with `return_dict=False`.

        Raises:
            FoveateError: if patches have another shape than the model's, the grids do not cover them, or a
                grid cannot be divided by the stages.
        """
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != self.patch_embed.patch_shape:
            raise FoveateError(
                f"pixel_values must be packed patches (L, {', '.join(map(str, self.patch_embed.patch_shape))}), not "
                f"{tuple(pixel_values.shape)}."
            )
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        collected: list[torch.Tensor] | None = [] if output_hidden_states else None

        layout = Layout.from_grids(grid_hws, len(pixel_values), self.config.num_stages)
        x = self.patch_embed(layout.pack(pixel_values), layout)
        x, layout = self.encoder(x, layout, collected)
        return ViTUHDOutput(
            last_hidden_state=layout.unpack(x),
            grid_hws=layout.grid_hws(grid_hws.device),
            hidden_states=None if collected is None else tuple(collected),
        )

    def spread(self, values: torch.Tensor, grid_hws: torch.Tensor, patches: int) -> torch.Tensor:
        """Values of the tokens inside some block as means over the tokens that leave the encoder, image by image.

        Args:
            values: (M, ...) of the tokens of a block, in the order in which the encoder holds them: images of equal
                size stand next to each other, and where there are windows, tokens go window by window.
            grid_hws: (n, 2) patches per column and per row of each image.
            patches: Their sum.

        Returns:
            (N, ...) of the output tokens in the order of the images.
        """
        layout = Layout.from_grids(grid_hws, patches, self.config.num_stages)
        while layout.num_tokens > len(values):
            layout = layout.merged()
        if self.config.window_size is not None:
            order, _ = window_order(layout, self.config.window_size)
            values = values[order.argsort().to(values.device)]
        for _ in range(layout.merges, self.config.num_stages):
            values, layout = layout.windows(values).mean(dim=1), layout.merged()
        return layout.unpack(values)


__all__ = ["ViTUHDModel", "ViTUHDOutput", "ViTUHDPreTrainedModel"]

"""OryxViT: a vision transformer with one table of positions for all sizes of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from foveate.core.tokens import Grid
from foveate.models.encoders.encoder import Encoder, EncoderOutput
from foveate.models.encoders.layers import Block, Positions, flatten
from foveate.models.encoders.oryx_vit.configuration import OryxViTConfig


class OryxViTModel(Encoder):
    """SigLIP whose table of 128 x 128 positions is resized bilinearly to the grid of every image.

        X = patches + resize(positions, rows x columns)
        every block: X = X + attention(LN X), then X = X + MLP(LN X)

    It reads images at their native size and proportions, with as many tokens as patches; the connector `oryx` makes
    fewer of them. There is no [CLS] and no norm after the last block. In contrast to `SiglipVisionModel`, the
    activation is the exact GELU, and not its approximation by tanh. The authors' weights read pixels from -1 to 1: give
    the image processor an `image_mean` and `image_std` of 0.5.

    Oryx MLLM: On-Demand Spatial-Temporal Understanding at Arbitrary Resolution (Liu et al., arXiv 2409.12961). The
    authors run images of several sizes in one sequence, in which every image attends to itself alone. A batch has one
    size here, which gives the same tokens; `models.llava` groups views by size. Images must be multiples of the patch,
    where the authors' code fills them up with zeros.
    """

    config_class = OryxViTConfig
    _no_split_modules = ["Block"]
    title: ClassVar[str] = "Oryx MLLM: On-Demand Spatial-Temporal Understanding at Arbitrary Resolution"
    paper: ClassVar[str] = "arXiv 2409.12961"
    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        r"patch_embed\.proj\.": "patches.",
        r"\.attn\.qkv\.": (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj."),
        r"\.attn\.proj\.": ".attention.out_proj.",
    }
    released_positions: ClassVar[str] = "pos_embed"

    def __init__(self, config: OryxViTConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.patches = nn.Conv2d(config.num_channels, width, config.patch_size, config.patch_size)
        self.positions = Positions(Grid(config.position_side, config.position_side), width)
        self.blocks = nn.ModuleList(
            Block(config, width, config.num_attention_heads, config.intermediate_size, config.layer_norm_eps)
            for _ in range(config.num_hidden_layers)
        )
        self.post_init()

    def encode(self, pixel_values: Tensor, grid: Grid, hidden_states: list[Tensor] | None) -> EncoderOutput:
        """See `Encoder.encode`."""
        x = flatten(self.patches(pixel_values) + self.positions(grid))
        if hidden_states is not None:
            hidden_states.append(x)
        for block in self.blocks:
            x = block(x)
            if hidden_states is not None:
                hidden_states.append(x)
        return EncoderOutput(last_hidden_state=x)

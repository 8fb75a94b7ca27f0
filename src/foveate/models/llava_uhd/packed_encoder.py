"""An encoder of foveate as the vision tower of LLaVA-UHD: packed squares in, packed tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from foveate.core.errors import FoveateError
from foveate.core.grouping import indices_by_value
from foveate.core.tokens import Grid
from foveate.models.encoders import Encoder, EncoderConfig
from foveate.models.vit_uhd.vit_uhd import ViTUHDOutput


class PackedEncoder(nn.Module):
    """An encoder that is called as a ViT-UHD is, with the images of a batch packed one after another.

    Images are cut into squares, whose side is what their sides must be multiples of (`EncoderConfig.multiple`), and put
    together again here. Images of one size and length are one call of the encoder.

    Args:
        config: Of the encoder.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: Encoder = AutoModel.from_config(config)

    def forward(
        self,
        pixel_values: Tensor,
        grid_hws: Tensor,
        output_hidden_states: bool | None = None,
        lengths: Sequence[Grid] | None = None,
        **kwargs: Any,
    ) -> ViTUHDOutput:
        """Encode images of any sizes that the encoder can read.

        Args:
            pixel_values: `(L, C, m, m)`, squares of all images, row-major.
            grid_hws: `(n, 2)` rows and columns of the squares of every image.
            output_hidden_states: Also return the tokens before and after every block.
            lengths: Output grid of every image, for encoders of several lengths; None: `EncoderConfig.output_grid`.
            **kwargs: Not read; `transformers` passes options of language models along.

        Raises:
            FoveateError: The grids do not account for the squares, or the encoder cannot read an image of this size.
        """
        side, grids = self.config.multiple, [Grid(rows, columns) for rows, columns in grid_hws.tolist()]
        counts = [grid.size for grid in grids]
        if pixel_values.shape[-2:] != (side, side) or sum(counts) != len(pixel_values):
            raise FoveateError(
                f"grid_hws describes {sum(counts)} squares of {side} x {side} pixels, but pixel_values has the shape "
                f"{tuple(pixel_values.shape)}."
            )
        squares = pixel_values.split(counts)
        keys = list(zip(grids, lengths or [None] * len(grids), strict=True))
        tokens: dict[int, Tensor] = {}
        levels: dict[int, list[Tensor]] = {}
        outputs: dict[int, Grid] = {}
        for (grid, length), members in indices_by_value(keys).items():
            options = self.config.tower_options()
            output_grid = self.config.output_grid(grid.rows * side, grid.columns * side) if length is None else length
            if length is not None:
                options |= self.config.length_options(length)
            images = torch.stack([squares[place] for place in members])
            images = images.unflatten(1, grid).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
            output: Any = self.encoder(images, output_hidden_states=output_hidden_states, **options)
            outputs |= dict.fromkeys(members, output_grid)
            tokens |= dict(zip(members, output.last_hidden_state, strict=True))
            if output.hidden_states is not None:
                levels |= {
                    place: [level[number] for level in output.hidden_states] for number, place in enumerate(members)
                }
        order = range(len(grids))
        by_level = zip(*(levels[place] for place in order), strict=True) if levels else ()
        return ViTUHDOutput(
            last_hidden_state=torch.cat([tokens[place] for place in order]),
            grid_hws=grid_hws.new_tensor([outputs[place] for place in order]),
            hidden_states=tuple(map(torch.cat, by_level)) or None,
        )

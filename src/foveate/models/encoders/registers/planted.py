"""Outlier tokens by construction, to test what removes them without the weights of a large model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

#: What the first layer of the block's MLP multiplies the normalized marker by, and where it begins to fire.
GAIN, THRESHOLD = 4.0, 4.0


@torch.no_grad()
def plant_outliers(tower: Any, places: Sequence[int], block: int = 0, factor: float = 12.0, seed: int = 0) -> Any:
    """Make tokens at some places of a `Dinov2Model` with random weights outliers.

    Positions of these places get a marker in channel 0. A neuron in the MLP of a block fires where the marker stands
    and writes a vector that is `factor` times as long as the tokens. As in trained models, the outliers begin in one
    block, come from one neuron, stay at the same places of the grid, and all later tokens attend to them. Unlike there,
    the network does nothing with them, and the places do not depend on the image.

    Args:
        tower: A `Dinov2Model`, of a width of 48 or more; it is changed.
        places: Numbers of patches, row-major.
        block: Number of the block.
        factor: Length of the vector as a multiple of the median norm of the tokens before the first block.
        seed: Of the vector.

    Returns:
        The tower.
    """
    generator = torch.Generator().manual_seed(seed)
    config, layer = tower.config, tower.encoder.layer[block]
    side, width = config.image_size, config.hidden_size
    noise = torch.randn(1, config.num_channels, side, side, generator=generator)
    norm = torch.linalg.vector_norm(tower.embeddings(noise.to(tower.device)), dim=-1).median()
    for place in places:
        tower.embeddings.position_embeddings[0, place + 1, 0] = 2 * norm
    layer.mlp.fc1.weight[0] = 0
    layer.mlp.fc1.weight[0, 0] = GAIN
    layer.mlp.fc1.bias[0] = -GAIN * THRESHOLD
    # Where channel 0 is twice as long as the rest, layer norm makes it 2 / sqrt(5) of sqrt(width).
    fired = GAIN * (2 * (width / 5) ** 0.5 - THRESHOLD)
    direction = torch.randn(width, generator=generator).to(norm)
    direction[0] = 0
    layer.mlp.fc2.weight[:, 0] = factor * norm * direction / torch.linalg.vector_norm(direction) / fired
    return tower

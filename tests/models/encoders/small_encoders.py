"""Small configurations of every encoder for the tests, on images of 48 x 48 pixels."""

from __future__ import annotations

from typing import Any

import torch

from foveate.models.encoders import Encoder, encoder_named

#: Side of the images that the small encoders are configured for.
SIDE = 48
#: Fields by encoder.
SMALL: dict[str, dict[str, Any]] = {
    "adventurer": {
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "state_size": 6,
        "head_dim": 16,
        "chunk_size": 16,
    },
    "plain_vit": {
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 40,
    },
    "convllava": {
        "patch_size": 1,
        "depths": [1, 1, 1, 1, 2],
        "hidden_sizes": [4, 4, 8, 8, 24],
        "layer_scale_init_value": 0.5,
    },
    "falcon_vision": {
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "num_registers": 5,
        "max_crops": 4,
    },
    "temporal_pvc": {
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "temporal_layers": 2,
        "layer_scale_init_value": 0.5,
        "zero_init": False,
    },
    "registers": {
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "vision_config": {"model_type": "dinov2", "num_attention_heads": 2, "mlp_ratio": 2},
        "num_registers": 4,
    },
    "sit": {
        "hidden_size": 24,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "stage_blocks": [1, 1, 1, 2],
        "keeping_ratio": 0.8,
    },
    "stvit": {
        "patch_size": 4,
        "depths": [1, 1, 2],
        "hidden_sizes": [8, 16, 24],
        "num_heads": [1, 2, 2],
        "cell_sizes": [4, 2, 1],
        "layer_scale": [False, True, True],
        "layer_scale_init_value": 0.5,
    },
    "oryx_vit": {
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "position_side": 5,
    },
    "lookupvit": {
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "lookup_intermediate_size": 16,
        "compressed_side": 4,
    },
}


def fields_of(name: str, **changes: Any) -> dict[str, Any]:
    """Fields of a small configuration, whose initial weights are large, so that outputs depend on every input."""
    return {"image_size": SIDE, "initializer_range": 0.2, **SMALL[name], **changes}


def small_config(name: str, **changes: Any) -> Any:
    config_class: Any = encoder_named(name).config_class
    return config_class(**fields_of(name, **changes))


def small_encoder(name: str, **changes: Any) -> Encoder:
    """An encoder with the same weights every time, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return encoder_named(name)(small_config(name, **changes)).eval()


def images(count: int = 2, side: int = SIDE) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))

"""The encoder of PVC from the InternViT of an InternVL model of `transformers`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.encoders.temporal_pvc.configuration import TemporalPVCConfig
from foveate.models.encoders.temporal_pvc.modeling import TemporalPVCModel

#: Parts of a block of InternViT in `transformers`, and their names here.
_PARTS = {
    "layernorm_before": "norm1",
    "attention.q_proj": "attention.q_proj",
    "attention.k_proj": "attention.k_proj",
    "attention.v_proj": "attention.v_proj",
    "attention.projection_layer": "attention.out_proj",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@torch.no_grad()
def with_temporal_blocks(tower: Any, temporal_layers: int = 12) -> TemporalPVCModel:
    """An encoder of PVC with the weights of an InternViT, whose outputs it has until it is trained.

    Args:
        tower: An `InternVLVisionModel` with layer norms, such as that of InternVL2-8B (InternViT-300M).
        temporal_layers: Last blocks that attend over frames.

    Raises:
        FoveateError: The tower is of another kind.
    """
    theirs = tower.config
    plain = theirs.model_type == "internvl_vision" and theirs.norm_type == "layer_norm" and not theirs.use_qk_norm
    if not plain or not theirs.attention_bias or not theirs.use_mean_pooling:
        raise FoveateError(
            "an encoder of PVC is made of an InternViT with layer norms, biases and no norm of queries and keys, such "
            f"as that of InternVL2-8B, not of this {theirs.model_type}."
        )
    config = TemporalPVCConfig(
        image_size=theirs.image_size[0],
        patch_size=theirs.patch_size[0],
        hidden_size=theirs.hidden_size,
        num_hidden_layers=theirs.num_hidden_layers,
        num_attention_heads=theirs.num_attention_heads,
        intermediate_size=theirs.intermediate_size,
        temporal_layers=temporal_layers,
        layer_norm_eps=theirs.layer_norm_eps,
    )
    model = TemporalPVCModel(config)
    source, state = tower.state_dict(), model.state_dict()
    positions = source["embeddings.position_embeddings"]
    side = config.image_size // config.patch_size
    loaded: dict[str, Tensor] = {
        "cls_token.weight": source["embeddings.cls_token"] + positions[:, :1],
        "positions.weight": positions[:, 1:].mT.unflatten(-1, (side, side)),
        "patches.weight": source["embeddings.patch_embeddings.projection.weight"],
        "patches.bias": source["embeddings.patch_embeddings.projection.bias"],
    }
    for number in range(config.num_hidden_layers):
        temporal = number >= config.num_hidden_layers - temporal_layers
        for part, ours in _PARTS.items():
            name = f"blocks.{number}.{ours}" + (".norm" if temporal and ours in ("norm1", "norm2") else "")
            for kind in ("weight", "bias"):
                loaded[f"{name}.{kind}"] = source[f"encoder.layer.{number}.{part}.{kind}"]
        for place in (1, 2):
            loaded[f"blocks.{number}.scale{place}.weight"] = source[f"encoder.layer.{number}.lambda_{place}"]
    model.load_state_dict(state | loaded)
    return model.to(tower.device, tower.dtype)

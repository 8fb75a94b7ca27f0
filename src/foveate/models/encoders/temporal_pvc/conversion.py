"""The encoder of PVC from a trained vision transformer of `transformers`: InternViT or SigLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.models.encoders.temporal_pvc.configuration import TemporalPVCConfig
from foveate.models.encoders.temporal_pvc.modeling import TemporalPVCModel

#: Fields of the configuration that InternViT and SigLIP name alike.
_SHARED = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps", "hidden_act",
)  # fmt: skip
#: Fields of the configuration of an encoder that those of the vision transformer decide.
MADE_OF = ("image_size", "patch_size", *_SHARED, "cls_token", "final_norm")
#: Parts of a block in `transformers`, and their names here.
_INTERN_PARTS = {
    "layernorm_before": "norm1",
    "attention.q_proj": "attention.q_proj",
    "attention.k_proj": "attention.k_proj",
    "attention.v_proj": "attention.v_proj",
    "attention.projection_layer": "attention.out_proj",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_SIGLIP_PARTS = {
    "layer_norm1": "norm1",
    **{f"self_attn.{name}": f"attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@torch.no_grad()
def with_temporal_blocks(tower: Any, temporal_layers: int = 12) -> TemporalPVCModel:
    """An encoder of PVC with the weights of a vision transformer, whose outputs it has until it is trained.

    Args:
        tower: An `InternVLVisionModel` with layer norms, such as that of InternVL2-8B (InternViT-300M), or a
            `SiglipVisionModel`.
        temporal_layers: Last blocks that attend over frames.

    Raises:
        FoveateError: The tower is of another kind.
    """
    kind = tower.config.model_type
    if kind == "siglip_vision_model":
        config, loaded, layers, parts = _of_siglip(tower, temporal_layers)
    elif kind == "internvl_vision" and _is_plain(tower.config):
        config, loaded, layers, parts = _of_internvit(tower, temporal_layers)
    else:
        raise FoveateError(
            "an encoder of PVC is made of a SigLIP, or of an InternViT with layer norms, biases and no norm of queries "
            f"and keys, such as that of InternVL2-8B, not of this {kind}."
        )
    model = TemporalPVCModel(config)
    source, state = tower.state_dict(), model.state_dict()
    for number in range(config.num_hidden_layers):
        temporal = number >= config.num_hidden_layers - temporal_layers
        for part, ours in parts.items():
            name = f"blocks.{number}.{ours}" + (".norm" if temporal and ours in ("norm1", "norm2") else "")
            for values in ("weight", "bias"):
                loaded[f"{name}.{values}"] = source[f"{layers}.{number}.{part}.{values}"]
        for place in (1, 2):
            factors = source.get(f"{layers}.{number}.lambda_{place}")
            loaded[f"blocks.{number}.scale{place}.weight"] = (
                torch.ones(config.hidden_size) if factors is None else factors
            )
    model.load_state_dict(state | loaded)
    return model.to(tower.device, tower.dtype)


def _is_plain(config: Any) -> bool:
    layer_norms = config.norm_type == "layer_norm" and not config.use_qk_norm
    return layer_norms and config.attention_bias and config.use_mean_pooling


def _shared(config: Any, temporal_layers: int) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _SHARED} | {"temporal_layers": temporal_layers}


_Converted = tuple[TemporalPVCConfig, dict[str, Tensor], str, dict[str, str]]


def _of_internvit(tower: Any, temporal_layers: int) -> _Converted:
    """Configuration, weights outside of the blocks, and the names of blocks and of their parts."""
    sizes = {"image_size": tower.config.image_size[0], "patch_size": tower.config.patch_size[0]}
    config, source = TemporalPVCConfig(**sizes, **_shared(tower.config, temporal_layers)), tower.state_dict()
    positions = source["embeddings.position_embeddings"]
    loaded = {
        "cls_token.weight": source["embeddings.cls_token"] + positions[:, :1],
        "positions.weight": _as_map(positions[:, 1:], config),
        "patches.weight": source["embeddings.patch_embeddings.projection.weight"],
        "patches.bias": source["embeddings.patch_embeddings.projection.bias"],
    }
    return config, loaded, "encoder.layer", _INTERN_PARTS


def _of_siglip(tower: Any, temporal_layers: int) -> _Converted:
    """See `_of_internvit`."""
    sizes = {"image_size": tower.config.image_size, "patch_size": tower.config.patch_size}
    config = TemporalPVCConfig(**sizes, **_shared(tower.config, temporal_layers), cls_token=False, final_norm=True)
    source = tower.state_dict()
    loaded = {
        "positions.weight": _as_map(source["embeddings.position_embedding.weight"][None], config),
        "patches.weight": source["embeddings.patch_embedding.weight"],
        "patches.bias": source["embeddings.patch_embedding.bias"],
        "norm.weight": source["post_layernorm.weight"],
        "norm.bias": source["post_layernorm.bias"],
    }
    return config, loaded, "encoder.layers", _SIGLIP_PARTS


def _as_map(positions: Tensor, config: TemporalPVCConfig) -> Tensor:
    """A table `(1, D, rows, columns)` of positions `(1, rows columns, D)`."""
    side = config.image_size // config.patch_size
    return positions.mT.unflatten(-1, (side, side))

"""MoonViT."""

from __future__ import annotations

from transformers import PreTrainedConfig

from foveate.models.vit_uhd.sources.native import read_native
from foveate.models.vit_uhd.sources.tower import SourceSpec, Tensors, read_blocks, side_of, theta_of

_KIMI_TIME = r"patch_embed\.pos_emb\.time"


def read_moonvit(config: PreTrainedConfig, source: Tensors) -> SourceSpec:
    """MoonViT as the vision tower of Kimi K2.5, for single images.

    Its time embedding is zero for an image. `transformers` keeps the rotary pairs as two halves; checkpoints in
    the original layout have them next to each other, and our names.
    """
    fields = {
        "patch_size": side_of(config.patch_size),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": config.hidden_act,
        "init_pos_emb_height": config.pos_emb_height,
        "init_pos_emb_width": config.pos_emb_width,
        "position_embedding": "bicubic",
        "rope_theta": theta_of(config),
        "layer_norm_eps": 1e-5,
    }
    if "encoder.blocks.0.wqkv.weight" in source:
        rotary = "interleaved"
        weights = read_native(source, dropped=_KIMI_TIME)
    else:
        rotary = "half-interleaved"
        weights = read_blocks(
            source,
            "layers",
            config.num_hidden_layers,
            {
                "norm0": "norm1",
                "norm1": "norm2",
                "wqkv": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
                "wo": "attn.proj",
                "mlp.fc0": "mlp.fc1",
                "mlp.fc1": "mlp.fc2",
            },
        )
        weights["patch_embed.pos_emb.weight"] = source.take("patch_embed.pos_emb.position_embeddings")
        for ours, theirs in (("patch_embed.proj", "patch_embed.proj"), ("encoder.final_layernorm", "final_layernorm")):
            weights |= {f"{ours}.{part}": tensor for part, tensor in source.take_layer(theirs).items()}
    source.finish(_KIMI_TIME)
    return SourceSpec("MoonViT", fields, weights, rotary)

"""SigLIP2."""

from __future__ import annotations

from transformers import PreTrainedConfig

from foveate.models.vit_uhd.sources.tower import SourceSpec, Tensors, read_blocks, side_of


def read_siglip2(config: PreTrainedConfig, source: Tensors) -> SourceSpec:
    """SigLIP2 NaFlex: a linear layer over pixels (row, column, channel), absolute positions only.

    Its attention pooling head, which makes one vector of an image, is left out.
    """
    patch_size, side = side_of(config.patch_size), int(config.num_patches**0.5)
    fields = {
        "patch_size": patch_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_act": config.hidden_act,
        "init_pos_emb_height": side,
        "init_pos_emb_width": side,
        "position_embedding": "bilinear-antialias",
        "rope_layout": "none",
        "layer_norm_eps": config.layer_norm_eps,
        "attention_dropout": config.attention_dropout,
    }
    weights = read_blocks(
        source,
        "encoder.layers",
        config.num_hidden_layers,
        {
            "norm0": "layer_norm1",
            "norm1": "layer_norm2",
            "wqkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "wo": "self_attn.out_proj",
            "mlp.fc0": "mlp.fc1",
            "mlp.fc1": "mlp.fc2",
        },
    )
    kernel = source.take("embeddings.patch_embedding.weight").unflatten(1, (patch_size, patch_size, -1))
    weights["patch_embed.proj.weight"] = kernel.permute(0, 3, 1, 2).contiguous()
    weights["patch_embed.proj.bias"] = source.take("embeddings.patch_embedding.bias")
    positions = source.take("embeddings.position_embedding.weight")
    weights["patch_embed.pos_emb.weight"] = positions.unflatten(0, (side, side))
    final = source.take_layer("post_layernorm")
    weights |= {f"encoder.final_layernorm.{part}": tensor for part, tensor in final.items()}
    source.finish(r"head\.")
    return SourceSpec("SigLIP2 NaFlex", fields, weights, "none")

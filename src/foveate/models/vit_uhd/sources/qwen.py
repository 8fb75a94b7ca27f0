"""The towers of Qwen2-VL and Qwen2.5-VL."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from foveate.models.vit_uhd.sources.tower import SourceSpec, Tensors, read_blocks, side_of, theta_of

# Normalisation of Qwen2-VL and Qwen2.5-VL, which is CLIP's.
_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


def _read_qwen(source: Tensors, config: PreTrainedConfig, width: int, mlp: dict[str, str]) -> Any:
    """What the two Qwen towers share: (fields, weights, norm of the patch merger).

    A still image is fed to them as two equal frames, so the sum of the two slices of their patch kernel is its
    exact counterpart. They end without a norm: theirs is the first layer of the patch merger, which is not used.
    """
    fields = {
        "patch_size": side_of(config.patch_size),
        "hidden_size": width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "hidden_act": config.hidden_act,
        "position_embedding": "none",
        "rope_theta": theta_of(config),
        "layer_norm_eps": 1e-6,
        "final_norm": False,
        "patch_bias": False,
    }
    names = {"norm0": "norm1", "norm1": "norm2", "wqkv": "attn.qkv", "wo": "attn.proj", **mlp}
    weights = read_blocks(source, "blocks", config.depth, names)
    kernel = source.take("patch_embed.proj.weight")
    weights["patch_embed.proj.weight"] = kernel.sum(2)
    merger_norm = source.take_layer("merger.ln_q")
    source.finish(r"merger\.mlp\.")
    return fields, weights, merger_norm


def read_qwen2_vl(config: PreTrainedConfig, source: Tensors) -> SourceSpec:
    """Qwen2-VL's tower."""
    fields, weights, norm = _read_qwen(source, config, config.embed_dim, {"mlp.fc0": "mlp.fc1", "mlp.fc1": "mlp.fc2"})
    fields["intermediate_size"] = int(config.embed_dim * config.mlp_ratio)
    return SourceSpec("Qwen2-VL", fields, weights, "half", norm, **_CLIP)


def read_qwen2_5_vl(config: PreTrainedConfig, source: Tensors) -> SourceSpec:
    """Qwen2.5-VL's tower: RMS norms, gated MLPs, window attention in most blocks.

    Windows keep their side in tokens when the patch changes: that is the neighbourhood, in positions and in
    keys, that the weights were trained with.
    """
    fields, weights, norm = _read_qwen(
        source,
        config,
        config.hidden_size,
        {"mlp.gate": "mlp.gate_proj", "mlp.fc0": "mlp.up_proj", "mlp.fc1": "mlp.down_proj"},
    )
    merge = config.spatial_merge_size
    fields |= {
        "intermediate_size": config.intermediate_size,
        "norm_type": "rms_norm",
        "mlp_type": "gated",
        "window_size": config.window_size // merge // fields["patch_size"] * merge,
        "full_attention_layers": list(config.fullatt_block_indexes),
    }
    return SourceSpec("Qwen2.5-VL", fields, weights, "half", norm, **_CLIP)

"""Small random configurations of LLaVA-UHD."""

from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from foveate.models.vit_uhd import ViTUHDConfig

FAMILIES = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}

# A large spread of initial weights, so that small random models have opinions: answers depend on every input.
SPREAD = 0.3

TEXT_FIELDS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 260,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 256,
    "initializer_range": SPREAD,
}


def small_text_config(family: str, **fields) -> PreTrainedConfig:
    chosen = TEXT_FIELDS | fields
    if family == "qwen2":
        chosen.pop("head_dim")
    return FAMILIES[family](**chosen)


def small_vision_config(**fields) -> ViTUHDConfig:
    defaults = {
        "patch_size": 4,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "merger_layer_index": [0, 1],
        "init_pos_emb_height": 4,
        "init_pos_emb_width": 4,
        "initializer_range": SPREAD,
    }
    return ViTUHDConfig(**(defaults | fields))

"""Language models between whose layers the sequence can be pruned."""

from __future__ import annotations

#: `config.model_type` of the text models with the structure that this needs: rotary positions computed once, a mask and
#: a cache, and attention in every layer.
TEXT_TYPES = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4v_text",
    "llama",
    "ministral3",
    "mistral",
    "qwen2",
    "qwen2_vl_text",
    "qwen2_5_vl_text",
    "qwen3",
    "qwen3_vl_text",
)

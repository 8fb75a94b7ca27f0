"""Small models whose language models have experts, by the names of their families' specimens."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import (
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from tests.families.zoo import zoo

#: Weight of the loss that balances experts: large, so that it shows.
COEFFICIENT = 0.5
_EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "router_aux_loss_coef": COEFFICIENT}
_MADE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "glm-4v": (
        Glm4vMoeForConditionalGeneration,
        Glm4vMoeConfig,
        {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1},
    ),
    "qwen3-vl": (Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeConfig, {"num_experts": 4}),
    "qwen3.5": (
        Qwen3_5MoeForConditionalGeneration,
        Qwen3_5MoeConfig,
        {"num_experts": 4, "shared_expert_intermediate_size": 16},
    ),
}
NAMES = sorted(_MADE)
#: What asks a model for what its routers said.
ASKING = {"output_router_logits": True}


@cache
def model_with_experts(name: str) -> Any:
    """A model of random weights, built as the specimen of the same name; prompts are that one's."""
    small = zoo()[name].model().config
    cls, config, experts = _MADE[name]
    text, vision = small.text_config.to_dict(), small.vision_config.to_dict()
    for part in (text, vision):
        part.pop("model_type")
    ids = {k: v for k, v in small.to_dict().items() if k.endswith("_token_id") and v is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(config(text_config=text | _EXPERTS | experts, vision_config=vision, **ids)).eval()

"""Sizes of a draft, taken from the model that it drafts for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from transformers import LlamaConfig

from foveate.core.errors import FoveateError


@dataclass(frozen=True)
class DraftConfig:
    """Sizes that every draft has, those of the model it is for.

    Args:
        hidden_size: d, of the model's features.
        vocab_size: V, of its output layer.
        num_attention_heads: Of the draft's layer; they divide d.
        intermediate_size: Of the layer's MLP.
        rms_norm_eps: Of its norms.
        rope_theta: Of its rotary positions.
        seed: Of everything that is drawn.
    """

    hidden_size: int
    vocab_size: int
    num_attention_heads: int
    intermediate_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise FoveateError(f"{field.name} of a draft must be a whole number from 0 on, not {value!r}.")
        heads = self.num_attention_heads
        if heads < 1 or self.hidden_size % heads or self.hidden_size // heads % 2:
            raise FoveateError(f"{heads} heads cannot share {self.hidden_size} channels in even parts.")

    @classmethod
    def of(cls, model: Any, **chosen: Any) -> Any:
        """The configuration for a model, with some fields chosen."""
        text = model.config.get_text_config()
        width, heads = text.hidden_size, text.num_attention_heads
        head = model.get_output_embeddings()
        if head is None or head.weight.shape[1] != width:
            raise FoveateError(
                f"a draft needs an output layer on features of {width}; {type(model).__name__} has none."
            )
        while width % heads or width // heads % 2:
            heads -= 1
            if not heads:
                raise FoveateError(f"features of {width} cannot be divided among heads.")
        intermediate = getattr(text, "intermediate_size", None)
        intermediate = intermediate if isinstance(intermediate, int) else 4 * width
        return cls(**{"hidden_size": width, "vocab_size": len(head.weight), "num_attention_heads": heads,
                      "intermediate_size": intermediate, **chosen})  # fmt: skip

    def layer(self) -> LlamaConfig:
        """Of the draft's decoder layer."""
        return LlamaConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            num_hidden_layers=1,
            rms_norm_eps=self.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            attn_implementation="sdpa",  # ty: ignore[unknown-argument]
        )

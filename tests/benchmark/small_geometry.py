"""Sizes at which all encoders and the language model run in a moment."""

from foveate.benchmark.competitors import Geometry

SMALL = Geometry(
    width=32,
    hidden=48,
    heads=2,
    blocks=4,
    stages=(0, 2),
    table=8,
    qwen_width=32,
    qwen_hidden=40,
    qwen_blocks=4,
    qwen_full=(1, 3),
    text={
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
)

"""A small Oryx in the authors' layout, with its tokenizer, images and prompts, as formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.models.connectors.released_tokenpacker import wave
from tests.models.encoders.released_oryx_vit import FIELDS
from tests.models.encoders.released_oryx_vit import weights as tower_weights

WIDTH, HIDDEN, LAYERS, VOCABULARY = 16, 24, 2, 264
#: Fields of the vision tower. The overview of an image has the area of 32 x 32 pixels.
VISION: dict[str, Any] = {**FIELDS, "image_size": 32}
#: Height and width of the images.
SIZES = ((50, 90), (48, 64), (33, 121))
QUESTION = "What?"
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 256,
    "tie_word_embeddings": False,
}
#: What the authors call the language models of their releases.
MODEL_TYPES = ("oryx_qwen", "oryx_llama")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the special tokens of Qwen: 259 tokens, fewer than the rows of the model."""
    # The alphabet is sorted by the characters that stand for bytes.
    alphabet = {char: number for number, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=SPECIAL[0], eos_token=SPECIAL[2])


def prompt_parts() -> tuple[str, str]:
    """The prompt before and after the image, with one new line after it."""
    before = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    return before, f"\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"


def image(case: int) -> Image.Image:
    """An RGB image of `SIZES[case]`."""
    values = wave(40 + case, (*SIZES[case], 3), 127.0).numpy() + 128
    return Image.fromarray(values.astype(np.uint8))


def shapes(model_type: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights under the authors' names, without those of the vision tower."""
    half, biased = WIDTH // 2, model_type == "oryx_qwen"
    named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for part, rows in (("q", WIDTH), ("k", half), ("v", half)):
            named[f"{name}.self_attn.{part}_proj.weight"] = (rows, WIDTH)
            if biased:
                named[f"{name}.self_attn.{part}_proj.bias"] = (rows,)
        named[f"{name}.self_attn.o_proj.weight"] = (WIDTH, WIDTH)
        named[f"{name}.mlp.gate_proj.weight"] = named[f"{name}.mlp.up_proj.weight"] = (HIDDEN, WIDTH)
        named[f"{name}.mlp.down_proj.weight"] = (WIDTH, HIDDEN)
        named[f"{name}.input_layernorm.weight"] = named[f"{name}.post_attention_layernorm.weight"] = (WIDTH,)
    named |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}
    for part in ("query", "key"):
        named[f"model.vision_resampler.vlm_{part}_projector.weight"] = (256, VISION["hidden_size"])
        named[f"model.vision_resampler.vlm_{part}_projector.bias"] = (256,)
    for layer, inputs in ((0, VISION["hidden_size"]), (2, WIDTH)):
        named[f"model.mm_projector.proj.{layer}.weight"] = (WIDTH, inputs)
        named[f"model.mm_projector.proj.{layer}.bias"] = (WIDTH,)
    return named | {f"model.mm_projector.image_{part}": (WIDTH,) for part in ("newline", "begin", "end", "sep")}


def weights(model_type: str) -> dict[str, Tensor]:
    """Weights under the authors' names; those of norms are around 1."""
    named = {
        name: wave(number, shape, 0.3) + float(name.endswith("norm.weight"))
        for number, (name, shape) in enumerate(shapes(model_type).items())
    }
    return named | {f"model.vision_tower.vision_tower.{name}": value for name, value in tower_weights().items()}


def write_released(folder: Path, model_type: str, tower: bool = True, **config: Any) -> None:
    """Write the files of a release; without the tower its weights are left out."""
    state = weights(model_type)
    if not tower:
        state = {name: value for name, value in state.items() if "vision_tower" not in name}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    fields = TEXT | {
        "model_type": model_type,
        "mm_projector_type": "simple_mlp_twoview",
        "mm_resampler_type": "dynamic_compressor",
        "mm_vision_tower": "oryx_vit:/not/here/oryx_vit.pth",
        "mm_hidden_size": VISION["hidden_size"],
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "anyres",
        "rope_theta": 10000.0,
        "vision_config": {"model_type": "oryx_vit", **VISION},
    }
    (folder / "config.json").write_text(json.dumps(fields | config))
    tokenizer().save_pretrained(folder)

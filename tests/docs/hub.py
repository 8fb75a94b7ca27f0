"""A cache of the Hub with small models: ids in pages are loaded as on a user's machine, without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
)

from foveate.models.llava_uhd import byte_tokenizer
from tests import tiny_model
from tests.docs.snippets import ROOT

MEASURED = ROOT / "benchmarks" / "models"
#: Any hash; a cache names its snapshots by commits.
REVISION = "0" * 40


def save_qwen3(folder: Path) -> Path:
    """Qwen3-VL with two DeepStack planes."""
    names = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad"}
    tokenizer = _tokenizer({name: f"<|{token}|>" for name, token in names.items()})
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    vision = {"depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 16}
    vision |= {"out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0, "mrope_interleaved": True}
    text = {**_text(tokenizer), "head_dim": 8, "rope_parameters": rope}
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids))
    model.save_pretrained(folder)
    size = {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
    images = Qwen2VLImageProcessor(patch_size=16, merge_size=2, size=size)
    template = _template("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")
    videos = Qwen3VLVideoProcessor(patch_size=16, size=size)
    Qwen3VLProcessor(images, tokenizer, videos, chat_template=template).save_pretrained(folder)
    return folder


def save_onevision(folder: Path) -> Path:
    """LLaVA-OneVision, whose images become tiles of 4 x 4 patches."""
    tokenizer = _tokenizer({"image": "<image>", "video": "<video>"})
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 3}
    tower = SiglipVisionConfig(**vision, image_size=56, patch_size=14, vision_use_head=False)
    pinpoints = [[56, 56], [56, 112], [112, 56], [112, 112]]
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        vision_config=tower,
        text_config={**_text(tokenizer), "model_type": "qwen2"},
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_2",
    )
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 56, "width": 56}
    images = LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints)
    LlavaOnevisionProcessor(
        images,
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        chat_template=_template("<image>", "<video>"),
    ).save_pretrained(folder)
    return folder


def save_internvl(folder: Path) -> Path:
    """InternVL, whose images become tiles and a thumbnail."""
    return tiny_model.save_internvl(folder)


#: What stands for a model of the Hub: a trained model of the same class, or what makes a random one.
MODELS: dict[str, Path | Callable[[Path], Path]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": MEASURED / "measure-qwen2.5-vl",
    "Qwen/Qwen2.5-VL-7B-Instruct": MEASURED / "measure-qwen2.5-vl",
    "Qwen/Qwen3-VL-8B-Instruct": save_qwen3,
    "llava-hf/llava-1.5-7b-hf": MEASURED / "measure-llava",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": save_onevision,
    "OpenGVLab/InternVL3-8B-hf": save_internvl,
}


def make_cache(cache: Path, made: Path) -> Path:
    """Write the cache: `models--OWNER--NAME/refs/main` and `snapshots/COMMIT/FILE`, as huggingface_hub does."""
    for name, source in MODELS.items():
        folder = source if isinstance(source, Path) else source(_new(made / name.replace("/", "--")))
        entry = cache / f"models--{name.replace('/', '--')}"
        snapshot = _new(entry / "snapshots" / REVISION)
        (_new(entry / "refs") / "main").write_text(REVISION)
        for file in folder.iterdir():
            if file.is_file():
                (snapshot / file.name).symlink_to(file)
    return cache


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _tokenizer(special: dict[str, str]) -> PreTrainedTokenizerFast:
    """The tokenizer of bytes, with further special tokens and their attributes."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special.values())})
    for name, token in special.items():
        for key, value in ((f"{name}_token", token), (f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))):
            setattr(tokenizer, key, value)
        tokenizer.init_kwargs[f"{name}_token"] = token
    return tokenizer


def _text(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    text = tiny_model.text_config().to_dict()
    text.pop("model_type")
    return {**text, "vocab_size": len(tokenizer), "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 2048}  # fmt: skip


def _template(image: str, video: str) -> str:
    """A chat template with turns of `<|im_start|>` and the placeholders of a family."""
    one = f"{{% if part['type'] == 'image' %}}{image}{{% elif part['type'] == 'video' %}}{video}"
    one += "{% else %}{{ part['text'] }}{% endif %}"
    turn = "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}" + one + "{% endfor %}<|im_end|>\n"
    turns = "{% for message in messages %}" + turn + "{% endfor %}"
    return turns + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

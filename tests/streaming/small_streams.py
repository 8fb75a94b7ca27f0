"""Small random models of the families that stream, with their processors, and clips for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
)
from transformers.video_utils import VideoMetadata

from tests.docs.hub import _template, _text, _tokenizer

SPREAD = 0.3
NAMES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llava-onevision")
HEIGHT, WIDTH = 16, 24
_QWEN = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad"}
_SIZE = {"shortest_edge": 8 * 8, "longest_edge": 128 * 128}
_TOWER = {"num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _qwen(kind: str) -> tuple[Any, Any]:
    tokenizer = _tokenizer({name: f"<|{token}|>" for name, token in _QWEN.items()})
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in _QWEN}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    text = {**_text(tokenizer), "head_dim": 8, "rope_parameters": rope, "initializer_range": SPREAD}
    template = _template("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")
    images = Qwen2VLImageProcessor(patch_size=4, merge_size=2, size=_SIZE)
    if kind == "qwen3-vl":
        vision = {**_TOWER, "depth": 3, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1], "initializer_range": SPREAD}
        text["rope_parameters"] = {**rope, "mrope_interleaved": True}
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids))
        videos = Qwen3VLVideoProcessor(patch_size=4, size=_SIZE, cap_pixels_per_frame=False)
        return model, Qwen3VLProcessor(images, tokenizer, videos, chat_template=template)
    videos = Qwen2VLVideoProcessor(patch_size=4, size=_SIZE, cap_pixels_per_frame=False)
    if kind == "qwen2-vl":
        vision = {**_TOWER, "depth": 2, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, "initializer_range": SPREAD}
        config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
        return Qwen2VLForConditionalGeneration(config), Qwen2VLProcessor(
            images, tokenizer, videos, chat_template=template
        )
    vision = {**_TOWER, "depth": 2, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1], "initializer_range": SPREAD, "tokens_per_second": 4}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    return Qwen2_5_VLForConditionalGeneration(config), Qwen2_5_VLProcessor(
        images, tokenizer, videos, chat_template=template
    )


def _onevision() -> tuple[Any, Any]:
    tokenizer = _tokenizer({"image": "<image>", "video": "<video>"})
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 3}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision, image_size=56, patch_size=14, vision_use_head=False),
        text_config={**_text(tokenizer), "model_type": "qwen2", "initializer_range": SPREAD},
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        image_grid_pinpoints=[[56, 56], [56, 112]],
    )
    size = {"height": 56, "width": 56}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[56, 56], [56, 112]]),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_template("<image>", "<video>"),
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


@cache
def small(name: str) -> tuple[Any, Any]:
    """The model of a family, in evaluation mode, and its processor; always the same objects."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make: Callable[[], tuple[Any, Any]] = _onevision if name == "llava-onevision" else lambda: _qwen(name)
        model, processor = make()
    with torch.no_grad():  # trained models never answer with a placeholder
        model.get_output_embeddings().weight[256:] = 0
    return model.eval(), processor


def clip(frames: int, seed: int = 0) -> np.ndarray:
    """Frames (T, H, W, 3) of random colours."""
    return np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def inputs(model: Any, processor: Any, frames: np.ndarray, question: str, fps: float = 1.0) -> dict[str, Tensor]:
    """What the processor makes of the whole clip and a question."""
    content = [{"type": "video"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    metadata = VideoMetadata(total_num_frames=len(frames), fps=fps, frames_indices=list(range(len(frames))))
    return processor(
        text=[prompt], videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )

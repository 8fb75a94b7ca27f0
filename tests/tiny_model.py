"""Random models, small enough to make in a test, saved as a user's folder would hold them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from foveate import (
    LlavaUHDConfig,
    LlavaUHDForConditionalGeneration,
    LlavaUHDImageProcessor,
    LlavaUHDProcessor,
    ViTUHDConfig,
)
from foveate.models.llava_uhd import byte_tokenizer

SPREAD = 0.3  # large initial weights, so that answers depend on every input


def text_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=258,
        pad_token_id=256,
        initializer_range=SPREAD,
    )


def save_llava_uhd(
    folder: Path, methods: tuple[str, ...] = ("content-adaptive", "content-adaptive"), dtype=torch.float32
) -> Path:
    """LLaVA-UHD with a patch of 4 pixels and one stage for each method; images have 64 x 64 pixels at most."""
    torch.manual_seed(0)
    vision = ViTUHDConfig(
        patch_size=4,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        merger_layer_index=list(range(len(methods))),
        merging_method=list(methods),
        init_pos_emb_height=4,
        init_pos_emb_width=4,
        initializer_range=SPREAD,
    )
    model = LlavaUHDForConditionalGeneration(
        LlavaUHDConfig(vision_config=vision, text_config=text_config(), image_token_id=259)
    )
    for block in model.model.vision_tower.encoder.blocks:
        if block.merger is not None and hasattr(block.merger, "weights"):
            torch.nn.init.normal_(block.merger.attn_layer[2].weight)  # stages that prefer some tokens to others
    images = LlavaUHDImageProcessor(patch_size=4, num_stages=len(methods), scale_resolution=64, min_resolution=None)
    model.to(dtype).save_pretrained(folder)
    LlavaUHDProcessor(images, byte_tokenizer()).save_pretrained(folder)
    return folder


def save_llava(folder: Path) -> Path:
    """LLaVA of transformers itself: a CLIP tower that sees 8 x 8 patches, all of which are read."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=text_config(), image_token_index=259)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    LlavaProcessor(
        CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def save_qwen(folder: Path) -> Path:
    """Qwen2.5-VL, which reads clips too: patches of 4 pixels, 2 x 2 of them and two frames are one token."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<video>"]}, replace_extra_special_tokens=False)
    tokenizer.video_token = "<video>"
    tokenizer.init_kwargs["video_token"] = "<video>"
    shared = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"shortest_edge": 64, "longest_edge": 4096}
    part = "{% if part.type == 'text' %}{{ part.text }}{% else %}[<{{ part.type }}>]{% endif %}"
    turn = "{% for part in message.content %}" + part + "{% endfor %}"
    template = "{% for message in messages %}{{ message.role }}: " + turn + ". {% endfor %}"
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**shared, size=pixels),
        tokenizer,
        Qwen2VLVideoProcessor(**shared, size=pixels),
        chat_template=template,
    )
    text = {**text_config().to_dict(), "vocab_size": 270, "model_type": "qwen2_5_vl_text"}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4,
            "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1],
        },
        text_config=text,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = 258
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_internvl(folder: Path) -> Path:
    """InternVL, whose processor cuts images into up to six tiles of 4 x 4 tokens and adds a thumbnail."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    special = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    special["video_token"] = "<video>"
    tokenizer.add_special_tokens({"additional_special_tokens": list(special.values())})
    for name, token in special.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
        tokenizer.init_kwargs[name] = token
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**vision, image_size=32, patch_size=4),
        text_config=Qwen2Config(**{**text_config().to_dict(), "vocab_size": 280, "model_type": "qwen2"}),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
    )
    InternVLForConditionalGeneration(config).save_pretrained(folder)
    images = GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=6)
    one = "{% if part['type'] == 'image' %}<IMG_CONTEXT>{% else %}{{ part['text'] }}{% endif %}"
    turn = "{% for part in message['content'] %}" + one + "{% endfor %}"
    template = "{% for message in messages %}" + turn + "{% endfor %}"
    InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(), image_seq_length=16, chat_template=template
    ).save_pretrained(folder)
    return folder


def save_clip_model(folder: Path) -> Path:
    """CLIP with images of 16 x 16 pixels and text of 64 tokens."""
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=CLIPTextConfig(
            **layers, vocab_size=260, max_position_embeddings=64, bos_token_id=None, eos_token_id=tokenizer.eos_token_id
        ).to_dict(),
        vision_config=CLIPVisionConfig(**layers, image_size=16, patch_size=8).to_dict(),
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))

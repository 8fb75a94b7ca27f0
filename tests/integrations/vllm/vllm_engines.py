"""Random models in folders, engines of vLLM on them, and foveate in process on the same folders."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before vLLM is imported: the engine lives in this process, its cache is small, and it asks nobody.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
)

import foveate
from foveate.families import family_of
from foveate.families.qwen3_vl import Qwen3VL
from foveate.models.llava import FoveateLlavaConfig, FoveateLlavaForConditionalGeneration, FoveateLlavaProcessor
from foveate.models.llava.image_processing import ViewImageProcessor
from foveate.models.llava.layouts import PadLayout
from foveate.models.llava_uhd import byte_tokenizer

SPREAD = 0.2  # large initial weights, so that answers depend on every input
SHARP = 2.5
WRITTEN = 8
#: A prompt is text with `<image>` and `<video>` for each image and clip, the images, and the clips (T, H, W, 3).
Prompt = tuple[str, Sequence[Image.Image], Sequence[np.ndarray]]
#: Frames a second of every clip.
RATE = 2.0


def text_fields() -> dict[str, Any]:
    """A small language model with heads that vLLM's attention for CPUs takes."""
    return {
        "vocab_size": 260,
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": 258,
        "pad_token_id": 256,
        "initializer_range": SPREAD,
    }


def _clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=32,
        patch_size=4,
        initializer_range=SPREAD,
        projection_dim=32,
    )


#: Fields of CLIP's configuration that SigLIP's has too.
_SHARED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "initializer_range",
)


def _saved(folder: Path, model: Any, special: slice) -> None:
    with torch.no_grad():  # trained models never answer with the placeholder of an image
        model.get_output_embeddings().weight[special] = 0
    model.save_pretrained(folder)


def save_llava(folder: Path) -> Path:
    """LLaVA-1.5: a CLIP tower of 4 blocks, of which the third is read, that sees 8 x 8 patches."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=_clip(), text_config=LlamaConfig(**text_fields()), image_token_index=259, image_seq_length=64
    )
    _saved(folder, LlavaForConditionalGeneration(config), slice(259, 260))
    tokenizer = byte_tokenizer()
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    fields = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(images, tokenizer, **fields, image_token=tokenizer.image_token).save_pretrained(folder)
    return folder


def save_connector(folder: Path, connector: str, encoder: str, **options: Any) -> Path:
    """LLaVA with a connector of foveate, on CLIP or SigLIP, which sees 8 x 8 patches of an image padded to a square."""
    torch.manual_seed(0)
    vision: Any = _clip()
    if encoder == "siglip":
        fields = {name: getattr(vision, name) for name in _SHARED}
        vision = SiglipVisionConfig(**fields)
    strategy = "default" if encoder == "clip" else "full"
    named = {"connector_type": connector, "connector_options": options}
    config = FoveateLlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text_fields()),
        image_token_index=259,
        vision_feature_select_strategy=strategy,
        **named,
    )
    _saved(folder, FoveateLlavaForConditionalGeneration(config), slice(259, 260))
    processor = FoveateLlavaProcessor(
        ViewImageProcessor(PadLayout(side=32, patch_size=4)),
        byte_tokenizer(),
        patch_size=4,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(encoder == "clip"),
        **named,
    )
    processor.save_pretrained(folder)
    return folder


def save_llava_next(folder: Path) -> Path:
    """LLaVA-NeXT: the same tower; one thumbnail and two or four tiles."""
    torch.manual_seed(0)
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextConfig(
        vision_config=_clip(),
        text_config=LlamaConfig(**text_fields()),
        image_token_index=259,
        image_grid_pinpoints=pinpoints,
    )
    _saved(folder, LlavaNextForConditionalGeneration(config), slice(259, 260))
    tokenizer = byte_tokenizer()
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints
    )
    fields = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaNextProcessor(images, tokenizer, **fields, image_token=tokenizer.image_token).save_pretrained(folder)
    return folder


def _qwen_tokenizer() -> tuple[Any, dict[str, int]]:
    tokenizer = byte_tokenizer()
    names = {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    names |= {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer.add_special_tokens({"additional_special_tokens": list(names.values())})
    ids = {}
    for name, token in names.items():
        setattr(tokenizer, name, token)
        tokenizer.init_kwargs[name] = token
        ids[f"{name}_id"] = tokenizer.convert_tokens_to_ids(token)
        setattr(tokenizer, f"{name}_id", ids[f"{name}_id"])
    return tokenizer, ids


def _qwen_text(sections: list[int], **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0, **more}
    return {**text_fields(), "vocab_size": 272, "rope_parameters": rope, "tie_word_embeddings": False}


VISION = {
    "depth": 4,
    "hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 96,
    "out_hidden_size": 128,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "initializer_range": SPREAD,
}
PATCHES = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
SIZE = {"size": {"shortest_edge": 256, "longest_edge": 4096}}
CLIP_SIZE = {"size": {"shortest_edge": 256, "longest_edge": 65536}}


def save_qwen25(folder: Path) -> Path:
    """Qwen2.5-VL: windows of 2 x 2 tokens in two of four blocks; images have 8 x 8 tokens at most."""
    torch.manual_seed(0)
    tokenizer, ids = _qwen_tokenizer()
    vision = {**VISION, "window_size": 16, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2}
    config = Qwen2_5_VLConfig(text_config=_qwen_text([4, 6, 6]), vision_config=vision, **ids)
    _saved(folder, Qwen2_5_VLForConditionalGeneration(config), slice(258, None))
    images, clips = Qwen2VLImageProcessor(**PATCHES, **SIZE), Qwen2VLVideoProcessor(**PATCHES, **CLIP_SIZE)
    Qwen2_5_VLProcessor(images, tokenizer, clips).save_pretrained(folder)
    images.save_pretrained(folder)  # vLLM looks for files of their own
    clips.save_pretrained(folder)
    return folder


def save_qwen3(folder: Path) -> Path:
    """Qwen3-VL: two planes of earlier blocks; images have 8 x 8 tokens at most."""
    torch.manual_seed(0)
    tokenizer, ids = _qwen_tokenizer()
    vision = {**VISION, "deepstack_visual_indexes": [0, 2], "num_position_embeddings": 64}
    text = {**_qwen_text([6, 5, 5], mrope_interleaved=True), "head_dim": 32}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                weight.fill_(SHARP)  # or every token would look at all others alike, and images would not matter
    _saved(folder, model, slice(258, None))
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # of both, as in the published ones
    images, clips = (
        Qwen2VLImageProcessor(**PATCHES, **SIZE, **half),
        Qwen3VLVideoProcessor(**PATCHES, **CLIP_SIZE, **half),
    )
    Qwen3VLProcessor(images, tokenizer, clips).save_pretrained(folder)
    images.save_pretrained(folder)
    clips.save_pretrained(folder)
    return folder


SAVE = {"llava": save_llava, "llava-next": save_llava_next, "qwen2.5-vl": save_qwen25, "qwen3-vl": save_qwen3}


def picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """Smooth random colours, so that neighbouring tokens are alike."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@contextmanager
def engine(folder: Path, plan: Any, **arguments: Any) -> Generator[Any]:
    """An engine in this process; its prefills are cut into pieces of 24 tokens and prefixes are cached.

    Args:
        folder: The model.
        plan: An override; None: there is none.
        arguments: Of `LLM`.
    """
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    overrides = {} if plan is None else {"hf_overrides": {"foveate_plan": plan}}
    fields = {
        "dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 24,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "block_size": 32,
        "enforce_eager": True,
        "limit_mm_per_prompt": {"image": 4, "video": 2},
        "seed": 0,
    }
    model = LLM(str(folder), **{**fields, **overrides, **arguments})
    try:
        yield model
    finally:
        model.llm_engine.engine_core.shutdown()
        del model
        cleanup_dist_env_and_memory()
        gc.collect()


def clip(seed: int, frames: int = 4) -> np.ndarray:
    """Smooth random colours that change from frame to frame, (T, 48, 48, 3) uint8.

    Wider than long: after a clip whose last frame has the greatest position, `transformers` counts text on from the
    rows and columns, and vLLM from the frames, which has nothing to do with plans.
    """
    return np.stack([np.asarray(picture(1000 * seed + frame, 48, 48)) for frame in range(frames)])


def metadata(video: np.ndarray) -> dict[str, Any]:
    """What a reader of files would tell of a clip of which every frame is taken."""
    count = len(video)
    return {
        "fps": RATE,
        "duration": count / RATE,
        "total_num_frames": count,
        "frames_indices": list(range(count)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }


def _marked(text: str, tokenizer: Any) -> str:
    """A text with the markers of a model."""
    if hasattr(tokenizer, "vision_start_token"):
        start, end = tokenizer.vision_start_token, tokenizer.vision_end_token
        text = text.replace("<video>", f"{start}{tokenizer.video_token}{end}")
        return text.replace("<image>", f"{start}{tokenizer.image_token}{end}")
    return text.replace("<image>", tokenizer.image_token)


def served(model: Any, prompts: Sequence[Prompt], plan: str | Sequence[str | None] | None = None) -> list[Any]:
    """What an engine answers: `outputs[0].token_ids`, `prompt_token_ids` and `num_cached_tokens` of every prompt.

    Args:
        model: The engine.
        prompts: All of them are answered at once.
        plan: What requests name, one for all or one for each; None: nothing.
    """
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=WRITTEN, ignore_eos=True)
    plans = [plan] * len(prompts) if plan is None or isinstance(plan, str) else plan
    inputs = []
    for (text, images, clips), own in zip(prompts, plans, strict=True):
        one: dict[str, Any] = {"prompt": _marked(text, model.get_tokenizer())}
        data: dict[str, Any] = {}
        if len(images):
            data["image"] = list(images) if isinstance(images, list) else images  # or embeddings of one
        if len(clips):
            data["video"] = clips if isinstance(clips, dict) else [(video, metadata(video)) for video in clips]
        if data:
            one["multi_modal_data"] = data
            if own is not None:
                one["mm_processor_kwargs"] = {"foveate_plan": own}
        inputs.append(one)
    return model.generate(inputs, greedy, use_tqdm=False)


def embedded_clip(folder: Path, video: np.ndarray) -> Any:
    """The embeddings of a clip, as clients give them to vLLM in its place."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = processor.video_processor(videos=[video], do_sample_frames=False, return_tensors="pt")
    grid = inputs["video_grid_thw"]
    with torch.no_grad():
        output = model.get_video_features(inputs["pixel_values_videos"], video_grid_thw=grid)
    return {"video_embeds": output.pooler_output[0], "video_grid_thw": grid}


def embedded(folder: Path, image: Image.Image) -> Any:
    """The embeddings of an image, as clients give them to vLLM in its place."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = processor.image_processor(images=[image], return_tensors="pt")
    with torch.no_grad():
        output = model.get_image_features(**inputs)
    features = output.pooler_output[0]
    if "image_grid_thw" not in inputs:
        return features[None]
    planes = [
        plane if torch.is_tensor(plane) else torch.cat(plane)
        for plane in getattr(output, "deepstack_features", None) or ()
    ]
    return {"image_embeds": torch.cat([features, *planes], dim=1), "image_grid_thw": inputs["image_grid_thw"]}


def tokens(answers: Sequence[Any]) -> list[list[int]]:
    """The tokens of answers."""
    return [list(answer.outputs[0].token_ids) for answer in answers]


def keys(
    model: Any, text: str, data: Mapping[str, Any], names: Any = None, plan: str | None = None
) -> Mapping[str, Any]:
    """The keys of images and clips in the caches of an engine; `names` are those that a client gives."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    processor = MULTIMODAL_REGISTRY.create_processor(model.llm_engine.model_config)
    items = processor.info.parse_mm_data(dict(data))
    arguments = None if plan is None else {"foveate_plan": plan}
    return processor(_marked(text, model.get_tokenizer()), items, names, arguments)["mm_hashes"]


def in_process(folder: Path, plan: str | None, prompts: Sequence[Prompt]) -> list[list[int]]:
    """What foveate answers, prompt by prompt; clips of Qwen3-VL stay whole, as they do in vLLM."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    family = type(family_of(model))
    handle = None if plan is None else foveate.compress(model, plan)
    answers = []
    with pytest.MonkeyPatch.context() as patch:
        if family is Qwen3VL:
            placeholder = family.placeholder
            patch.setattr(
                family,
                "placeholder",
                lambda self, core, kind: placeholder(self, core, kind) if kind == "image" else None,
            )
        for text, images, clips in prompts:
            more: dict[str, Any] = {}
            if clips:
                known = [{k: v for k, v in metadata(c).items() if k != "do_sample_frames"} for c in clips]
                more = {"videos": list(clips), "do_sample_frames": False, "video_metadata": known}
            text = _marked(text, processor.tokenizer)
            inputs = processor(images=list(images) or None, text=[text], return_tensors="pt", **more)
            with torch.no_grad():
                written = model.generate(**inputs, max_new_tokens=WRITTEN, do_sample=False, pad_token_id=256)
            answers.append(written[0, inputs["input_ids"].shape[1] :].tolist())
    if handle is not None:
        handle.restore()
    return answers

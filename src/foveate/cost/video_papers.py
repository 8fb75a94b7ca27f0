"""Published numbers of tokens of video connectors that are trained, see `foveate.cost.papers`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from foveate.cost.clips import clip_cost, clip_tokens
from foveate.cost.cost import Convention
from foveate.cost.models import QWEN2_7B
from foveate.models.video_connectors import video_connector_of_sizes
from foveate.published import TEXT, Claim, spanned

#: SigLIP-so400m/14 at 384 pixels, 27 x 27 patches.
SO400M: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
#: Qwen2-0.5B.
QWEN2_05B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
#: ConvNeXt-L, 18 x 18 tokens of 576 pixels.
CONVNEXT_L: dict[str, Any] = {
    "model_type": "convllava",
    "depths": [3, 3, 27, 3],
    "hidden_sizes": [192, 384, 768, 1536],
}
#: Qwen2-7B as the configuration of a language model.
QWEN2: dict[str, Any] = {**QWEN2_7B, "model_type": "qwen2"}
#: InternLM2-7B, the language model of InternVL2-8B; its layers are those of Llama.
INTERNLM2_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 92553,
}


def video_claims() -> Iterator[Claim]:
    """Yield the claims."""
    yield from _pvc()
    yield from _vqtoken()
    yield from _slow_fast()
    yield Claim("HICom", "arXiv 2503.16036", "32 frames of 384 px", 680,
                clip_tokens(hicom(), 32, 384, 384), "tokens", "27 x 27 patches of SigLIP-so400m/14")  # fmt: skip


def llava_video(connector: str, vision: dict[str, Any], text: dict[str, Any], **options: Any) -> Any:
    """LLaVA for clips with a video connector of foveate."""
    from foveate.models.llava_video import FoveateLlavaVideoConfig

    return FoveateLlavaVideoConfig(
        vision_config=vision,
        text_config=text,
        connector_type=connector,
        connector_options=options,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def slow_fast(frames: int) -> Any:
    """Slow-Fast of Qwen2-7B with 16 frames of fast tokens."""
    return llava_video("slow_fast", CONVNEXT_L, QWEN2, temporal_stride=frames // 16)


def _slow_fast() -> Iterator[Claim]:
    alone = Convention(encoder=False, connector=False)

    def more(text: int) -> float:
        plain = llava_video("average", CONVNEXT_L, QWEN2)
        before = clip_cost(plain, 16, 576, 576, text, alone).total
        return 100 * (clip_cost(slow_fast(128), 128, 576, 576, text, alone).total / before - 1)

    yield Claim("Slow-Fast", "arXiv 2504.01328, abstract", "16 to 128 frames: more FLOPs", 3.0, unit="%",
                convention=f"language model with its readers; Qwen2-7B, {TEXT} tokens of text", open=True,
                **spanned(more))  # fmt: skip


def pvc() -> Any:
    """PVC of InternVL2-8B."""
    return llava_video("temporal_pvc", {"model_type": "temporal_pvc"}, INTERNLM2_7B)


def _pvc() -> Iterator[Claim]:
    images = video_connector_of_sizes("temporal_pvc").image_frames
    for what, frames, published in (("a frame of a clip", 1, 64), ("a tile of an image, 4 equal frames", images, 256)):
        yield Claim("PVC", "arXiv 2412.09613, README", f"448 px, {what}", published,
                    clip_tokens(pvc(), frames, 448, 448), "tokens", "32 x 32 patches of InternViT")  # fmt: skip


def vqtoken(**options: Any) -> Any:
    """VQToken of LLaVA-OneVision-0.5B."""
    return llava_video("vqtoken", SO400M, QWEN2_05B, **options)


def _vqtoken() -> Iterator[Claim]:
    for clusters in (12, 32, 64):
        yield Claim("VQToken", "arXiv 2503.16980", f"32 frames, fixed {clusters} clusters", clusters,
                    clip_tokens(vqtoken(clusters=clusters), 32, 384, 384), "tokens",
                    "27 x 27 patches of SigLIP-so400m/14 a frame")  # fmt: skip


def hicom() -> Any:
    """HICom of Qwen2.5-7B, whose sizes are those of Qwen2-7B."""
    return llava_video("hicom", SO400M, QWEN2)

"""Configurations of released models, stored so that nothing has to be downloaded.

Sizes are those of the `config.json` that the authors released on the Hub.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from foveate.core.errors import FoveateError

_VICUNA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32064,
    "model_type": "llama",
}
_VICUNA_13B = {**_VICUNA_7B, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
               "num_attention_heads": 40}  # fmt: skip
#: Sizes of Qwen2-7B, which Qwen2.5-7B has too.
QWEN2_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
_QWEN25_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
_QWEN3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "patch_size": 14}
_TILES_336 = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_TILES_384 = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]


@dataclass(frozen=True)
class Named:
    """A model whose cost can be computed.

    Args:
        name: As the user gave it.
        config: Its configuration.
        images: Its image processor; None: released settings.
    """

    name: str
    config: Any
    images: Any = None


def named(name: str | os.PathLike[str] | None) -> Named:
    """Return a released model of `RELEASED`, or read the configuration of a folder or Hub id.

    Args:
        name: None is the embedded model.

    Raises:
        FoveateError: there is no such model.
    """
    text = None if name is None else os.fspath(name)
    if text in RELEASED:
        return Named(text, RELEASED[text]())
    close = get_close_matches(text or "", RELEASED, 3)
    if text is not None and "/" not in text and not Path(text).exists():
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise FoveateError(
            f"there is no model {text!r}; {hint}possible are a folder, a Hub id (owner/name) and {', '.join(RELEASED)}."
        )
    from foveate.loading import load_skeleton

    net, processor = load_skeleton(text)
    return Named(text or "embedded", net.config, getattr(processor, "image_processor", None))


def _llava(text: dict[str, Any]) -> Any:
    from transformers import LlavaConfig

    return LlavaConfig(vision_config=_CLIP, text_config=text)


def foveate_llava(connector: str, **options: Any) -> Any:
    """LLaVA-1.5-7B with a connector of foveate."""
    from foveate.models.llava import FoveateLlavaConfig

    return FoveateLlavaConfig(
        vision_config=_CLIP, text_config=_VICUNA_7B, connector_type=connector, connector_options=options
    )


def _llava_next() -> Any:
    from transformers import LlavaNextConfig

    return LlavaNextConfig(vision_config=_CLIP, text_config=_VICUNA_7B, image_grid_pinpoints=_TILES_336)


def _llava_onevision() -> Any:
    from transformers import LlavaOnevisionConfig

    vision = {**_SO400M, "model_type": "siglip_vision_model", "num_hidden_layers": 26, "image_size": 384,
              "vision_use_head": False}  # fmt: skip
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config={**QWEN2_7B, "model_type": "qwen2", "vocab_size": 152000},
        image_grid_pinpoints=_TILES_384,
        vision_aspect_ratio="anyres_max_9",
    )


def _qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig

    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
    return Qwen2VLConfig(vision_config=vision, text_config=QWEN2_7B)


def _qwen25_vl(text: dict[str, Any]) -> Any:
    from transformers import Qwen2_5_VLConfig

    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
              "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
              "out_hidden_size": text["hidden_size"]}  # fmt: skip
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text)


def _qwen3_vl() -> Any:
    from transformers import Qwen3VLConfig

    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
              "out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]}  # fmt: skip
    return Qwen3VLConfig(vision_config=vision, text_config=_QWEN3_8B)


def _internvl3() -> Any:
    from transformers import InternVLConfig

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
              "image_size": [448, 448], "patch_size": [14, 14]}  # fmt: skip
    return InternVLConfig(vision_config=vision, text_config={**QWEN2_7B, "model_type": "qwen2", "vocab_size": 151674})


def _llava_uhd_v3() -> Any:
    from foveate.models.llava_uhd import LlavaUHDConfig
    from foveate.models.vit_uhd import ViTUHDConfig

    return LlavaUHDConfig(vision_config=ViTUHDConfig(), text_config=QWEN2_7B)


def _llava_uhd_v4() -> Any:
    from transformers import MiniCPMV4_6Config

    vision = {**_SO400M, "num_hidden_layers": 27, "image_size": 980}
    return MiniCPMV4_6Config(vision_config=vision, text_config={**_QWEN3_8B, "model_type": "qwen3"}, insert_layer_id=6)


#: Configurations of released models by name.
RELEASED: dict[str, Callable[[], Any]] = {
    "llava-1.5-7b": lambda: _llava(_VICUNA_7B),
    "llava-1.5-13b": lambda: _llava(_VICUNA_13B),
    "llava-next-7b": _llava_next,
    "llava-onevision-7b": _llava_onevision,
    "qwen2-vl-7b": _qwen2_vl,
    "qwen2.5-vl-3b": lambda: _qwen25_vl(_QWEN25_3B),
    "qwen2.5-vl-7b": lambda: _qwen25_vl(QWEN2_7B),
    "qwen3-vl-8b": _qwen3_vl,
    "internvl3-8b": _internvl3,
    "llava-uhd-v3": _llava_uhd_v3,
    "llava-uhd-v4": _llava_uhd_v4,
}

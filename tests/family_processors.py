"""Processors of every family, as a folder of a model holds them, with a tokenizer of six words."""

from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

#: Tokens that one processor or another asks its tokenizer for.
NAMES = (
    "image", "video", "audio", "boi", "eoi", "boa", "eoa", "image_start", "image_end", "vision_start", "vision_end",
    "start_image", "end_image", "context_image", "slice_start", "slice_end", "image_id_start", "image_id_end",
)  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: place for place, word in enumerate(["<unk>", "<pad>", "a", "b", "what", "?"])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {f"{name}_token": f"<{name}>" for name in NAMES}
    ends = {"pad_token": "<pad>", "bos_token": "<pad>", "eos_token": "<pad>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", **ends, extra_special_tokens=special, chat_template="{{ messages }}"
    )


def save_processor(kind: str, folder: Path) -> Path:
    """The processor of a model type, with the settings that transformers gives it."""
    config = CONFIG_MAPPING[kind]
    processor = PROCESSOR_MAPPING[config]
    parts: dict[str, Any] = {}
    for name in processor.get_attributes():
        if name == "tokenizer":
            parts[name] = tokenizer()
        elif name == "feature_extractor":
            parts[name] = transformers.Gemma4AudioFeatureExtractor()
        else:
            mapping = IMAGE_PROCESSOR_MAPPING if name == "image_processor" else VIDEO_PROCESSOR_MAPPING
            made = mapping[config]
            parts[name] = (made["torchvision"] if isinstance(made, dict) else made)()
    if kind == "paligemma":
        parts["image_processor"].image_seq_length = 16
    processor(**parts).save_pretrained(folder)
    return folder

"""The model and processor that a recipe names, and the form in which the trained ones are saved."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from foveate.encoders.configuration import ViTUHDConfig
from foveate.errors import FoveateError
from foveate.llava_uhd.configuration import LlavaUHDConfig
from foveate.llava_uhd.modeling import LlavaUHDForConditionalGeneration
from foveate.llava_uhd.processing import LlavaUHDProcessor
from foveate.llava_uhd.tokenizer import byte_tokenizer
from foveate.training.recipe import ModelChoice, NewModel
from foveate.views.image_processing import LlavaUHDImageProcessor

#: What a recipe may set of the image processor; patch size and stages follow the vision tower.
IMAGE_SETTINGS = (
    "scale_resolution",
    "min_resolution",
    "max_edge",
    "upscale_factor",
    "resample",
    "rescale_factor",
    "image_mean",
    "image_std",
)


def build_model(choice: ModelChoice, seed: int) -> tuple[LlavaUHDForConditionalGeneration, LlavaUHDProcessor]:
    """The model of a recipe in float32, and its processor.

    Raises:
        FoveateError: the pretrained model cannot be loaded, or a field of the new one's configuration is not possible.
    """
    if choice.new is not None:
        return new_model(choice.new, seed)
    pretrained = str(choice.pretrained)
    try:
        model = LlavaUHDForConditionalGeneration.from_pretrained(pretrained, dtype=torch.float32)
        processor = LlavaUHDProcessor.from_pretrained(pretrained)
    except (OSError, ValueError) as error:
        raise FoveateError(f"the model {choice.pretrained!r} cannot be loaded: {error}") from error
    return model, processor


def new_model(new: NewModel, seed: int) -> tuple[LlavaUHDForConditionalGeneration, LlavaUHDProcessor]:
    """A model with random weights that depend on `seed` alone, and its processor.

    Raises:
        FoveateError: a field of a configuration does not exist or has an impossible value.
    """
    tokenizer = byte_tokenizer() if new.tokenizer == "bytes" else _tokenizer(new.tokenizer)
    vision = _configured(ViTUHDConfig, new.vision, "model.new.vision")
    fields = dict(new.text)
    try:
        text_class = type(AutoConfig.for_model(fields.pop("model_type", "llama")))
    except ValueError as error:
        raise FoveateError(f"model.new.text.model_type: {error}") from error
    fields = {"vocab_size": len(tokenizer), **fields}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = _configured(text_class, fields, "model.new.text", **special)
    _refuse_unknown(new.images, set(IMAGE_SETTINGS), "model.new.images")
    images = LlavaUHDImageProcessor(**new.images, patch_size=vision.patch_size, num_stages=vision.num_stages)
    processor = LlavaUHDProcessor(images, tokenizer)
    # The placeholder may just have been added to the tokenizer.
    text.vocab_size = max(text.vocab_size, len(tokenizer))
    config = LlavaUHDConfig(vision_config=vision, text_config=text, image_token_id=processor.image_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaUHDForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def export(
    model: LlavaUHDForConditionalGeneration,
    processor: LlavaUHDProcessor,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    record: dict[str, Any] | None = None,
) -> Path:
    """Saves model and processor for `from_pretrained`, weights in `dtype`; the model in memory stays as it is.

    `record` is written beside them as training.json, which `foveate info` shows.

    The folder appears complete or not at all: it is written beside its place and then moved there.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    state = {
        name: tensor.detach().to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    config = copy.deepcopy(model.config)
    vars(config).pop("use_cache", None)  # the trainer's, for training only
    # Another model around the converted weights: saving takes the precision from the model, and this one trains on.
    with torch.device("meta"):
        saved = type(model)(config)
    saved.load_state_dict(state, assign=True)
    saved.tie_weights()
    saved.generation_config = copy.deepcopy(model.generation_config)
    bars = logging.is_progress_bar_enabled()
    try:
        logging.disable_progress_bar()  # one more bar under the one of the training would only disturb it
        saved.save_pretrained(partial)
    finally:
        if bars:
            logging.enable_progress_bar()
    processor.save_pretrained(partial)
    if record:
        (partial / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
        return tokenizer
    except (OSError, ValueError) as error:
        raise FoveateError(f"model.new.tokenizer: {name!r} is neither `bytes` nor a tokenizer: {error}") from error


def _configured(kind: type, fields: dict[str, Any], where: str, **more: Any) -> Any:
    """A configuration of class `kind`; unknown fields, which transformers would keep silently, are refused."""
    known = {name for name in vars(kind()) if not name.startswith("_")} - {
        "transformers_version",
        "architectures",
    }
    _refuse_unknown(fields, known | {"model_type"}, where)
    try:
        return kind(**{**more, **fields})
    except (TypeError, ValueError) as error:
        raise FoveateError(f"{where}: {error}") from error


def _refuse_unknown(fields: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(fields) - known)
    if unknown:
        raise FoveateError(f"{where}: unknown keys {', '.join(unknown)}; possible are {', '.join(sorted(known))}.")

"""Build the model and processor of a recipe, and export the trained ones."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import AddedToken
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write, write_json
from foveate.core.plan import Plan
from foveate.core.weights import DATA_ONLY
from foveate.loading import load
from foveate.methods.decoder.dpn import DPN
from foveate.models.connectors.connector import Connector
from foveate.models.encoders import encoder_named
from foveate.models.encoders.sit import SiTModel, initialize_from_teacher
from foveate.models.encoders.temporal_pvc import MADE_OF, TemporalPVCModel, with_temporal_blocks
from foveate.models.llava_uhd.vision_remember import add_vision_remember
from foveate.models.llava_uhd.voco import add_voco_tokens
from foveate.models.llava_video.configuration import TEXT_ENCODERS
from foveate.training.architectures import ARCHITECTURES, Architecture, architecture_named, architecture_of
from foveate.training.methods import dpn
from foveate.training.recipe import ModelChoice, NewModel


def build_model(choice: ModelChoice, seed: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build the model of a recipe in float32, and its processor.

    Raises:
        FoveateError: the pretrained model cannot be loaded or trained, or a field of the new one's configuration is
            not possible, or it is of a kind that cannot have the VoCo tokens or the
            requested modules.
    """
    model, processor = _chosen(choice, seed)
    if choice.voco is not None:
        add_voco_tokens(model, processor, choice.voco, seed)
    if choice.remember is not None:
        add_vision_remember(model, choice.remember, seed)
    return model, processor


def _chosen(choice: ModelChoice, seed: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    if choice.new is not None:
        return new_model(choice.new, seed)
    model, processor = load(_name(choice.pretrained), dtype="float32", device="cpu", plan=None)
    architecture_of(model)  # refuses what cannot be trained
    return model.train(), processor


def vision_tower_of(name: str) -> Any:
    """The vision tower of a model, by folder or Hub id, in float32.

    Raises:
        FoveateError: the model cannot be loaded, or has no vision tower of its own.
    """
    source, _ = load(_name(name), dtype="float32", device="cpu", plan=None)
    tower = getattr(source.model, "vision_tower", None)
    if tower is None:
        raise FoveateError(f"{name!r} has no vision tower that could be taken from it.")
    return tower


def _name(name: str | None) -> str | None:
    """The name of a recipe's model as `load` takes it."""
    return None if name == "embedded" else name


def new_model(new: NewModel, seed: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build a model with random weights that depend on `seed` alone, and its processor.

    Raises:
        FoveateError: a field of a configuration does not exist or has an impossible value, or the weights of the
            language model cannot be loaded.
    """
    architecture = architecture_named(new.architecture)
    tokenizer = architecture.tokenizer() if new.tokenizer == "bytes" else _tokenizer(new.tokenizer)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in new.phrases])
    vision = _vision(new, architecture)
    fields = dict(new.text)
    try:
        text_class = type(AutoConfig.for_model(fields.pop("model_type", "llama")))
    except ValueError as error:
        raise FoveateError(f"model.new.text.model_type: {error}") from error
    fields = {"vocab_size": len(tokenizer), **fields}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = _configured(text_class, fields, "model.new.text", **special)
    _refuse_unknown(new.images, set(architecture.image_settings), "model.new.images")
    connector = _connector(new, architecture)
    processor = architecture.processor(vision, new.images, tokenizer, connector)
    # The placeholder may just have been added to the tokenizer.
    text.vocab_size = max(text.vocab_size, len(tokenizer))
    instruction = _instruction(new, architecture)
    config = architecture.config(vision, text, processor, connector, **instruction)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = architecture.model(config)
        architecture.initialise(model)
    if new.language_model is not None:
        _take_language_model(model, new.language_model)
    if new.vision_tower is not None:
        _take_vision_tower(model, architecture, new.vision_tower)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def _take_language_model(model: Any, name: str) -> None:
    """Copy the language model of another model; vocabulary rows and biases that it lacks keep their values.

    Of more layers the first ones are taken, and of a larger vocabulary the rows that this one has.

    Raises:
        FoveateError: it cannot be loaded, or its sizes differ.
    """
    source, _ = load(_name(name), dtype="float32", device="cpu", plan=None)
    depth = model.config.get_text_config().num_hidden_layers
    left_out = tuple(f"layers.{n}." for n in range(depth, source.config.get_text_config().num_hidden_layers))
    weights = source.model.language_model.state_dict()
    theirs = {key: value for key, value in weights.items() if not key.startswith(left_out)}
    ours = model.model.language_model.state_dict()
    missing = sorted(key for key in ours if key not in theirs and not key.endswith(".bias"))
    different = sorted(key for key in theirs if key not in ours or not _fits(key, theirs[key], ours[key]))
    if missing or different:
        raise FoveateError(
            f"model.new.language_model: the weights of {name!r} do not fit model.new.text, such as "
            f"{(missing + different)[0]}."
        )
    with torch.no_grad():
        for key, value in theirs.items():
            ours[key][: len(value)] = value[: len(ours[key])]
        rows = min(len(source.lm_head.weight), len(model.lm_head.weight))
        model.lm_head.weight[:rows] = source.lm_head.weight[:rows]


def _fits(key: str, theirs: torch.Tensor, ours: torch.Tensor) -> bool:
    """Whether weights can be copied: only the vocabulary may have another number of rows."""
    rows = slice(1, None) if key.startswith("embed_tokens.") else slice(None)
    return theirs.shape[rows] == ours.shape[rows]


def _take_vision_tower(model: Any, architecture: Architecture, name: str) -> None:
    """Copy the vision tower of another model; position embeddings of other image sizes are resized.

    Modules of a SiT that slim and recover tokens keep their random weights: the other tower may lack them. An encoder
    of PVC is made of a SigLIP or an InternViT.

    Raises:
        FoveateError: the model cannot be loaded, is of another architecture, or its tower has other sizes.
    """
    source, _ = load(_name(name), dtype="float32", device="cpu", plan=None)
    towers = [getattr(one.model, "vision_tower", None) for one in (model, source)]
    if all(isinstance(tower, SiTModel) for tower in towers):
        try:
            initialize_from_teacher(*towers)
        except FoveateError as error:
            raise FoveateError(f"model.new.vision_tower: {name!r}: {error}") from error
        return
    if isinstance(towers[0], TemporalPVCModel) and not isinstance(towers[1], TemporalPVCModel):
        _make_of(towers[0], towers[1], name)
        return
    theirs, ours = (
        {key: value for key, value in one.state_dict().items() if architecture.tower in key} for one in (source, model)
    )
    theirs |= {
        key: _resized_positions(theirs[key], len(ours[key]))
        for key in theirs.keys() & ours.keys()
        if key.endswith(".position_embedding.weight")
    }
    sizes, expected = ({key: value.shape for key, value in tower.items()} for tower in (theirs, ours))
    if different := sorted(key for key in sizes.keys() | expected if sizes.get(key) != expected.get(key)):
        raise FoveateError(
            f"model.new.vision_tower: the weights of {name!r} do not fit model.new.vision, such as {different[0]}."
        )
    with torch.no_grad():
        for key, value in theirs.items():
            ours[key].copy_(value)


def _make_of(tower: TemporalPVCModel, source: Any, name: str) -> None:
    """Give an encoder of PVC the weights of a vision transformer.

    Raises:
        FoveateError: that is of another kind, or the configuration of the encoder is not the one that follows from it.
    """
    try:
        made = with_temporal_blocks(source, tower.config.temporal_layers)
    except FoveateError as error:
        raise FoveateError(f"model.new.vision_tower: {name!r}: {error}") from error
    if different := [key for key in MADE_OF if getattr(made.config, key) != getattr(tower.config, key)]:
        values = ", ".join(f"{key} {getattr(made.config, key)}" for key in different)
        raise FoveateError(f"model.new.vision: the tower of {name!r} needs {values}.")
    tower.load_state_dict(made.state_dict())


def _resized_positions(table: torch.Tensor, count: int) -> torch.Tensor:
    """Resize position embeddings (1 + n x n or n x n, D) of a square of patches bicubically to `count` rows.

    Tables that are not those of a square are returned as they are.
    """
    first = len(table) - math.isqrt(len(table)) ** 2
    side, target = math.isqrt(len(table)), math.isqrt(max(count - first, 0))
    if len(table) == count or first > 1 or target * target + first != count:
        return table
    raster = table[first:].unflatten(0, (side, side)).permute(2, 0, 1)[None]
    resized = F.interpolate(raster, (target, target), mode="bicubic", antialias=True)
    return torch.cat([table[:first], resized[0].permute(1, 2, 0).flatten(0, 1)])


def export(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    record: dict[str, Any] | None = None,
    plan: str | None = None,
    routers: nn.ModuleDict | None = None,
) -> Path:
    """Save model and processor for `from_pretrained`, with weights in `dtype`; the model in memory is unchanged.

    `record` is written next to them as training.json, which `foveate info` shows; `plan`, the one that was trained
    under last, as the plan that `foveate.load` attaches; `routers` are those trained under it.

    The folder appears complete or not at all: it is written next to its place and then moved there.

    Raises:
        FoveateError: it could not be written.
    """
    state = {
        name: tensor.detach().to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    config = copy.deepcopy(model.config)
    vars(config).pop("use_cache", None)  # the trainer's, for training only
    # A second model holds the converted weights: saving takes the dtype from the model, and this one trains on.
    with torch.device("meta"):
        saved = type(model)(config)
    saved.load_state_dict(state, assign=True)
    saved.tie_weights()
    saved.generation_config = copy.deepcopy(model.generation_config)
    bars = logging.is_progress_bar_enabled()
    try:
        logging.disable_progress_bar()  # it would disturb the training's own bar
        with atomic_write(folder) as partial:
            saved.save_pretrained(partial)
            processor.save_pretrained(partial)
            if record:
                write_json(partial / "training.json", record)
            if plan is not None:
                _save_plan(Plan.of(plan), routers, partial)
    except FoveateError as error:
        raise FoveateError(f"the model could not be saved: {error}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return folder


def _vision(new: NewModel, architecture: Architecture) -> Any:
    """The configuration of a recipe's vision tower: the architecture's, or the encoder that `type` names.

    Raises:
        FoveateError: there is no such encoder or field, a value is impossible, or the architecture takes no encoders.
    """
    fields = dict(new.vision)
    kind = fields.pop("type", None)
    if kind is None:
        return _configured(architecture.vision_class, fields, "model.new.vision")
    if kind in architecture.vision_classes:
        return _configured(architecture.vision_classes[kind], fields, "model.new.vision")
    if not architecture.takes_encoders:
        able = ", ".join(name for name, other in ARCHITECTURES.items() if other.takes_encoders)
        raise FoveateError(
            f"model.new.vision.type: the vision tower of {architecture.name} is its own; an encoder can be chosen with "
            f"model.new.architecture: {able}."
        )
    try:
        config_class: Any = encoder_named(kind).config_class
    except FoveateError as error:
        raise FoveateError(f"model.new.vision.type: {error}") from error
    return _configured(config_class, fields, "model.new.vision")


def _connector(new: NewModel, architecture: Architecture) -> Connector | None:
    """The connector of a recipe, without weights; None where it names none.

    Raises:
        FoveateError: there is no such connector or option, or the architecture has a connector of its own.
    """
    if not new.connector:
        return None
    if not architecture.takes_connectors:
        able = ", ".join(name for name, other in ARCHITECTURES.items() if other.takes_connectors)
        raise FoveateError(f"model.new.connector: {architecture.name} has its own; it can be chosen for {able}.")
    options = dict(new.connector)
    kind = options.pop("type", None)
    if not isinstance(kind, str):
        raise FoveateError("model.new.connector: the key type, which names the connector, is missing.")
    try:
        return architecture.connector_of(kind, options)
    except FoveateError as error:
        raise FoveateError(f"model.new.connector: {error}") from error


def _instruction(new: NewModel, architecture: Architecture) -> dict[str, Any]:
    """The configuration of a recipe's text encoder for instructions, as an argument; empty where it names none.

    Raises:
        FoveateError: the architecture has no place for one, or a field does not exist.
    """
    if not new.instruction:
        return {}
    if not architecture.takes_instructions:
        able = ", ".join(name for name, other in ARCHITECTURES.items() if other.takes_instructions)
        raise FoveateError(f"model.new.instruction: {architecture.name} has no place for it; it is for {able}.")
    fields = dict(new.instruction)
    kind = fields.pop("model_type", None)
    if kind not in TEXT_ENCODERS:
        raise FoveateError(f"model.new.instruction.model_type: possible are {', '.join(TEXT_ENCODERS)}, not {kind!r}.")
    return {"instruction": _configured(type(AutoConfig.for_model(kind)), fields, "model.new.instruction")}


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, **DATA_ONLY)
        return tokenizer
    except (OSError, ValueError) as error:
        raise FoveateError(f"model.new.tokenizer: {name!r} is neither `bytes` nor a tokenizer: {error}") from error


def _configured(kind: type, fields: dict[str, Any], where: str, **more: Any) -> Any:
    """Build a configuration of class `kind`; unknown fields, which transformers would ignore, are refused."""
    known = {name for name in vars(kind()) if not name.startswith("_")} - {
        "transformers_version",
        "architectures",
    }
    _refuse_unknown(fields, known | {"model_type"}, where)
    try:
        return kind(**{**more, **fields})
    except Exception as error:  # of the package that validates configurations, or of their arithmetic
        raise FoveateError(f"{where}: {' '.join(str(error).split())}") from error


def _refuse_unknown(fields: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(fields) - known)
    if unknown:
        raise FoveateError(f"{where}: unknown keys {', '.join(unknown)}; possible are {', '.join(sorted(known))}.")


def _save_plan(plan: Plan, routers: nn.ModuleDict | None, folder: Path) -> None:
    """Save a plan next to the weights, with its trained routers."""
    steps = []
    for step in plan.steps:
        if routers and isinstance(step.method, DPN):
            dpn.save(routers, folder / DPN.name, scaled=True)
            step = replace(step, method=replace(step.method, weights=""))
        steps.append(step)
    Plan(tuple(steps)).save(folder)

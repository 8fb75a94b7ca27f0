"""Loading of models and processors from the package, a folder or the Hub: `load`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging

from foveate.core.acquisition import split_acquisition
from foveate.core.errors import FoveateError
from foveate.core.full_model import is_full_model
from foveate.core.plan import PLAN_FILE, Plan
from foveate.core.weights import DATA_ONLY, SAFE, WHERE, check_weights, file_of
from foveate.models.llava import FoveateLlavaConfig, FoveateLlavaForConditionalGeneration, FoveateLlavaProcessor
from foveate.models.llava.conversion import is_released as is_released_llava
from foveate.models.llava.processing import pair as pair_llava
from foveate.models.llava_uhd import LlavaUHDConfig, LlavaUHDForConditionalGeneration, LlavaUHDProcessor
from foveate.models.llava_uhd.checkpoint import is_released
from foveate.models.llava_uhd.pairing import pair
from foveate.models.vit_uhd.compression import ContentAdaptivePooling
from foveate.processors import load_processor

#: Folder of the model that ships with foveate.
EMBEDDED = Path(__file__).with_name("embedded")

#: Half-precision models up to this size are widened on a CPU, where float32 is faster and as cheap to hold.
WIDEN_UP_TO_BYTES = 2**31

DTYPES = ("auto", "float32", "bfloat16", "float16")

#: Keywords of `from_pretrained` that `load` refuses, with the reason.
_REFUSED = {
    "config": "foveate reads the configuration of the model's folder",
    "output_loading_info": "load returns the model and its processor",
    "torch_dtype": "its name is dtype",
    "trust_remote_code": "foveate runs no code of a model's folder; load the model with transformers if you trust it, "
    "and pass (model, processor) on",
    "use_safetensors": "foveate reads weights from safetensors only",
    "weights_only": "foveate reads weights from safetensors only",
}


def load(
    name: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    plan: Any = "saved",
    revision: str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Load a vision-language model and its processor.

    Args:
        name: a folder, or the id of a model on the Hugging Face Hub: LLaVA-UHD, or any model of
            `AutoModelForImageTextToText`. `None` is the model embedded in foveate.
        dtype: ``"auto"`` keeps the precision of the checkpoint, but widens bfloat16 and float16 to float32 on a CPU
            if the model then takes less than 2 GiB; or ``"float32"``, ``"bfloat16"``, ``"float16"``, or a torch dtype.
        device: such as ``"cpu"`` or ``"cuda:0"``; by default the first GPU, or the CPU.
        plan: ``"saved"`` attaches the plan that `Plan.save` wrote next to the weights, if there is one; ``None`` leaves
            it off; anything that `foveate.compress` takes is attached instead. `foveate.runtime.handle_of` returns the
            handle.
        revision: branch, tag or commit of a model on the Hub.
        device_map: as `from_pretrained` takes it, in place of `device`: ``"auto"`` divides the model among devices. It
            needs accelerate.
        attn_implementation: such as ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``. A kernel of the Hub,
            ``"owner/name"``, is code that runs here: name one only if you trust it.
        quantization_config: such as `transformers.BitsAndBytesConfig`; the package that it is made for must be there.
        options: any other keyword of `from_pretrained`, such as ``token`` or ``max_memory``.

    Weights are read from safetensors only, and no Python file of a folder is run: what others made is data. Therefore
    ``trust_remote_code=True`` is refused, as are ``use_safetensors`` and ``weights_only``. A model that needs its own
    code can be loaded with `transformers` and passed on as ``(model, processor)``.

    Quantised models and those with a `device_map` keep the precision in which they are loaded.

    Returns:
        The model, in evaluation mode on the device, and its processor.

    Raises:
        FoveateError: there is no such model or revision, it cannot be reached offline, it answers no questions about
            images, it needs a package that is missing or code of its own, its weights are pickled, the device or dtype
            does not exist, a keyword is not possible for it, or the plan cannot be read or does not fit the model.
    """
    location = locate(name)
    if device is not None and device_map is not None:
        raise FoveateError("device and device_map both say where the model goes; give one of them.")
    options |= {
        "revision": revision,
        "device_map": device_map,
        "attn_implementation": attn_implementation,
        "quantization_config": quantization_config,
    }
    where, settings = _divided(location, name, options)
    target, precision = None if device_map is not None else device_of(device), _dtype(dtype)
    chosen = _saved_plan(location, where) if isinstance(plan, str) and plan == "saved" else plan
    chosen = None if chosen is None else Plan.of(chosen)
    with _explained(name):
        config = _config(location, name, where)
        check_weights(location, config, **where)
        with _progress_bars_hidden(Path(location).is_dir()):
            model = AutoModelForImageTextToText.from_pretrained(
                location, config=config, dtype=precision, **where, **settings, **SAFE
            )
        processor = _processor(location, config, where)
        if isinstance(model, LlavaUHDForConditionalGeneration):
            pair(model, processor)
            _check_stages(model)
        elif isinstance(model, FoveateLlavaForConditionalGeneration):
            pair_llava(model, processor)
        if target is not None:
            model = _on(target, model, widen=precision == "auto")
    model = model.eval()
    if chosen is not None:
        from foveate.runtime import compress

        compress(model, chosen, processor=processor)
    return model, processor


def _divided(
    location: str, name: str | os.PathLike[str] | None, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide keywords of `from_pretrained` into those that all parts of a model take, and those of its weights."""
    for key, reason in _REFUSED.items():
        if key in options and options.pop(key) != SAFE.get(key, ...):
            raise FoveateError(f"{key} cannot be chosen: {reason}.")
    options = {key: value for key, value in options.items() if value is not None}
    where = {key: options.pop(key) for key in WHERE if key in options}
    for key in ("revision", "subfolder"):
        if key in where and Path(location).is_dir():
            raise FoveateError(f"{key} {where[key]!r} is of a model on the Hub, and {_shown(name)} is a folder.")
    return where, options


def _check_stages(model: LlavaUHDForConditionalGeneration) -> None:
    """Refuse quantised stages: content-adaptive pooling computes with halves of a weight."""
    for module in model.modules():
        if isinstance(module, ContentAdaptivePooling) and any(
            type(weight) is not torch.nn.Parameter for weight in module.parameters()
        ):
            raise FoveateError(
                "the stages of LLaVA-UHD cannot be quantised: name '.*merger' among the modules that the "
                "quantization_config leaves out (modules_to_not_convert, or llm_int8_skip_modules of bitsandbytes)."
            )


def _on(target: torch.device, model: Any, widen: bool) -> Any:
    """Move a model to a device; `widen`: to float32 on a CPU, if it is small. Quantised weights are not converted."""
    if getattr(model, "hf_quantizer", None) is not None:
        return model if model.device == target else model.to(target)
    if widen and target.type == "cpu" and 4 * model.num_parameters() <= WIDEN_UP_TO_BYTES:
        model = model.float()
    return model.to(target)


def plan_asked(text: str | None) -> Plan | str | None:
    """Parse a plan option: a plan; "saved" (the one saved with the model) without text; None for "full model".

    Raises:
        FoveateError: it is no plan.
    """
    if text is None:
        return "saved"
    return None if is_full_model(text) else Plan.of(text)


def plan_beside(name: str | os.PathLike[str] | None, revision: str | None = None) -> Plan | None:
    """Return the plan saved next to a model's weights, if there is one; `revision` is of a model on the Hub.

    Raises:
        FoveateError: there is no such model, or its plan cannot be read.
    """
    location = locate(name)
    return _saved_plan(location, _divided(location, name, {"revision": revision})[0])


def load_apart(
    name: str | os.PathLike[str] | None = None,
    plan: Plan | str | None = "saved",
    **options: Any,
) -> tuple[Any, Any, Plan | None]:
    """Load like `load` and with its options, but return the plan instead of attaching it, for switching plans.

    The plan may begin with an acquisition, which nothing attaches to a model.

    Raises:
        FoveateError: as `load` does; a plan that cannot act on this model is refused too.
    """
    from foveate.runtime import handle_of

    if isinstance(plan, str):
        plan = plan_beside(name, options.get("revision")) if plan == "saved" else Plan.of(plan)
    acquisition, attached = split_acquisition(plan, locate(name))
    model, processor = load(name, plan=attached, **options)
    if acquisition is not None:
        acquisition.read_prompts()
    handle = handle_of(model)
    if handle is None:
        return model, processor, plan
    handle.restore()
    return model, processor, handle.plan if acquisition is None else plan


def _saved_plan(location: str, where: dict[str, Any]) -> Plan | None:
    """Read the plan next to a model's weights, in a folder or on the Hub; None without plan or network."""
    if Path(location).is_dir():
        return Plan.read(location)
    try:
        file = file_of(location, PLAN_FILE, **where)
    except OSError:  # no such model, which the configuration, read next, reports better
        return None
    return None if file is None else Plan.read(Path(file).parent)


def load_skeleton(name: str | os.PathLike[str] | None = None) -> tuple[Any, Any]:
    """Load a model on the meta device, without weights, and its processor.

    Raises:
        FoveateError: as `load` does.
    """
    location = locate(name)
    with _explained(name):
        config = _config(location, name, {})
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        return model.eval(), _processor(location, config, {})


def locate(name: str | os.PathLike[str] | None) -> str:
    """Return the folder or Hub id of a name, and raise FoveateError for a missing folder before any download.

    None, and "embedded" where no folder is called so, are the embedded model.

    Raises:
        FoveateError: it is neither the folder of a model nor can be the id of one.
    """
    embedded = name is None or (name == EMBEDDED.name and not Path(name).exists())
    location = str(EMBEDDED) if embedded else os.fspath(name)
    path = Path(location)
    if embedded and not (path / "config.json").is_file():
        raise FoveateError(
            "this installation of foveate holds no weights, because it was built from the source distribution: install "
            "the wheel or a clone of the repository, which have the embedded model, or name a folder or a Hub id."
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FoveateError(f"{location!r} holds no model: there is no config.json in that folder.")
    elif path.exists():
        raise FoveateError(f"{location!r} is a file; name the folder that holds the model's config.json.")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", location) or location.startswith("."):
        raise FoveateError(f"there is no folder {location!r}, and it cannot be a Hub id, which reads 'owner/name'.")
    return location


def fingerprint(name: str | None) -> str | None:
    """Return what identifies a model: its name, and for a folder a hash of the names, sizes and times of its files.

    Raises:
        FoveateError: see `locate`.
    """
    place = Path(locate(name))
    if not place.is_dir():
        return name
    files = sorted(path for path in place.iterdir() if path.suffix in (".json", ".safetensors", ".bin"))
    contents = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _shown(name: str | os.PathLike[str] | None) -> str:
    return "the embedded model" if name is None else repr(os.fspath(name))


def _config(location: str, name: str | os.PathLike[str] | None, where: dict[str, Any]) -> Any:
    """Load the model's configuration, if it is of a vision-language model."""
    if is_released(location, **where):  # the authors' layout has model types that `AutoConfig` does not know
        return LlavaUHDConfig.from_pretrained(location, **where)
    if is_released_llava(location, **where):
        return FoveateLlavaConfig.from_pretrained(location, **where)
    config = AutoConfig.from_pretrained(location, **where, **DATA_ONLY)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise FoveateError(
            f"{_shown(name)} is a {config.model_type!r} model, which does not answer questions about images: foveate "
            "asks models of transformers' AutoModelForImageTextToText."
        )
    return config


def _processor(location: str, config: Any, where: dict[str, Any]) -> Any:
    # `AutoProcessor` would ask to run the Python files that a folder in the authors' layout names.
    if isinstance(config, LlavaUHDConfig):
        return LlavaUHDProcessor.from_pretrained(location, **where, **DATA_ONLY)
    if isinstance(config, FoveateLlavaConfig):
        return FoveateLlavaProcessor.from_pretrained(location, **where, **DATA_ONLY)
    return load_processor(location, config, **where)


def device_of(device: str | torch.device | None) -> torch.device:
    """Return an available device; None selects the first GPU, or the CPU if there is none.

    Raises:
        FoveateError: it cannot.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise FoveateError(f"cannot use device {str(device)!r} here: {reason}.") from None
    return chosen


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if dtype in ("auto",) or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    if dtype in DTYPES:
        return getattr(torch, str(dtype))
    raise FoveateError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")


@contextmanager
def _progress_bars_hidden(hidden: bool) -> Generator[None]:
    """Hide transformers' progress bar of loaded weights if nothing is downloaded."""
    if not hidden or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextmanager
def _explained(name: str | os.PathLike[str] | None) -> Generator[None]:
    """Convert errors of transformers and the Hub to one sentence that says what to do."""
    shown = _shown(name)
    try:
        yield
    except FoveateError:
        raise
    except ImportError as error:
        raise FoveateError(f"{shown} needs a package that is not installed: {_first_line(error)}") from error
    except OSError as error:  # also what an unknown id, no network and a missing file of the repository give
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
        hint = (
            "it is not in the local cache, and HF_HUB_OFFLINE forbids to download it"
            if offline
            else "neither a folder nor a model that the Hugging Face Hub gives out to you, or the network is down"
        )
        raise FoveateError(f"cannot load {shown}: {hint} ({_first_line(error)})") from error
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        # what transformers raises of a configuration that is nonsense, and of weights that are damaged or do not fit
        raise FoveateError(f"cannot load {shown}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """Return an error's first sentence: its first line with the lines that continue it."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    for line in rest:
        if first.endswith((".", "!", "?", ":")) or not line[0].islower():
            break
        first = f"{first} {line}"
    return first.rstrip(".") + "."

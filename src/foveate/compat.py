"""Compatibility with versions of `transformers`, and every private name of it that foveate uses.

No other file checks a version or uses a private name of `transformers`. A release that renames or moves one of
these names is handled here, and a missing name ends in a `FoveateError`: a hook that finds no target must not pass
for one that had nothing to do.
"""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires
from typing import Any, ParamSpec, TypeVar

import torch
import transformers
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from torch import nn
from transformers import Cache, DynamicCache, cache_utils, modeling_utils
from transformers.cache_utils import DynamicLayer, StaticLayer
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from foveate.core.errors import FoveateError

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: Whether arguments and fields of outputs that hold the KV cache are called `cache` (transformers 5.24 and newer); they
#: were called `past_key_values` before.
HAS_CACHE_ARGUMENT = "cache" in inspect.signature(create_causal_mask).parameters
#: The name of the argument and of the field.
CACHE = "cache" if HAS_CACHE_ARGUMENT else "past_key_values"
#: All names that it ever had.
CACHE_NAMES = ("cache", "past_key_values")

#: Whether a quantised cache may hold eight-bit floats (5.21 and newer).
HAS_FP8_CACHE = hasattr(cache_utils, "Fp8QuantizedLayer")
#: Whether MiniCPM-V 4.6 reads images of several shapes in one call (5.20 and newer; before, its own code fails).
MINICPM_READS_SEVERAL_SHAPES = Version(transformers.__version__) >= Version("5.20")
#: Whether `logits_to_keep` may select other columns in every row (5.21 and newer; before, only the same in all).
HAS_LOGITS_PER_ROW = hasattr(modeling_utils, "slice_logits_to_keep")
#: Whether beams of Qwen3.5 have the images of their prompt (5.21 and newer; before, `generate` repeats single patches).
QWEN35_BEAMS_HAVE_IMAGES = Version(transformers.__version__) >= Version("5.21")
#: Qwen2.5-Omni's thinker has a class for the model below its head, which EchoingPixels extends.
HAS_OMNI_THINKER_MODEL = Version(transformers.__version__) >= Version("5.21")
#: Whether `generate` cuts `mm_token_type_ids` to the new tokens (5.23 and newer). Before, the masks of a static cache
#: are made without them, and assisted decoding passes them without those of the candidates.
SLICES_MM_TOKEN_TYPES = Version(transformers.__version__) >= Version("5.23")
#: Whether `generate` works out multimodal positions of images that follow a cache (5.23 and newer; before, they get
#: positions of text).
PLACES_IMAGES_AFTER_CACHE = Version(transformers.__version__) >= Version("5.23")
#: Whether `generate` reads images with `prefill_chunk_size` (5.23 and newer; before, it leaves them out).
CHUNKS_READ_IMAGES = Version(transformers.__version__) >= Version("5.23")
#: Whether Gemma 4 reads clips (5.23 and newer; before, its own code fails).
GEMMA4_READS_CLIPS = Version(transformers.__version__) >= Version("5.23")
#: Whether gradient checkpointing runs `__call__` of a layer again (before 5.23), and with it a replaced `forward`.
CHECKPOINTS_CALLS = "__call__" in vars(GradientCheckpointingLayer)
#: Whether static caches can be cropped (5.24 and newer).
CROPS_STATIC_CACHES = hasattr(StaticLayer, "crop")
#: Whether outputs of models contain those of their encoders, as `image_outputs` (5.24 and newer).
HAS_IMAGE_OUTPUTS = Version(transformers.__version__) >= Version("5.24")
#: Whether SigLIP2 resizes its position table by a matrix product (5.24 and newer), not by an interpolation.
SIGLIP2_RESIZES_BY_PRODUCT = Version(transformers.__version__) >= Version("5.24")

_UNKNOWN_CACHE = "this version of transformers hands the cache over in a way that foveate does not know"


# The version itself


def tested_versions(package: str) -> SpecifierSet:
    """Versions of a package that foveate is tested with, from its requirements; all where these are unknown."""
    try:
        requirements = [Requirement(text) for text in requires("foveate") or ()]
    except PackageNotFoundError:  # run from its source, without being installed
        return SpecifierSet()
    return next((requirement.specifier for requirement in requirements if requirement.name == package), SpecifierSet())


@functools.cache
def warn_if_untested(package: str = "transformers", version: str | None = None) -> None:
    """Warn, once per process, if foveate is not tested with a version, by default that of transformers here."""
    version = version or transformers.__version__
    tested = tested_versions(package)
    if not tested.contains(version, prereleases=True):
        bounds = ", ".join(sorted(map(str, tested), reverse=True))
        warnings.warn(
            f"foveate is tested with {package} {bounds}, and this is {version}: what was renamed "
            "since then ends in an error, or is not noticed.",
            stacklevel=3,
        )


# The KV cache of a call


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call, under any of its names; None where there is none."""
    return next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)


def cache_argument(cache: Any) -> dict[str, Any]:
    """A cache as keyword arguments, under the name that this version reads."""
    return {CACHE: cache}


def with_cache(arguments: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """The arguments of a call, with this cache in place of the one among them."""
    rest = {name: value for name, value in arguments.items() if name not in CACHE_NAMES}
    return rest | cache_argument(cache)


def cache_of(output: Any) -> Any:
    """The cache in an output of a model or of `generate`; None where it holds none."""
    return getattr(output, CACHE, None)


def cache_for_call(text: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """The cache of a call of a language model, created as the model would create it where none is given.

    Args:
        text: The language model.
        arguments: What its `forward` is called with, by name.

    Returns:
        The cache; None where the call uses none.

    Raises:
        FoveateError: the call has no argument for a cache, so that its cache is unknown.
    """
    cache = cache_in(arguments)
    if cache is not None:
        return cache
    config: Any = text.config
    use_cache = arguments.get("use_cache")
    if not (getattr(config, "use_cache", False) if use_cache is None else use_cache) or _is_checkpointed(text):
        return None
    if not any(name in arguments for name in CACHE_NAMES):
        raise FoveateError(f"{_UNKNOWN_CACHE}: {type(text).__name__} is called with use_cache and no cache argument.")
    return DynamicCache(config=config)


def _is_checkpointed(text: nn.Module) -> bool:
    """Whether gradient checkpointing is active, in which layers write to no cache."""
    if not (text.training and torch.is_grad_enabled()):
        return False
    return any(getattr(module, "gradient_checkpointing", False) for module in text.modules())


def check_cache_returned(output: Any, cache: Any) -> None:
    """Raise FoveateError unless the output of a call holds the cache that the call was given."""
    if cache is not None and isinstance(output, Mapping) and cache_of(output) is not cache:
        raise FoveateError(f"{_UNKNOWN_CACHE}: it is not in the {type(output).__name__} of the language model.")


def takes_cache(forward: Callable[_P, _R]) -> Callable[_P, _R]:
    """Accept any name of the cache argument in a `forward` of foveate's own models."""

    @functools.wraps(forward)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        for name in CACHE_NAMES[1:]:
            if name in kwargs:
                value = kwargs.pop(name)
                if value is not None and kwargs.setdefault("cache", value) is not value:
                    raise FoveateError(f"cache and {name} are the same argument: give one of them.")
        return forward(*args, **kwargs)

    return renamed


# Classes of caches


def is_plain_dynamic_cache(cache: Any) -> bool:
    """Whether a cache is the one that `generate` makes by default, and no subclass of it."""
    return type(cache) is DynamicCache


def is_plain_dynamic_layer(layer: Any) -> bool:
    """Whether a layer of a cache grows with every token and forgets none, and is of no subclass."""
    return type(layer) is DynamicLayer


def is_offloaded(cache: Any) -> bool:
    """Whether a cache moves its layers between devices as they are used."""
    return bool(getattr(cache, "offloading", False))


@functools.cache
def _mixed_class(mixin: type, cls: type[Cache]) -> type[Cache]:
    return type(f"{mixin.__name__.strip('_')}{cls.__name__}", (mixin, cls), {})


def mix_into(cache: Cache, mixin: type) -> None:
    """Mix a class into a live cache; a second call changes nothing.

    `generate` and the models keep references to the cache, so that it cannot be replaced by another object.
    """
    if not isinstance(cache, mixin):
        cache.__class__ = _mixed_class(mixin, type(cache))


def unmix(cache: Cache, mixin: type) -> None:
    """Give a cache back the class that it had before `mix_into`."""
    cls = type(cache)
    if cls.__mro__[1] is mixin:
        cache.__class__ = cls.__mro__[2]


# Attention functions


def attention_name(config: Any) -> str:
    """Name of the attention function in a config."""
    return config._attn_implementation or "eager"


def config_with_attention(config: Any, name: str) -> Any:
    """A copy of a module's config that names another attention function, for this module alone."""
    other = copy.copy(config)
    set_attention_name(other, name)
    return other


def set_attention_name(config: Any, name: str) -> None:
    """Set the attention function of a config, without its sub-configs.

    The public setter would change all sub-configs as well.
    """
    config._attn_implementation_internal = name
    if attention_name(config) != name:
        raise FoveateError(
            "this version of transformers names attention functions in a way that foveate does not know."
        )


# Gradient checkpointing


@contextmanager
def without_checkpointed_calls(layers: Iterable[nn.Module]) -> Generator[None]:
    """Turn gradient checkpointing of layers off in the context, if it would run their `__call__` again.

    A replaced `forward` is not run again by versions that checkpoint the class's own one.
    """
    checkpointed: list[Any] = [
        layer for layer in layers if CHECKPOINTS_CALLS and getattr(layer, "gradient_checkpointing", False)
    ]
    for layer in checkpointed:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in checkpointed:
            layer.gradient_checkpointing = True


# DeepStack

#: The method of a language model that adds DeepStack features to the hidden states of its first layers.
DEEPSTACK = "_deepstack_process"


# Assisted decoding

#: The method of a model that returns the candidate generator of assisted decoding.
CANDIDATE_GENERATOR = "_get_candidate_generator"

# Prefill in chunks

#: The method of a model in which `generate` reads the prompt, in chunks where `prefill_chunk_size` is set.
PREFILL = "_prefill"

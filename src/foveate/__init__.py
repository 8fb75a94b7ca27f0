"""foveate: visual token compression for multimodal models.

Importing foveate makes the Auto classes of `transformers` know its models.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from foveate.answering import Answer, ask
    from foveate.core.plan import Plan
    from foveate.core.registry import all_methods as methods
    from foveate.core.registry import register_method
    from foveate.loading import load
    from foveate.models.connectors import register_connector
    from foveate.models.encoders import register_encoder
    from foveate.models.llava import swap_connector
    from foveate.models.llava_uhd import LlavaUHDConfig, LlavaUHDForConditionalGeneration, LlavaUHDProcessor
    from foveate.models.llava_uhd.image_processing import LlavaUHDImageProcessor
    from foveate.models.vit_uhd import ViTUHDConfig, ViTUHDModel
    from foveate.runtime import compress, reuse_features, speculate, vasparse
    from foveate.streaming import stream
    from foveate.training.methods import register_trainer

__version__ = "0.1.0"

_MODULES = {
    "Answer": "answering",
    "LlavaUHDConfig": "models.llava_uhd",
    "LlavaUHDForConditionalGeneration": "models.llava_uhd",
    "LlavaUHDImageProcessor": "models.llava_uhd.image_processing",
    "LlavaUHDProcessor": "models.llava_uhd",
    "ViTUHDConfig": "models.vit_uhd",
    "ViTUHDModel": "models.vit_uhd",
    "Plan": "core.plan",
    "ask": "answering",
    "compress": "runtime",
    "load": "loading",
    "register_connector": "models.connectors",
    "register_encoder": "models.encoders",
    "register_method": "core.registry",
    "register_trainer": "training.methods",
    "reuse_features": "runtime",
    "speculate": "runtime",
    "stream": "streaming",
    "swap_connector": "models.llava",
    "vasparse": "runtime",
}

__all__ = [
    "Answer",
    "FoveateError",
    "LlavaUHDConfig",
    "LlavaUHDForConditionalGeneration",
    "LlavaUHDImageProcessor",
    "LlavaUHDProcessor",
    "Plan",
    "ViTUHDConfig",
    "ViTUHDModel",
    "__version__",
    "ask",
    "compress",
    "load",
    "methods",
    "register",
    "register_connector",
    "register_encoder",
    "register_method",
    "register_trainer",
    "reuse_features",
    "speculate",
    "stream",
    "swap_connector",
    "vasparse",
]


def register() -> None:
    """Register foveate's models with the Auto classes of `transformers`. Registering twice changes nothing."""
    from foveate.models import avsr, echoing_pixels, encoders, llava, llava_uhd, llava_video, next_scale, vit_uhd

    encoders.register()
    vit_uhd.register()
    llava_uhd.register()
    llava.register()
    llava_video.register()
    next_scale.register()
    avsr.register()
    echoing_pixels.register()


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    if name == "methods":  # a package that can be called
        return importlib.import_module("foveate.methods")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public API alone; modules are imported by their own names, such as `foveate.core.plan`."""
    return sorted(__all__)


def _is_command_line() -> bool:
    """Whether the program is `foveate` or `python -m foveate`, which is not known by its path before it is found."""
    as_module = sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] == "foveate"
    return "foveate_cli" in sys.modules or as_module


# Registering imports torch and transformers, which takes seconds. The command line therefore does it when a command
# runs, and not for `foveate --help`.
if not _is_command_line():
    register()

"""foveate: multimodal models that read fewer visual tokens.

Importing foveate makes the Auto classes of `transformers` know its models.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.answering import Answer, ask
    from foveate.encoders import ViTUHDConfig, ViTUHDModel
    from foveate.llava_uhd import LlavaUHDConfig, LlavaUHDForConditionalGeneration, LlavaUHDProcessor
    from foveate.loading import load
    from foveate.plan import Plan
    from foveate.runtime import compress, speculate, vasparse
    from foveate.views import LlavaUHDImageProcessor

__version__ = "0.1.0"

_ROOMS = {
    "Answer": "answering",
    "LlavaUHDConfig": "llava_uhd",
    "LlavaUHDForConditionalGeneration": "llava_uhd",
    "LlavaUHDImageProcessor": "views",
    "LlavaUHDProcessor": "llava_uhd",
    "ViTUHDConfig": "encoders",
    "ViTUHDModel": "encoders",
    "Plan": "plan",
    "ask": "answering",
    "compress": "runtime",
    "load": "loading",
    "speculate": "runtime",
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
    "register",
    "speculate",
    "vasparse",
]


def register() -> None:
    """Make the Auto classes of `transformers` know foveate's models. Doing it twice changes nothing."""
    from foveate import encoders, generation, llava_uhd

    encoders.register()
    llava_uhd.register()
    generation.register()


def __getattr__(name: str) -> Any:
    """Import a public name from its room when it is first used."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Registering imports torch and transformers, which takes seconds. The command line (`foveate_cli`) therefore does it
# when a command runs, and not for `foveate --help`.
if "foveate_cli" not in sys.modules:
    register()

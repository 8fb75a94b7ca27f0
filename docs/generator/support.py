"""The page of supported families: what their models are called, what they read, and where they are served."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES

from foveate.families import Family, families
from foveate.integrations.vllm import MODELS

#: Classes of models that are not in `transformers`.
OWN = {"llava_uhd": "LlavaUHDForConditionalGeneration"}


def pages() -> dict[str, str]:
    """The page by its path under `docs/`."""
    rows = [_row(family) for family in families().values()]
    header = ["family", "`model_type`: class", "an example on the Hub", "reads", "torchvision", "in vLLM"]
    lines = [
        "# Supported families",
        "",
        "Families of models that `foveate.compress` knows, generated from the code by `make docs`. Any model of such a",
        "class works, whatever its size; the examples are ids that the documentation of `transformers` names. Which",
        "methods run on which family is in the [matrix](matrix.md), with which versions in",
        "[Compatibility](compatibility.md).",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *rows,
        "",
        "*Reads*: clips are videos as sequences of frames; tiles are crops of one image, which have one budget",
        "together, or a budget each, as images of their own. *torchvision*: where it is needed",
        "(`pip install 'foveate[video]'`). *In vLLM*: served by the [plug-in](vllm.md).",
        "",
    ]
    return {"support.md": "\n".join(lines)}


def _row(family: Family) -> str:
    classes = {kind: OWN.get(kind) or MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind] for kind in family.model_types}
    clips = any(hasattr(_core(kind), "get_video_features") for kind in classes)
    reads = ["images", *(["clips"] if clips else []), *_tiles(family)]
    torchvision = "for images too" if family.needs_torchvision else "for clips" if clips else "no"
    hub = f"[{family.example}](https://huggingface.co/{family.example})" if family.example else ""
    served = "yes" if any(name in MODELS for name in classes.values()) else "no"
    named = "<br>".join(f"`{kind}`: {name}" for kind, name in classes.items())
    return f"| {family.title} | {named} | {hub} | {', '.join(reads)} | {torchvision} | {served} |"


def _core(kind: str) -> Any:
    """The class of the model without its output layer, which encodes images and clips; None: it is not there."""
    return getattr(transformers, str(MODEL_MAPPING_NAMES.get(kind)), None)


def _tiles(family: Family) -> list[str]:
    if family.tiled:
        return ["tiles (one budget)"]
    return ["tiles (a budget each)"] if family.whole_tile else []

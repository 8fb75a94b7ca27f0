"""The page of supported families: their classes, their inputs, and whether vLLM can serve them."""

from __future__ import annotations

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from foveate.families import Family, families
from foveate.integrations.vllm import MODELS

#: Model classes that are not part of `transformers`.
OWN = {
    "llava_uhd": "LlavaUHDForConditionalGeneration",
    "foveate_llava": "FoveateLlavaForConditionalGeneration",
    "foveate_llava_video": "FoveateLlavaVideoForConditionalGeneration",
}


def pages() -> dict[str, str]:
    """The page by its path under `docs/`."""
    rows = [_row(family) for family in families().values()]
    header = ["family", "`model_type`: class", "example on the Hub", "inputs", "torchvision", "vLLM"]
    lines = [
        "# Supported families",
        "",
        "The model families that `foveate.compress` supports, generated from the code by `make docs`. Models of these",
        "classes work at any size; the examples are model ids from the documentation of `transformers`. The",
        "[matrix](matrix.md) shows which methods run on which family, and [Compatibility](compatibility.md) lists the",
        "supported versions.",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *rows,
        "",
        "*Inputs*: clips are videos as sequences of frames; tiles are crops of one image, which share one budget or",
        "have one budget each. *torchvision*: whether it is required (`pip install 'foveate[video]'`). *vLLM*:",
        "whether the [plug-in](vllm.md) can serve the family.",
        "",
    ]
    return {"support.md": "\n".join(lines)}


def _row(family: Family) -> str:
    classes = {kind: OWN.get(kind) or MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind] for kind in family.model_types}
    reads = ["images", *(["clips"] if family.reads_clips else []), *_tiles(family)]
    torchvision = "for images too" if family.needs_torchvision else "for clips" if family.reads_clips else "no"
    hub = f"[{family.example}](https://huggingface.co/{family.example})" if family.example else ""
    served = "yes" if any(name in MODELS for name in classes.values()) else "no"
    named = "<br>".join(f"`{kind}`: {name}" for kind, name in classes.items())
    return f"| {family.title} | {named} | {hub} | {', '.join(reads)} | {torchvision} | {served} |"


def _tiles(family: Family) -> list[str]:
    if family.tiled:
        return ["tiles (one budget)"]
    return ["tiles (a budget each)"] if family.whole_tile else []

"""Analytical cost of a model: FLOPs and KV cache of one image and one prompt, with or without a plan.

No weights are loaded or run. `shapes` reads a configuration, `preprocessing` computes the patches and tokens of an
image, `schedule` the number of visual tokens in every layer, `cost` counts, with `counted` for encoders and connectors
of foveate; `clips` counts models with video connectors; `papers` holds published numbers next to those counted here.
"""

from foveate.cost.clips import clip_cost, clip_tokens
from foveate.cost.cost import DTYPES, Convention, Cost, cost
from foveate.cost.models import RELEASED, Named, named
from foveate.cost.preprocessing import ProcessedImage, processed_image
from foveate.cost.schedule import Run, follow, tokens_per_layer
from foveate.cost.shapes import Connector, Model, Text, Vision, shape_of

__all__ = [
    "DTYPES",
    "RELEASED",
    "Connector",
    "Convention",
    "Cost",
    "Model",
    "Named",
    "ProcessedImage",
    "Run",
    "Text",
    "Vision",
    "clip_cost",
    "clip_tokens",
    "cost",
    "follow",
    "named",
    "processed_image",
    "shape_of",
    "tokens_per_layer",
]

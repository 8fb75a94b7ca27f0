"""FLOPs and KV cache of one image and one prompt, in closed form but for parts that are counted (`cost.counted`).

Counted are matrix products and attention, as `torch.utils.flop_counter` does (see `foveate.cost.flops`). What a
method spends on choosing is not in it: for most it is far below a per cent, and `foveate bench speed` measures it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.cost import flops
from foveate.cost.counted import CountedConnector, CountedEncoder
from foveate.cost.schedule import Run
from foveate.cost.shapes import Connector, Model, Text, Vision

#: Bytes of a number in the cache.
DTYPES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5}


@dataclass(frozen=True)
class Convention:
    """Which operations are counted, since papers differ. The defaults match `torch.utils.flop_counter`.

    Args:
        attention: Products of queries, keys and values in the decoder: "full", "causal" (only pairs that the mask
            leaves) or "none" (counters that do not see a fused kernel; then none in the encoder either).
        mlp: Matrices of the decoder's MLP; None: as many as it has. Formulas made for plain MLPs count 2.
        head: Positions at which the output layer is counted: "last", "all" or "none".
        encoder: Whether the encoder is counted.
        connector: Whether the connector is counted, with a pass of the text alone and pre-fusion where it has these.
    """

    attention: Literal["full", "causal", "none"] = "full"
    mlp: int | None = None
    head: Literal["last", "all", "none"] = "last"
    encoder: bool = True
    connector: bool = True


@dataclass(frozen=True)
class Cost:
    """Floating-point operations; a multiply-accumulate counts as two, so MACs are half of them.

    Args:
        parts: Operations to the first token of the answer, by part.
        decode: Operations of the next token, with the prompt in the cache.
        cached: Numbers in the cache after the prompt, keys and values of all layers.
        cached_image: Of these, numbers of image tokens.
    """

    parts: dict[str, int]
    decode: int
    cached: int
    cached_image: int

    @property
    def total(self) -> int:
        """FLOPs to the first token."""
        return sum(self.parts.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations to the first token."""
        return self.total // 2


def cost(model: Model, run: Run, text: int, convention: Convention | None = None) -> Cost:
    """Compute the cost of one image with `text` tokens around it.

    Args:
        model: Its shape; without an encoder that part is 0.
        run: What a plan makes of the image.
        text: Tokens of the prompt that are not the image's.
        convention: What is counted.

    Raises:
        FoveateError: there are no tokens at all, or the numbers do not fit the model.
    """
    convention = convention or Convention()
    shape, kept = model.text, run.kept
    if len(kept) != shape.layers or min(kept) < 0 or text < 0 or min(kept) + text < 1:
        raise FoveateError(f"{text} tokens of text and {len(kept)} layers of visual tokens cannot be counted.")
    lengths = [tokens + text for tokens in kept]
    parts = {"encoder": 0, "connector": 0}
    fused = convention.attention == "none"
    if model.vision is not None and convention.encoder:
        parts["encoder"] = _encoders(model.vision, run, attention=not fused)
    if model.vision is not None and model.connector is not None and convention.connector:
        if isinstance(model.connector, CountedConnector):
            parts |= _counted_connector(model, model.connector, run, text, convention)
        else:
            parts["connector"] = _two_layers(model.vision, model.connector, run)
    answered = {"last": 1, "all": lengths[-1], "none": 0}[convention.head]
    parts |= {
        "projections": sum(_projections(shape, length) for length in lengths),
        "attention": sum(_attention(shape, length, convention) for length in lengths),
        "mlp": sum(_mlp(shape, length, convention) for length in lengths),
        "output layer": flops.linear(answered, shape.width, shape.vocabulary),
    }
    if model.remembering_layers and convention.connector:
        parts["vision remember"] = _remember(model, run.image.tokens, attention=not fused)
    per_token = 2 * shape.kv_heads * shape.head
    held = (0,) * shape.layers if model.reads_through_voco else kept
    lengths = [tokens + text for tokens in held]
    return Cost(parts, decode(shape, lengths, convention), per_token * sum(lengths), per_token * sum(held))


def _encoders(vision: Vision | CountedEncoder, run: Run, *, attention: bool) -> int:
    """FLOPs of the encoder on all sequences of an image."""
    if run.image.crops is not None and isinstance(vision, CountedEncoder):
        return vision.flops(run.image.grids[0], crops=run.image.crops, attention=attention)
    return sum(encoder(vision, grid, run.merges, attention=attention) for grid in run.image.grids)


def _remember(model: Model, tokens: int, *, attention: bool) -> int:
    """FLOPs of Vision Remember, in which every visual token attends to the features of its own region."""
    vision, width = model.vision, model.text.width
    assert isinstance(vision, Vision)
    features = tokens * sum(4**level for level in range(len(vision.stages) + 1))
    total = flops.linear(tokens, width, 2 * vision.width) + flops.linear(features, vision.width, 2 * vision.width)
    return model.remembering_layers * (total + (4 * features * vision.width if attention else 0))


def _two_layers(vision: Vision | CountedEncoder, connector: Connector, run: Run) -> int:
    tokens = run.projected
    if tokens is None:  # merged tokens are unmerged before the connector
        tokens = sum(vision.output_grid(grid).size for grid in run.image.grids) // connector.merge
    return connector.copies * flops.connector(tokens, connector.inputs, connector.hidden, connector.outputs)


def _counted_connector(
    model: Model, connector: CountedConnector, run: Run, text: int, convention: Convention
) -> dict[str, int]:
    """FLOPs of a connector of foveate, and of what decoder layers do before the language model reads the prompt."""
    assert model.vision is not None
    grids = [model.vision.output_grid(grid) for grid in run.image.grids]
    attention = convention.attention != "none"
    if run.image.parts > 1:  # the connector reads sub-images as one, and pre-fusion the whole image as well
        side = math.isqrt(run.image.parts - 1)
        stitched = Grid(side * grids[0].rows, side * grids[0].columns)
        parts = {"connector": connector.flops(stitched, whole=grids[0].size, attention=attention)}
    else:
        lengths = run.lengths or (None,) * len(grids)
        calls = Counter(zip(grids, lengths, strict=True))  # views of one size share what does not depend on the image
        flops_of_calls = (connector.flops(*call, images=number, attention=attention) for call, number in calls.items())
        parts = {"connector": sum(flops_of_calls)}
    if connector.sizes.reads_text:
        parts["text-only pass"] = model.text.layers * _layer(model.text, text, convention)
    if connector.sizes.prefusion_layers:
        length = sum(grid.size for grid in grids) + run.image.tokens + text
        parts["pre-fusion"] = connector.sizes.prefusion_layers * _layer(model.text, length, convention)
    return parts


def encoder(vision: Vision | CountedEncoder, grid: Grid, merges: Sequence[int] = (), *, attention: bool = True) -> int:
    """FLOPs of an encoder on one sequence of rows x columns patches.

    Args:
        vision: Its shape.
        grid: The patches.
        merges: Tokens merged away between attention and MLP of every block; empty: none.
        attention: Whether the products of queries, keys and values are counted.
    """
    if isinstance(vision, CountedEncoder):
        return vision.flops(grid, attention=attention)
    stages = dict(vision.stages)
    total = flops.linear(grid.size, vision.patch_values, vision.width)
    if vision.table is not None and (grid.rows, grid.columns) != vision.table:
        total += flops.linear(grid.rows * vision.table[1], vision.table[0], vision.width)
        total += flops.linear(grid.size, vision.table[1], vision.width)
    tokens = grid.size + vision.cls
    for block in range(vision.blocks):
        lengths = [tokens]
        if vision.window is not None and block not in vision.full:
            lengths = windows(grid, vision.window)
        after = tokens - (merges[block] if merges else 0)
        total += flops.linear(tokens, vision.width, 4 * vision.width)
        total += flops.attention(lengths, vision.width) if attention else 0
        total += flops.linear(after, vision.width, (3 if vision.gated else 2) * vision.hidden)
        tokens = after
        if block in stages:
            total += stage(stages[block], tokens, vision, attention=attention)
            tokens, grid = tokens // 4, Grid(grid.rows // 2, grid.columns // 2)
    if vision.pooled:
        total += flops.linear(tokens, vision.width, 2 * vision.width) + (4 * tokens * vision.width if attention else 0)
        total += flops.linear(1, vision.width, 2 * vision.width + 2 * vision.hidden)
    return total


def stage(kind: str, tokens: int, vision: Vision, *, attention: bool = True) -> int:
    """FLOPs of a stage that merges `tokens` tokens four to one."""
    if kind == "content-adaptive":
        return flops.content_adaptive_stage(tokens, vision.width)
    if kind == "average":
        return 0
    wide, hidden = 4 * vision.width, 4 * vision.hidden
    total = flops.linear(tokens, vision.width, wide)  # queries, keys, values and output
    total += flops.attention([4] * (tokens // 4), vision.width) if attention else 0
    total += flops.linear(tokens // 4, wide, (2 if vision.gated else 1) * hidden)
    return total + flops.linear(tokens // 4, hidden, vision.width)


def windows(grid: Grid, side: int) -> list[int]:
    """Lengths of the windows of side x side patches; the last of a row or column may be smaller."""
    heights = [min(side, grid.rows - start) for start in range(0, grid.rows, side)]
    widths = [min(side, grid.columns - start) for start in range(0, grid.columns, side)]
    return [height * width for height in heights for width in widths]


def decode(shape: Text, lengths: Sequence[int], convention: Convention | None = None) -> int:
    """FLOPs of one decoded token after prompts of `lengths` tokens in the layers."""
    convention = convention or Convention()
    total = shape.layers * (_projections(shape, 1) + _mlp(shape, 1, convention))
    if convention.attention != "none":
        total += sum(4 * (length + 1) * shape.heads * shape.head for length in lengths)
    return total + (flops.linear(1, shape.width, shape.vocabulary) if convention.head != "none" else 0)


def _layer(shape: Text, tokens: int, convention: Convention) -> int:
    return _projections(shape, tokens) + _attention(shape, tokens, convention) + _mlp(shape, tokens, convention)


def _projections(shape: Text, tokens: int) -> int:
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    return flops.linear(tokens, shape.width, 2 * queries + 2 * keys)


def _attention(shape: Text, tokens: int, convention: Convention) -> int:
    width = shape.heads * shape.head
    if convention.attention == "causal":
        return 2 * tokens * (tokens + 1) * width
    return flops.attention([tokens], width) if convention.attention == "full" else 0


def _mlp(shape: Text, tokens: int, convention: Convention) -> int:
    return flops.linear(tokens, shape.width, (convention.mlp or (3 if shape.gated else 2)) * shape.hidden)

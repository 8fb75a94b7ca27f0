"""Token merging inside a live vision tower of `transformers` (CLIP, SigLIP and towers with the same blocks).

While active, every block of the encoder computes

    attention (SDPA, with log(size) added to the logits of the keys)  ->  step of the method  ->  MLP

on the remaining rows. The block whose output is read gives every original patch the feature of the row that it
was merged into, so that whatever follows (projector, placeholders in the text) gets the length it expects; rows of
equal features are then dropped before the language model by `Merging.selections`, which loses nothing. That
costs one gather of (B, N, d), and the projector runs on N tokens.

Blocks after it (LLaVA reads the output of the last block but one) merge nothing, still run on the merged rows, and
return full length too, so that the pooled output and every later hidden state stay meaningful. Hidden
states of blocks before it have the merged length of that block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import compat
from foveate.core.bipartite import Tokens, first_member, key_bias, members
from foveate.core.errors import FoveateError, Refusal
from foveate.core.in_encoder import EncoderMethod, Step, spread
from foveate.core.tokens import EncoderSpec, Selection
from foveate.core.unmerging import expand
from foveate.methods.encoder.dymu import Calibration, Thresholds
from foveate.runtime.patches import Patches

#: Steps of the blocks, given the number of patches of an image.
Steps = Callable[[int], tuple[Step | None, ...]]


@dataclass
class _MergeState:
    """State of one forward pass of the encoder: steps, rows (of width 0), and whether any were merged."""

    steps: tuple[Step | None, ...]
    tokens: Tokens
    merged: bool = False


class Merging:
    """Merging in a vision tower; made by `merging` and `build_merging`."""

    def __init__(self, tower: nn.Module, steps: Steps, *, cls: bool, last: int) -> None:
        self.tower = tower
        self.layers = blocks_of(tower)
        self.cls = cls
        self.last = last
        self._steps = steps
        self._thread = threading.local()  # several threads may share the model

    def attach(self, patches: Patches) -> None:
        """Replace the forward of the blocks by `block`, until `patches` are undone."""
        # Where accelerate wraps `forward` to move inputs and weights, the wrapped one is replaced.
        names = ["_old_forward" if "_old_forward" in vars(layer) else "forward" for layer in self.layers]
        originals = [getattr(layer, name) for layer, name in zip(self.layers, names, strict=True)]
        if any(isinstance(original, _Block) for original in originals):
            raise FoveateError(
                Refusal("attached-already", "this vision tower merges already", "exit that context first")
            )
        for number, (layer, name, original) in enumerate(zip(self.layers, names, originals, strict=True)):
            patches.set(layer, name, _Block(self.block, number, original), fallback=original)
        if compat.CHECKPOINTS_CALLS:
            patches.wrap(self.tower, "forward", self._without_checkpointing)

    def _without_checkpointing(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with compat.without_checkpointed_calls(self.layers):
            return original(*args, **kwargs)

    @property
    def selections(self) -> list[Selection]:
        """Selection of each image of this thread's latest pass.

        `indices` are the first patch of every row, ascending, counted without [CLS]; `assignment` says for every patch
        which of them it went into. `features` is None: at `indices` the tower's output is that of the merged rows.

        Raises:
            FoveateError: nothing has run yet.
        """
        state: _MergeState | None = getattr(self._thread, "state", None)
        if state is None:
            raise FoveateError("the vision tower has not read an image yet; call the model first.")
        return [Selection(indices, assignment=rows) for indices, rows in members(state.tokens, cls=self.cls)]

    def block(
        self, number: int, original: Callable[..., Any], x: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Forward of block `number`; the original one while nothing has been merged."""
        if attention_mask is not None:
            raise FoveateError(
                "merging inside an encoder needs images without padded patches; give images of one size."
            )
        if number == 0:
            self._thread.state = _MergeState(self._steps(x.shape[1] - int(self.cls)), Tokens.start(x[..., :0]))
        state: _MergeState = self._thread.state
        step = state.steps[number] if number <= self.last else None
        if step is None and not state.merged:
            return original(x, attention_mask, **options)
        if number > self.last:  # the block before returned full length: back to one position per row
            x = expand(x, first_member(state.tokens).clamp(max=x.shape[1] - 1))
        layer: Any = self.layers[number]
        x, keys = attention(layer, x, state.tokens.size if state.merged else None)
        if step is not None:
            tokens = step(state.tokens._replace(x=x), keys)
            x, state.tokens, state.merged = tokens.x, tokens._replace(x=tokens.x[..., :0].detach()), True
        x = x + layer.mlp(layer.layer_norm2(x))
        return expand(x, state.tokens.source) if number >= self.last else x


@contextmanager
def merging(
    tower: nn.Module,
    method: EncoderMethod,
    budget: int | Callable[[int], int | None] | None = None,
    *,
    output_layer: int = -1,
    cls: bool | None = None,
) -> Generator[Merging]:
    """Merge tokens inside a vision tower while the context is open, and restore it on exit.

        with merging(model.model.vision_tower, ToMe(), 192, output_layer=-2) as active:
            features = model.get_image_features(pixel_values)
        active.selections[0].indices  # (192,)

    Gradients flow through the merging; gradient checkpointing of the tower is off meanwhile.

    Args:
        tower: `CLIPVisionModel`, `SiglipVisionModel`, or another with the same blocks.
        method: The merging method.
        budget: Patches to keep, or a function of their number; None leaves it to the method.
        output_layer: Block whose output is read, from the start or (negative) from the end; -2 in LLaVA.
        cls: Whether token 0 is [CLS]; None: as the tower's embeddings say.

    Raises:
        FoveateError: the tower has other blocks, or merges already. The first image raises what `method.steps` does.
    """
    with Patches() as patches:
        active = build_merging(tower, method, budget, output_layer=output_layer, cls=cls)
        active.attach(patches)
        yield active


def build_merging(
    tower: nn.Module,
    method: EncoderMethod,
    budget: int | Callable[[int], int | None] | None = None,
    *,
    output_layer: int = -1,
    cls: bool | None = None,
) -> Merging:
    """Build the `Merging` of `merging` without attaching it; same arguments and errors."""
    layers = blocks_of(tower)
    last = EncoderSpec(len(layers), False).layer(output_layer)
    has_cls = _has_cls(tower) if cls is None else cls

    def steps(patches: int) -> tuple[Step | None, ...]:
        count = budget if budget is None or isinstance(budget, int) else budget(patches)
        return method.steps(patches, last + 1, cls=has_cls, count=count)

    return Merging(tower, steps, cls=has_cls, last=last)


@torch.no_grad()
def calibrate(
    tower: nn.Module,
    batches: Iterable[Tensor],
    count: int,
    *,
    output_layer: int = -1,
    inflect: float = 0.0,
    cls: bool | None = None,
) -> Thresholds:
    """Calibrate DyMU's thresholds so that `count` patches per image stay on average.

    Args:
        tower: See `merging`.
        batches: Pixel values (B, 3, height, width) as the tower reads them, all of one size. The authors use batches
            of 64 to 128 images, up to 256,000 images in all.
        count: Patches to keep.
        output_layer: Block whose output is read.
        inflect: Distribution of the merges over the blocks: 0 even, -1 more in the first, +1 more in the last.
        cls: Whether token 0 is [CLS]; None: as the tower's embeddings say.

    Raises:
        FoveateError: there are no images, their sizes differ, or so many tokens cannot be merged.
    """
    layers = blocks_of(tower)
    last = EncoderSpec(len(layers), False).layer(output_layer)
    has_cls = _has_cls(tower) if cls is None else cls
    blocks: list[Calibration] = []
    sizes: set[int] = set()

    def steps(patches: int) -> tuple[Step | None, ...]:
        sizes.add(patches)
        if len(sizes) > 1:
            raise FoveateError(f"calibration needs images of one size; these have {sorted(sizes)} patches.")
        if not 1 <= count <= patches:
            raise FoveateError(f"count must be between 1 and the {patches} patches of an image, not {count}.")
        if not blocks:
            amounts = spread(patches - count, patches, last + 1, has_cls, inflect)
            blocks.extend(Calibration(amount, has_cls) for amount in amounts)
        return tuple(block if block.amount else None for block in blocks)

    images = 0
    with Patches() as patches:
        Merging(tower, steps, cls=has_cls, last=last).attach(patches)
        for batch in batches:
            tower(batch)
            images += len(batch)
    if not blocks:
        raise FoveateError("calibration needs images, and there are none.")
    values = tuple(block.threshold for block in blocks)
    return Thresholds(values, type(tower).__name__, sizes.pop(), count, images)


def attention(layer: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention half of a block, with proportional attention, and its keys.

    Args:
        layer: A block with `layer_norm1` and `self_attn` of `q_proj`, `k_proj`, `v_proj`, `out_proj`.
        x: (B, N, d).
        size: (B, N, 1), see `Tokens`; None: all 1.

    Returns:
        (B, N, d), and (B, N, d / heads) float32 the keys averaged over the heads.
    """
    module = layer.self_attn
    y = layer.layer_norm1(x)
    q, k, v = (
        projection(y).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if size is None else key_bias(size, q.dtype),
        dropout_p=module.dropout if module.training else 0.0,
        scale=module.scale,
    )
    return x + module.out_proj(out.transpose(1, 2).flatten(2)), k.mean(dim=1, dtype=torch.float32)


def blocks_of(tower: nn.Module) -> nn.ModuleList:
    """The blocks of a vision tower.

    Raises:
        FoveateError: the tower's blocks are not those of CLIP and SigLIP.
    """
    holder: Any = getattr(tower, "vision_model", tower)
    layers = getattr(getattr(holder, "encoder", holder), "layers", None)
    parts = ("layer_norm1", "layer_norm2", "mlp", "self_attn")
    projections = ("q_proj", "k_proj", "v_proj", "out_proj", "head_dim", "scale")
    if not isinstance(layers, nn.ModuleList) or not all(
        all(hasattr(layer, part) for part in parts) and all(hasattr(layer.self_attn, part) for part in projections)
        for layer in layers
    ):
        raise FoveateError(
            Refusal(
                "needs-plain-encoder",
                "merging inside the encoder runs on vision towers with the blocks of CLIP and SigLIP, "
                f"not on {type(tower).__name__}",
            )
        )
    return layers


def _has_cls(tower: nn.Module) -> bool:
    holder: Any = getattr(tower, "vision_model", tower)
    if not hasattr(holder, "embeddings"):
        raise FoveateError(
            f"{type(tower).__name__} does not show whether token 0 is [CLS]; pass cls=True or cls=False."
        )
    return hasattr(holder.embeddings, "class_embedding")


class _Block(partial):
    """Forward of a block that merges; its type marks the tower as merging."""

"""Merging inside a live vision tower of `transformers` (CLIP, SigLIP and those built like them).

While active, every block of the encoder computes

    attention (SDPA, with log(size) added to the logits of the keys)  ->  step of the method  ->  MLP

on the rows that are left. The block whose output is read gives every original patch the feature of the row that it
went into, so that whatever follows (projector, placeholders in the text) sees the length it expects; rows of equal
features are then dropped before the language model by the selection that is handed out, which loses nothing. That
costs one gather of (B, N, d), and the projector runs on N tokens.

Blocks after it (LLaVA reads the output of the last block but one) merge nothing, still run on the short rows, and
give out full length too, so that the pooled output and every hidden state that can be read stay meaningful. Hidden
states of blocks before it have the short length of that block.
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

from foveate.encoders.merging.bipartite import Tokens, first_member, key_bias, members
from foveate.encoders.merging.dymu import Calibration, Thresholds
from foveate.encoders.merging.method import EncoderMethod, Step, spread
from foveate.encoders.merging.unmerging import expand
from foveate.errors import FoveateError
from foveate.tokens import Selection, Tower

#: What each block does, given the patches of an image at the start.
Steps = Callable[[int], tuple[Step | None, ...]]


@dataclass
class _Pass:
    """One forward pass through the encoder: the steps of its blocks and where the rows are."""

    steps: tuple[Step | None, ...]
    tokens: Tokens
    short: Tokens | None = None  # rows after a step, without their features: None while nothing has merged
    full: bool = True  # whether the blocks hand on full length


class Merging:
    """Merging that is active in a vision tower; `merging` makes it."""

    def __init__(self, layers: nn.ModuleList, steps: Steps, *, cls: bool, last: int) -> None:
        self.layers = layers
        self.cls = cls
        self.last = last
        self._steps = steps
        self._thread = threading.local()  # several threads may call one model

    @property
    def selections(self) -> list[Selection]:
        """Of each image of this thread's latest pass, which patches stand for which.

        `indices` are the first patch of every row, ascending, counted without [CLS]; `assignment` says for every patch
        which of them it went into. Features are None: those of the tower's output at `indices` are the merged ones.

        Raises:
            FoveateError: nothing has run yet.
        """
        run: _Pass | None = getattr(self._thread, "run", None)
        if run is None:
            raise FoveateError("no image has gone through the vision tower yet.")
        tokens = run.tokens
        return [Selection(indices, assignment=assignment) for indices, assignment in members(tokens, cls=self.cls)]

    def block(
        self, number: int, original: Callable[..., Any], x: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """What block `number` computes."""
        if attention_mask is not None:
            raise FoveateError("merging inside an encoder needs images without padded patches.")
        if number == 0:
            start = Tokens.start(x)
            self._thread.run = _Pass(self._steps(x.shape[1] - int(self.cls)), start._replace(x=x[..., :0]))
        run: _Pass = self._thread.run
        step = run.steps[number] if number <= self.last else None
        merged = run.tokens.x.shape[1] < run.tokens.source.shape[1]
        if step is None and not merged:
            return original(x, attention_mask, **options)
        if number > self.last:  # the block before gave out full length
            first = first_member(run.tokens)
            x = expand(x, first.clamp(max=x.shape[1] - 1))
        layer = self.layers[number]
        tokens = run.tokens._replace(x=x)
        out, keys = attention(layer, tokens.x, tokens.size if merged else None)
        tokens = tokens._replace(x=out)
        if step is not None:
            tokens = step(tokens, keys)
        run.tokens = tokens._replace(x=tokens.x[..., :0].detach())
        x = tokens.x + layer.mlp(layer.layer_norm2(tokens.x))
        return expand(x, tokens.source) if number >= self.last else x

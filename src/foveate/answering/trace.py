"""Timing and token counts of one run, recorded by temporary hooks."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from foveate.models.vit_uhd import ViTUHDModel
from foveate.runtime.patches import in_this_thread

#: Where `transformers` keeps what maps encoder features into the language model's space.
CONNECTORS = ("multi_modal_projector", "connector", "embed_vision", "aligner", "mm_projector", "qformer")


class Trace:
    """Times and token counts of the parts of a model in one run.

    Attributes:
        tokens: tokens that a part gave in its first run: ``"encoder"``, ``"connector"``, and for a ViT-UHD
            ``"patches"`` and the index of each block with a stage.
    """

    def __init__(self, net: Any) -> None:
        self.device = net.device
        base = net.base_model
        self.encoder = _other_than(net, net.get_encoder(modality="image"))
        self.connector = next((part for name in CONNECTORS if (part := getattr(base, name, None)) is not None), None)
        self.prefusion = getattr(base, "prefusion", None)
        self.language_model = _other_than(net, net.get_decoder())
        self.tokens: dict[str | int, int] = {}
        self._spans: dict[str, list[tuple[float, float]]] = {}

    def now(self) -> float:
        """Return the time in seconds after the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def watching(self) -> Generator[None]:
        """Record times and token counts of the parts inside this context; hooks are removed afterwards."""
        with ExitStack() as hooks:
            for name in ("encoder", "connector", "prefusion", "language_model"):
                if (part := getattr(self, name)) is not None:
                    self._time(hooks, name, part)
            if isinstance(self.encoder, ViTUHDModel):
                self._count(hooks, "patches", self.encoder.patch_embed)
                for index in self.encoder.config.merger_layer_index or ():
                    self._count(hooks, index, self.encoder.get_submodule(f"encoder.blocks.{index}.merger"))
            yield

    def _time(self, hooks: ExitStack, name: str, part: nn.Module) -> None:
        begun: list[float] = []

        def before(*_: Any) -> None:
            begun.append(self.now())

        def after(_part: nn.Module, _inputs: Any, output: Any) -> None:
            self._spans.setdefault(name, []).append((begun.pop(), self.now()))
            self.tokens.setdefault(name, _tokens_of(output))

        hooks.callback(part.register_forward_pre_hook(in_this_thread(before)).remove)
        hooks.callback(part.register_forward_hook(in_this_thread(after)).remove)

    def _count(self, hooks: ExitStack, name: str | int, part: nn.Module) -> None:
        def after(_part: nn.Module, _inputs: Any, output: Any) -> None:
            self.tokens.setdefault(name, _tokens_of(output))

        hooks.callback(part.register_forward_hook(in_this_thread(after)).remove)

    def times(self, finished: float) -> dict[str, float]:
        """Return seconds per part; decoding runs from the end of the first pass of the language model to `finished`."""
        times = {}
        for name in ("encoder", "connector"):
            if spans := self._spans.get(name):
                times[name] = sum(end - start for start, end in spans)
        if spans := self._spans.get("language_model"):
            # Before a connector that reads the question, the language model reads it alone; pre-fusion follows it.
            connected = self._spans.get("connector", [(0.0, 0.0)])[0][0]
            questions = [span for span in spans if span[1] <= connected]
            first = spans[len(questions)]
            prefill = [*questions, *self._spans.get("prefusion", [])[:1], first]
            times["prefill"] = sum(end - start for start, end in prefill)
            times["decode"] = finished - first[1]
        return times


def _other_than(net: Any, part: Any) -> nn.Module | None:
    """Return `part`, unless the look-up in transformers fell back to the model itself."""
    return part if isinstance(part, nn.Module) and part is not net and part is not net.base_model else None


def _tokens_of(output: Any) -> int:
    """Count the tokens in a module's output: all axes of its features but the last."""
    if not isinstance(output, torch.Tensor):
        output = getattr(output, "last_hidden_state", None) if hasattr(output, "last_hidden_state") else output[0]
    return output.numel() // output.shape[-1] if isinstance(output, torch.Tensor) and output.numel() else 0

"""Dynamic Pyramid Network: the image is pooled in stages, how much says a router that reads the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate.decoder._folder import check_size, folder, network_of, read_config
from foveate.decoder.method import DecoderMethod, LayerTokens
from foveate.errors import FoveateError
from foveate.tokens import Crop, Need, Selection, Tower, wide
from foveate.trained import Trained

#: What logits are divided by before the softmax.
TEMPERATURE = 10.0
#: Images of fewer tokens are left as they are.
LEAST = 16


@dataclass(frozen=True)
class DPN(Trained, DecoderMethod):
    r"""Pools the image at several depths by windows of 1 x 1, 2 x 2 or 4 x 4 tokens, chosen by a trained router.

    Before a pooling layer a router reads the hidden state c of the token that asks for the answer,
    $p = \text{softmax}(W_2\,\text{GELU}(W_1\,\text{LN}(c)) / 10)$, and the expert (window) of the greatest p pools the
    rows and columns of tokens that are there; text stays. Images of fewer than 16 tokens, or than the largest window
    has, stay as they are.

    "Dynamic Pyramid Network for Efficient Multimodal Large Language Model" (Ai et al., arXiv 2503.20322); the windows
    are its Dynamic Pooling Experts, max pooling by default, before layers 8, 16 and 24 of 32, the last without 4 x 4.
    There the router and the language model are trained together, and pooled tokens are multiplied by p, which makes
    them shorter; `scaled` does so, for models that were trained with it. Here routers are trained alone
    (`foveate train-pruner --kind dpn`); with them in the `plan` of a recipe's stage the language model learns too. The
    paper's prompts hold a router token; the asking token is its code's fallback. Choices of ours: incomplete windows
    at the edges are pooled too; a pooled token stands at its first member; newlines between rows stay; tiles and frames
    are pooled each by itself.

    Args:
        weights: A folder that `foveate train-pruner --kind dpn` wrote; by default `dpn/` beside the model's weights.
        operation: How a window becomes one token.
        scaled: Multiply the image by the probability of the chosen expert.
    """

    weights: str = ""
    operation: Literal["max", "mean"] = "max"
    scaled: bool = False

    name: ClassVar[str] = "dpn"
    title: ClassVar[str] = "Dynamic Pyramid Network for Efficient Multimodal Large Language Model"
    paper: ClassVar[str] = "arXiv 2503.20322"
    command: ClassVar[str] = "foveate train-pruner --kind dpn"
    files: ClassVar = folder("dpn")
    exact: ClassVar[bool] = False
    budget: ClassVar = "none"
    positions: ClassVar = "contiguous"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.operation not in ("max", "mean"):
            raise FoveateError(f"dpn: operation is max or mean, not {self.operation!r}.")

    def needs(self, tower: Tower) -> tuple[Need, ...]:
        """Nothing of the encoder; its weights."""
        self.check_weights()
        return ()

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Those that its routers were trained for; as long as none are known, those of the paper."""
        return tuple(read_config(self.path, self.name)["layers"]) if self.path else default_layers(num_layers)

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        router: Router = network_of(self.path, self.name, build, tokens.layer, tokens.device)
        check_size(self.name, self.path, router.size, tokens.features.shape[1])
        if too_small(len(tokens), router.strides):
            return Selection(torch.arange(len(tokens), device=tokens.device))
        with torch.no_grad():
            shares = router(context(tokens))
        best = int(shares.argmax())
        return pooled(tokens, router.strides[best], self.operation, float(shares[best]) if self.scaled else 1.0)


class Router(nn.Module):
    """Probabilities of the experts of one pooling layer.

    Args:
        size: D, of the language model's hidden states.
        strides: Sides of the experts' windows.
    """

    def __init__(self, size: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.size, self.strides = size, tuple(strides)
        self.norm = nn.LayerNorm(size)
        self.layers = nn.Sequential(
            nn.Linear(size, max(1, size // 4), bias=False),
            nn.GELU(),
            nn.Linear(max(1, size // 4), len(self.strides), bias=False),
        )

    def forward(self, context: Tensor) -> Tensor:
        """(experts,) float32 of a hidden state (D,)."""
        return (self.layers(self.norm(context.float())) / TEMPERATURE).softmax(dim=-1)


def build(about: dict[str, Any], layer: int) -> Router:
    """The router of a layer that a folder describes."""
    return Router(int(about["size"]), about["strides"][str(layer)])


def default_layers(num_layers: int) -> tuple[int, ...]:
    """Layers 8, 16 and 24 of 32, scaled to the model; at least 1."""
    return tuple(sorted({max(1, round(num_layers * quarter / 4)) for quarter in (1, 2, 3)} - {num_layers}))


def default_strides(layers: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Windows of up to 4 x 4, in the last layer of up to 2 x 2."""
    return {layer: (1, 2) if layer == max(layers) else (1, 2, 4) for layer in layers}


def too_small(count: int, strides: Sequence[int]) -> bool:
    """Whether an image of so many tokens is left as it is."""
    return count < max(LEAST, max(strides) ** 2)


def context(tokens: LayerTokens) -> Tensor:
    """(D,) what a router reads: the hidden state where an answer is asked for, mean over several answers."""
    rows = tokens.asking if len(tokens.asking) else tokens.text[-1:]
    return tokens.sequence[rows].float().mean(dim=0)


def windows(crops: Sequence[Crop], count: int, stride: int) -> Tensor:
    """The window (count,) of every token, numbered by their first tokens; a token in no crop is one of its own.

    Rows and columns of a crop that have no token any more do not count.

    Args:
        crops: `index` are places among the tokens, -1 for those that are gone.
        count: Tokens.
        stride: Side of a window.
    """
    device = crops[0].index.device if crops else None
    own = torch.arange(count, device=device)
    taken = count
    for crop in crops:
        present = crop.index >= 0
        cells = present.nonzero().flatten()
        if not len(cells):
            continue
        there = present.view(*crop.grid)
        row, column = (there.any(dim=dim).cumsum(0) - 1 for dim in (1, 0))
        wide = int(column[-1]) // stride + 1
        window = row[cells // crop.grid.columns] // stride * wide + column[cells % crop.grid.columns] // stride
        own[crop.index[cells]] = taken + window
        taken += int(window.max()) + 1
    # Windows by number, then by the first of their tokens.
    number = own.unique(return_inverse=True)[1]
    places = torch.arange(count, device=own.device)
    first = places.new_full((int(number.max()) + 1,), count).scatter_reduce(0, number, places, "amin")
    return first.argsort().argsort()[number]


def pooled(tokens: LayerTokens, stride: int, operation: str = "max", scale: float = 1.0) -> Selection:
    """The image pooled by windows of `stride` x `stride` tokens.

    Args:
        tokens: Before a layer.
        stride: 1 keeps every token.
        operation: "max" or "mean".
        scale: Factor of the outcome.
    """
    if stride == 1:
        everything = torch.arange(len(tokens), device=tokens.device)
        if scale == 1:
            return Selection(everything)
        return Selection(everything, tokens.features * scale, everything)
    window = windows(tokens.crops, len(tokens), stride)
    rows = int(window.max()) + 1
    places = torch.arange(len(tokens), device=tokens.device)
    first = places.new_full((rows,), len(tokens)).scatter_reduce(0, window, places, "amin")
    features = wide(tokens.features)
    index = window[:, None].expand_as(features)
    found = features.new_zeros(rows, features.shape[1]).scatter_reduce(
        0, index, features, "amax" if operation == "max" else "mean", include_self=False
    )
    return Selection(first, (found * scale).to(tokens.features.dtype), window)

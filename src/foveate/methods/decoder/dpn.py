"""Dynamic Pyramid Network: pooling in stages, with windows chosen by a trained router."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.network_folder import check_size, folder, network_of, read_config
from foveate.core.tokens import Crop, EncoderSpec, Need, Selection, wide
from foveate.core.trained import Trained

#: Of the softmax of a router.
TEMPERATURE = 10.0
#: Images of fewer tokens are not pooled.
LEAST_TOKENS = 16
#: In training, experts that would leave fewer tokens are not drawn.
LEAST_REMAINING = 18


@dataclass(frozen=True)
class DPN(Trained, DecoderMethod):
    r"""Pools the image at several depths by windows of 1 x 1, 2 x 2 or 4 x 4 tokens, chosen by a trained router.

    Before a pooling layer a router reads the hidden state c of the last token of the prompt, $p =
    \text{softmax}(W_2\,\text{GELU}(W_1\,\text{LN}(c)) / 10)$. The expert (window) e of the greatest p pools the rows
    and columns of the current tokens, which are then multiplied by $p_e$; text does not change. Images of fewer than 16
    tokens, or than the largest window has, are not pooled. In training, e is drawn from p, again where fewer than 18
    tokens would remain; the gradient reaches the router through $p_e$, and the largest members of a window.

    "Dynamic Pyramid Network for Efficient Multimodal Large Language Model" (Ai et al., arXiv 2503.20322); the windows
    are its Dynamic Pooling Experts, max pooling by default, before layers 8, 16 and 24 of 32, the last without 4 x 4.
    Routers and language model learn together there: `plan: dpn` in a stage of a recipe does that, with a routing loss
    of weight 0.001. `foveate train-method dpn` trains routers alone, without the factor, which a frozen language model
    cannot bear; their folder says so. The paper's prompts hold a router token; the last token is its code's fallback.
    Our choices: the gradient goes into the router alone, not into c; incomplete windows at the edges are pooled too; a
    pooled token takes the place of its first member; newlines between rows stay; tiles and frames are pooled each by
    itself.

    Args:
        weights: A folder that `foveate train-method dpn` wrote; by default `dpn/` next to the model's weights.
        operation: How a window becomes one token.
        scaled: Multiply the image by the probability of the chosen expert; None: as the folder of the routers says, and
            if it says nothing, as the paper does.
    """

    weights: str = ""
    operation: Literal["max", "mean"] = "max"
    scaled: bool | None = None
    #: Routers in training, by layer as text, and a list for their probabilities; no fields, as a plan is text.
    _learning: ClassVar[tuple[nn.ModuleDict, list[tuple[int, Tensor]]] | None] = None

    name: ClassVar[str] = "dpn"
    mechanism: ClassVar = ("transformation",)
    title: ClassVar[str] = "Dynamic Pyramid Network for Efficient Multimodal Large Language Model"
    paper: ClassVar[str] = "arXiv 2503.20322"
    files: ClassVar = folder("dpn")
    static_count: ClassVar[bool] = False
    budget: ClassVar = "none"
    positions: ClassVar = "contiguous"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.operation not in ("max", "mean"):
            raise FoveateError(f"dpn: operation is max or mean, not {self.operation!r}.")
        if self.scaled not in (None, True, False):
            raise FoveateError(f"dpn: scaled is True or False, not {self.scaled!r}.")

    def learning(self, routers: nn.ModuleDict, record: list[tuple[int, Tensor]]) -> DPN:
        """This method with routers in training.

        Args:
            routers: By layer, as text.
            record: List to which the layer and the probabilities (experts,) of every pooled image are appended.
        """
        learner = copy.copy(self)
        object.__setattr__(learner, "_learning", (routers, record))
        return learner

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """Nothing of the encoder; its weights."""
        if self._learning is None:
            self.check_weights()
        return ()

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The layers that its routers were trained for; without weights, those of the paper."""
        if self._learning is not None:
            return tuple(sorted(map(int, self._learning[0])))
        return tuple(read_config(self.path, self.name)["layers"]) if self.path else default_layers(num_layers)

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`."""
        router = self._router(tokens)
        if too_small(len(tokens), router.strides):
            return Selection(torch.arange(len(tokens), device=tokens.device))
        state = context(tokens).detach()
        with torch.no_grad():
            probabilities = router(state)
            best = drawn(tokens, probabilities, router.strides) if tokens.learning else int(probabilities.argmax())
        record = None if self._learning is None else self._learning[1]

        def factor() -> Tensor:
            """The probability of the expert, with its gradient where one is asked for."""
            probabilities = router(state)
            if record is not None and torch.is_grad_enabled():
                record.append((tokens.layer, probabilities))
            return probabilities[best]

        return pooled(tokens, router.strides[best], self.operation, factor if self._scales else None)

    def _router(self, tokens: LayerTokens) -> Router:
        if self._learning is not None:
            learned: Any = self._learning[0][str(tokens.layer)]
            return learned
        router: Router = network_of(self.path, self.name, build, tokens.layer, tokens.device)
        check_size(self.name, self.path, router.size, tokens.features.shape[1])
        return router

    @property
    def _scales(self) -> bool:
        if self.scaled is not None:
            return self.scaled
        if self._learning is not None or not self.path:
            return True
        return bool(read_config(self.path, self.name).get("scaled", True))


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
    """Whether an image of `count` tokens is not pooled."""
    return count < max(LEAST_TOKENS, max(strides) ** 2)


def drawn(tokens: LayerTokens, probabilities: Tensor, strides: Sequence[int]) -> int:
    """A random expert, with its probability in `probabilities` (experts,) among those that leave enough tokens.

    If no allowed expert has a probability above 0, the smallest window is taken.
    """
    remaining = [int(windows(tokens.crops, len(tokens), stride).max()) + 1 for stride in strides]
    few = [stride > 1 and count < LEAST_REMAINING for stride, count in zip(strides, remaining, strict=True)]
    probabilities = probabilities.masked_fill(torch.tensor(few, device=probabilities.device), 0)
    return int(probabilities.multinomial(1)) if float(probabilities.sum()) > 0 else 0


def context(tokens: LayerTokens) -> Tensor:
    """Hidden state (D,) that a router reads: of the last token of the prompt, mean over several answers."""
    prompt = tokens.prompt
    rows = prompt.asking if len(prompt.asking) else prompt.text[-1:]
    return prompt.hidden[rows].float().mean(dim=0)


def windows(crops: Sequence[Crop], count: int, stride: int) -> Tensor:
    """The window (count,) of every token, numbered by their first tokens; a token in no crop is one of its own.

    Rows and columns of a crop without any tokens do not count.

    Args:
        crops: `index` are indices of tokens, -1 for those that were dropped.
        count: Tokens.
        stride: Side of a window.
    """
    device = crops[0].index.device if crops else None
    labels = torch.arange(count, device=device)
    next_label = count
    for crop in crops:
        present = crop.index >= 0
        cells = present.nonzero().flatten()
        if not len(cells):
            continue
        occupied = present.view(*crop.grid)
        row, column = (occupied.any(dim=dim).cumsum(0) - 1 for dim in (1, 0))
        wide = int(column[-1]) // stride + 1
        window = row[cells // crop.grid.columns] // stride * wide + column[cells % crop.grid.columns] // stride
        labels[crop.index[cells]] = next_label + window
        next_label += int(window.max()) + 1
    # Windows by number, then by the first of their tokens.
    number = labels.unique(return_inverse=True)[1]
    indices = torch.arange(count, device=labels.device)
    first = indices.new_full((int(number.max()) + 1,), count).scatter_reduce(0, number, indices, "amin")
    return first.argsort().argsort()[number]


def pooled(
    tokens: LayerTokens, stride: int, operation: str = "max", factor: Callable[[], Tensor] | None = None
) -> Selection:
    """The image pooled by windows of `stride` x `stride` tokens.

    Args:
        tokens: Before a layer.
        stride: 1 keeps every token.
        operation: "max" or "mean".
        factor: Gives what the outcome is multiplied by; None: it stays as it is.
    """
    indices = torch.arange(len(tokens), device=tokens.device)
    if stride == 1 and factor is None:
        return Selection(indices)
    window = indices if stride == 1 else windows(tokens.crops, len(tokens), stride)
    rows = int(window.max()) + 1
    first = indices.new_full((rows,), len(tokens)).scatter_reduce(0, window, indices, "amin")

    def remade(features: Tensor) -> Tensor:
        x = wide(features)
        if stride > 1:
            index = window[:, None].expand_as(x)
            x = x.new_zeros(rows, x.shape[1]).scatter_reduce(
                0, index, x, "amax" if operation == "max" else "mean", include_self=False
            )
        return (x if factor is None else x * factor()).to(features.dtype)

    with torch.no_grad():
        return Selection(first, remade(tokens.features), window, remade=remade)

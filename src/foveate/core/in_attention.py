"""Base classes of methods that change attention inside the language model and drop no token from the sequence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.attention import weight_blocks
from foveate.core.in_decoder import DecoderMethod, LayerTokens
from foveate.core.tokens import Selection


@dataclass(frozen=True)
class AttentionInputs:
    """One sequence in the attention of one layer, just before it happens.

    Args:
        query: (H, L, d) of the new tokens, rotated.
        key: (H', K, d) of all tokens that the layer remembers, the new ones last; H' divides H.
        scaling: Factor of the logits.
        allowed: (L, K) bool, what each new token may see.
        visual: (K,) bool, which keys are of images.
        text: (K,) bool, which are of text; padding is neither.
        layer: The layer, 0-based.
        num_layers: Layers of the language model.
    """

    query: Tensor
    key: Tensor
    scaling: float
    allowed: Tensor
    visual: Tensor
    text: Tensor
    layer: int
    num_layers: int

    @property
    def past(self) -> int:
        """Tokens before the new ones."""
        return self.key.shape[1] - self.query.shape[1]

    def blocks(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Attention (b, K) float32 that the new tokens `rows` (r,) would pay, mean over heads, in blocks of rows (b,).

        A row that may attend to nothing is 0.
        """
        for some, weights in weight_blocks(self.query, self.key, self.scaling, rows, lambda some: self.allowed[some]):
            yield some, weights.nan_to_num().mean(dim=0)

    def rows(self, rows: Tensor) -> Tensor:
        """The same of all rows, (r, K)."""
        blocks = [weights for _, weights in self.blocks(rows)]
        return torch.cat(blocks) if blocks else self.query.new_zeros(0, self.key.shape[1], dtype=torch.float32)

    def attention_received(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Attention (c,) float32 that the new tokens `rows` would pay to the keys `columns`, summed over rows."""
        total = torch.zeros(len(columns), dtype=torch.float32, device=columns.device)
        for _, weights in self.blocks(rows):
            total += weights[:, columns].sum(dim=0)
        return total


@dataclass(frozen=True)
class AttentionMethod(DecoderMethod):
    """A method that changes the attention of some layers. All tokens go on to the next one.

    Layer 0 is possible here where nothing has to have run before.
    """

    budget: ClassVar = "none"
    first_layer: ClassVar[int] = 0

    def select(self, tokens: LayerTokens, count: int) -> Selection:
        """See `DecoderMethod.select`: everything stays."""
        return Selection(torch.arange(len(tokens), device=tokens.device))


@dataclass(frozen=True)
class MaskMethod(AttentionMethod):
    """A method that masks pairs of tokens from each other. It saves no computation."""

    @abstractmethod
    def attention_mask(self, inputs: AttentionInputs, remembered: Tensor | None) -> tuple[Tensor, Tensor]:
        """Which pairs of one sequence are hidden.

        Args:
            inputs: The sequence. Where there is a cache, L new tokens are a part of it.
            remembered: (t, ...) what was remembered of the last t tokens of text in the cache; None: there is no cache.

        Returns:
            (L, K) bool, True for what a new token shall not see; and what to remember of all text so far, (T, ...).
        """


@dataclass(frozen=True)
class SparseMethod(AttentionMethod):
    """A method that, in prefill of a prompt with images, lets only some tokens attend, and only to each other.

    The others skip the layer's attention; all go on. Tokens that attend also attend to earlier cached ones. Generated
    text attends to everything. The cache stores the tokens that attend in few bits, the others in fewer.
    """

    static_count: ClassVar = False
    exact_cache: ClassVar = False

    @property
    @abstractmethod
    def bits(self) -> tuple[int, int]:
        """Bits of the cached numbers of tokens that attend, and of the others: 1, 2, 4, 8, or 16 for as they come."""

    @property
    @abstractmethod
    def residual(self) -> int:
        """Written tokens that are cached as they come before they are stored in few bits."""

    @abstractmethod
    def active_tokens(self, inputs: AttentionInputs) -> Tensor:
        """Which of the new tokens attend, (L,) bool; the last one that is no padding always does."""


@dataclass(frozen=True)
class StepChoice:
    """The cached image tokens that each token of later text attends to.

    Args:
        attention: (t, N) float32 of the tokens to each, before the first layer of the method; mean over heads.
        attended: (t, N) bool.
    """

    attention: Tensor
    attended: Tensor


def without_last(choices: tuple[StepChoice, ...], count: int) -> tuple[StepChoice, ...]:
    """Choices of parts of a text, without those of its last `count` tokens."""
    while count and choices:
        *rest, last = choices
        if len(last.attended) > count:
            return (*rest, StepChoice(last.attention[:-count], last.attended[:-count]))
        choices, count = tuple(rest), count - len(last.attended)
    return choices


@dataclass(frozen=True)
class DecodeStepMethod(AttentionMethod):
    """A method that lets every token after the prompt attend to some of the cached image tokens, chosen for it.

    The prompt with its images is read as without the method. The cache keeps all tokens, so that those that one token
    ignores are there for the next. The method's layers share one choice, by the attention of the layer before the first
    of them. How many tokens are read at a time makes no difference.
    """

    exact_cache: ClassVar = False
    first_layer: ClassVar[int] = 1

    @abstractmethod
    def choose(self, attention: Tensor, previous: StepChoice | None) -> StepChoice:
        """The image tokens that each of some tokens attends to.

        Args:
            attention: (t, N) float32 of the tokens to all cached image tokens of their row, mean over heads.
            previous: Of some tokens before them; None: they are the first after the prompt.
        """

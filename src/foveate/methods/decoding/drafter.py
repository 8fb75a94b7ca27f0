"""Interface of drafts: what speculative decoding calls, and the parts of the model that a draft shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from foveate.methods.decoding.tree import Shape, Tree


@dataclass(frozen=True)
class Target:
    """The two parts of a model that its draft shares.

    Args:
        embed: Embeddings (n, d) of token ids (n,).
        head: Logits (n, V) of features (n, d), as the output layer gives them.
    """

    embed: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]

    def log_probabilities(self, features: Tensor) -> Tensor:
        """(n, V) float32 of features (n, d)."""
        return self.head(features).float().log_softmax(dim=-1)


class Session(ABC):
    """A conversation that is being drafted for."""

    @abstractmethod
    def extend(self, features: Tensor, following: Tensor, visual: Tensor) -> None:
        """Append accepted positions: the prompt, then what the model generates.

        Args:
            features: (p, d) of the new positions, in order: the input of the model's output layer.
            following: (p, d) embeddings of the token after each of them.
            visual: (p,) bool, which of the positions are of images.
        """

    @abstractmethod
    def propose(self, shape: Shape) -> Tree:
        """A tree of candidates for the tokens after the last one of `extend`."""


class Drafter(ABC):
    """Anything that can draft; `Draft` is the trained kind."""

    #: Default size of the tree.
    shape: ClassVar[Shape] = Shape()

    @abstractmethod
    def check(self, model: Any) -> None:
        """Raise FoveateError where it cannot draft for this model."""

    @abstractmethod
    def session(self, target: Target) -> Session:
        """Begin a conversation."""

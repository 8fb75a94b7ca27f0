"""Base class of methods that select tokens by activated neurons and prune MLPs in decoding."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from foveate.core.in_decoder import DecoderMethod


@dataclass(frozen=True)
class NeuronMethod(DecoderMethod):
    """A method that reads activations of the MLP in the layer before the one where it acts.

    They come from `LayerTokens.activations`. From that layer on every MLP keeps the core neurons of a prompt with
    images, and the text after it is generated with these alone: their rows and columns of the weights are copied once
    for a prompt.
    """

    @abstractmethod
    def core(self, activations: Tensor) -> Tensor:
        """The core neurons (c,) int64, ascending, of a sentence.

        Args:
            activations: (M, F) what enters the last matrix of the MLP, for every token that is no padding.
        """

"""What a method is that chooses tokens by the neurons they activate, and lets written text use some neurons only."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from foveate.core.in_decoder import DecoderMethod


@dataclass(frozen=True)
class NeuronMethod(DecoderMethod):
    """A method that reads activations of the MLP in the layer before the one where it acts.

    It gets them from `LayerTokens.activations`.

    From that layer on every MLP keeps the core neurons of a prompt with images, and text that is written after it is
    worked out with these alone: their rows and columns of the weights are copied once for a prompt.
    """

    @abstractmethod
    def core(self, activations: Tensor) -> Tensor:
        """The core neurons (c,) int64, ascending, of a sentence.

        Args:
            activations: (M, F) what enters the last matrix of the MLP, for every token that is no padding.
        """

"""CoViPAL: a trained module before a layer scores visual tokens for the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.in_decoder import DecoderScorer, LayerTokens
from foveate.core.network_folder import check_size, folder, network_of, read_config
from foveate.core.tokens import EncoderSpec, Need
from foveate.core.trained import Trained


@dataclass(frozen=True)
class CoViPAL(Trained, DecoderScorer):
    r"""Keeps, before a decoder layer, the tokens that a small trained module scores highest for the question.

    $S = p_\theta(H_v, H_t)$ with the hidden states $H_v$ of the image's tokens and $H_t$ of the question as they enter
    the layer; the count tokens with the greatest S go on. Each layer has a module of its own; the model's weights do
    not change. A module is trained in two stages (`foveate train-method covipal`): first on the attention that tokens
    receive in a deeper layer, then to keep the answers of the full model.

    "CoViPAL: Layer-wise Contextualized Visual Token Pruning for Large Vision-Language Models" (Tang et al., Findings of
    EMNLP 2025, arXiv 2508.17243). The authors' code and the sizes of their module were not at hand. Our choices: the
    module (`Pruner`); the remaining details of the second stage, see `foveate.training.methods.covipal`; one layer, 2,
    by default; original positions.

    Args:
        weights: A folder that `foveate train-method covipal` wrote; by default `covipal/` next to the model's weights.
    """

    weights: str = ""

    name: ClassVar[str] = "covipal"
    mechanism: ClassVar = ("query",)
    title: ClassVar[str] = "CoViPAL: Layer-wise Contextualized Visual Token Pruning for Large Vision-Language Models"
    paper: ClassVar[str] = "arXiv 2508.17243"
    files: ClassVar = folder("covipal")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """Nothing of the encoder; its weights."""
        self.check_weights()
        return ()

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The layers that its modules were trained for; without weights, the default layer."""
        return tuple(read_config(self.path, self.name)["layers"]) if self.path else default_layers(num_layers)

    def score(self, tokens: LayerTokens) -> Tensor:
        """Scores of the layer's module, for the question."""
        pruner: Pruner = network_of(self.path, self.name, build, tokens.layer, tokens.device)
        check_size(self.name, self.path, pruner.size, tokens.features.shape[1])
        with torch.no_grad():
            return pruner(tokens.features, tokens.prompt.hidden[tokens.question])


def default_layers(num_layers: int) -> tuple[int, ...]:
    """Layer 2, or 1 of a model that has no more than two."""
    return (min(2, max(1, num_layers - 1)),)


class Pruner(nn.Module):
    """Scores of visual tokens for a question: both projected to a small width, one block of attention among all.

    Args:
        size: D, of the language model's hidden states.
        width: Of the block.
        heads: Of its attention; the greatest divisor of the width up to this is used.
    """

    def __init__(self, size: int, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.size, self.width = size, width
        self.heads = next(n for n in range(min(heads, width), 0, -1) if width % n == 0)
        self.image, self.text = nn.Linear(size, width), nn.Linear(size, width)
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, self.heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Scores (N,) float32 of tokens (N, D) for a question (T, D)."""
        image, text = (F.layer_norm(x.float(), (self.size,)) for x in (image, text))
        x = torch.cat([self.image(image), self.text(text)])
        y = self.before(x)
        # Queries are the image's; keys and values also the question's.
        x = x[: len(image)] + self.attention(y[: len(image)], y, y, need_weights=False)[0]
        return self.head(x + self.mlp(self.after(x)))[:, 0]


def build(about: dict[str, Any], layer: int) -> Pruner:
    """The module that a folder describes."""
    return Pruner(int(about["size"]), int(about["width"]), int(about["heads"]))

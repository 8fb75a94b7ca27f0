"""FLASH (SpecFLASH): a draft that compresses images in feature space and predicts several tokens at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.methods.decoding.draft import Draft, DraftConfig, DraftSession, Target, answer_loss, feature_loss, runs
from foveate.methods.decoding.tree import Shape, Tree, grow


@dataclass(frozen=True)
class FlashConfig(DraftConfig):
    """Sizes of a FLASH draft.

    Args:
        queries: Tokens that replace a longer image.
        guesses: k, features guessed at a time.
    """

    queries: int = 64
    guesses: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("queries", "guesses"):
            if getattr(self, name) < 1:
                raise FoveateError(f"{name} of a draft must be 1 or more, not {getattr(self, name)}.")


class Flash(Draft):
    r"""A draft that compresses images in the model's feature space and predicts k tokens in one pass.

    The features F (n, d) of an image become $C = \mathrm{softmax}(A F^\top) F$ with learned queries A (64, d); image
    positions are features alone, text positions join features and embeddings. After one causal decoder layer an MLP $d
    \to 4d \to k d$ predicts the k next features of every position at once; the model's output layer turns them into
    tokens. Trained by $\mathrm{SmoothL1} + 0.1\,\mathrm{CE}$ over all k, where slot i of position t (from 0 on) is
    compared with $f_{t+1+i}$; slots beyond the end are left out.

    "FLASH: Latent-Aware Semi-Autoregressive Speculative Decoding for Multimodal Tasks" (arXiv 2505.12728, later
    SpecFLASH). The authors' released code does not run and departs from the paper (grouped attention that sums over all
    groups, no residual, no norm); nothing of it is used. Our choices: the layer is a full decoder layer with norms and
    residuals, the MLP adds to its output, an image of no more tokens than A has queries is not compressed, a chain of k
    tokens is drafted by default, or a tree whose levels are the k predictions.
    """

    kind: ClassVar[str] = "flash"
    config_class: ClassVar[type[DraftConfig]] = FlashConfig
    config: FlashConfig
    shape: ClassVar[Shape] = Shape(5, 1, 5)

    def __init__(self, config: FlashConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.guesses = config.guesses
        self.queries = nn.Parameter(torch.randn(config.queries, width) * width**-0.5)
        self.ahead = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, config.guesses * width))

    def shorten(self, fused: Tensor, features: Tensor, visual: Tensor, generator: torch.Generator) -> Tensor:
        """See `Draft.shorten`."""
        return torch.cat(
            [self.compress(features[part]) if is_image else fused[part] for is_image, part in runs(visual)]
        )

    def compress(self, features: Tensor) -> Tensor:
        """The features (n, d) of one image as at most `queries` of them."""
        if len(features) <= len(self.queries):
            return features
        return (self.queries @ features.T).softmax(dim=-1) @ features

    def guess(self, hidden: Tensor) -> Tensor:
        """See `Draft.guess`: (m, k, d)."""
        return hidden[:, None] + self.ahead(hidden).unflatten(-1, (self.guesses, -1))

    def loss(self, guessed: Tensor, features: Tensor, target: Target) -> tuple[Tensor, dict[str, float]]:
        """See `Draft.loss`."""
        ahead, slot = aligned(len(guessed), self.guesses)
        ahead, slot = ahead.to(guessed.device), slot.to(guessed.device)
        guesses, targets = guessed[ahead, slot], features[ahead + slot]
        distance, cross_entropy = feature_loss(guesses, targets), answer_loss(guesses, targets, target)
        return distance + 0.1 * cross_entropy, {
            "feature_loss": float(distance.detach()),
            "answer_loss": float(cross_entropy.detach()),
        }

    def propose(self, known: DraftSession, shape: Shape) -> Tree:
        """See `Session.propose`: level i of the tree is prediction i, whatever its parent; k levels at most."""
        log_probabilities = known.target.log_probabilities(known.guessed[0])  # ty: ignore[not-subscriptable]
        level = 0

        def advance(tokens: Tensor, before: Tensor) -> Tensor:
            nonlocal level
            level += 1
            return log_probabilities[level].expand(len(tokens), -1)

        return grow(
            log_probabilities[0], advance, Shape(min(shape.depth, len(log_probabilities)), shape.top_k, shape.tokens)
        )


def aligned(count: int, guesses: int) -> tuple[Tensor, Tensor]:
    """(position, slot) of every guess whose true feature is known: slot i of position j is j + i, below `count`."""
    position = torch.arange(count)[:, None].expand(-1, guesses)
    slot = torch.arange(guesses).expand(count, -1)
    known = position + slot < count
    return position[known], slot[known]

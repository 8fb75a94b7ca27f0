"""Explainability-based compression: a trained network predicts the relevance of tokens for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.core.files import stamp
from foveate.core.pre_llm import PreLLMScorer
from foveate.core.tokens import Crop, EncoderSpec, Need, VisualTokens
from foveate.core.trained import Trained, read_file

KIND = "foveate relevance mapper"


@dataclass(frozen=True)
class Relevance(Trained, PreLLMScorer):
    """Keeps the tokens that a small trained network predicts to be relevant for the answer, from first-layer attention.

    The attention of the user's own words to the visual tokens in the language model's first layer, as a picture, is
    mapped to scores by a fully convolutional network (arXiv 2506.01097). It has learned the relevance of visual tokens
    for answers, computed by attention x gradient roll-out (`rollout`), for images of any size. Words before the image
    cannot attend to it; where no word of the user comes after it, all text after the image counts.

    There is no public code. The roll-out rule (Chefer et al., 2021), the network, its input scaling and the loss are
    our choices, not the paper's, whose details we do not know. Every crop or frame is mapped as a picture of its own.

    Args:
        weights: A trained network, a file that `foveate train-method relevance` wrote; by default
            `relevance.safetensors` next to the model's weights.
    """

    weights: str = ""

    name: ClassVar[str] = "relevance"
    mechanism: ClassVar = ("query", "attention")
    title: ClassVar[str] = (
        "Generic Token Compression in Multimodal Large Language Models from an Explainability Perspective"
    )
    paper: ClassVar[str] = "arXiv 2506.01097"
    files: ClassVar = ("relevance.safetensors",)

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """First-layer attention."""
        self.check_weights()
        return (Need("first_layer_attention"),)

    def score(self, tokens: VisualTokens) -> Tensor:
        """Relevance for the answer, predicted by the network."""
        attention = tokens.get(*self.needs(tokens.tower)).float()
        mapper = _mapper(str(self.path), stamp(self.path), str(tokens.device))
        crop = tokens.crops[0]
        with torch.no_grad():
            scores = torch.full_like(attention, -torch.inf)
            scores[crop.present] = mapper(as_picture(attention, crop)).flatten()[crop.index >= 0]
        return scores


def as_picture(values: Tensor, crop: Crop) -> Tensor:
    """Values (N,) of tokens in the rows and columns of a crop, 0 where it has no token."""
    picture = values.new_zeros(crop.grid.size)
    picture[crop.index >= 0] = values[crop.present]
    return picture.view(*crop.grid)


class Mapper(nn.Module):
    """Attention as a picture to scores, by convolutions only: any number of rows and columns.

    Args:
        width: Channels.
        depth: Layers between the first and the last.
    """

    def __init__(self, width: int = 16, depth: int = 1) -> None:
        super().__init__()
        self.width, self.depth = width, depth
        sizes = [1, *[width] * (depth + 1)]
        hidden = [m for a, b in pairwise(sizes) for m in (nn.Conv2d(a, b, 3, padding=1), nn.GELU())]
        self.layers = nn.Sequential(*hidden, nn.Conv2d(width, 1, 1))

    def forward(self, attention: Tensor) -> Tensor:
        """Scores (rows, columns) of attention (rows, columns), whose scale does not matter."""
        level = attention / attention.mean().clamp(min=torch.finfo(attention.dtype).tiny)
        return self.layers(level.log1p()[None, None])[0, 0]

    def save(self, path: str | Path) -> None:
        """Write weights and sizes to a safetensors file."""
        about = {"kind": KIND, "width": str(self.width), "depth": str(self.depth)}
        save_file({name: value.detach().contiguous().cpu() for name, value in self.state_dict().items()}, path, about)

    @classmethod
    def load(cls, path: str | Path) -> Mapper:
        """Read what `save` wrote.

        Raises:
            FoveateError: it is not there, or something else.
        """
        about, tensors = read_file(path, KIND, "relevance")
        mapper = cls(int(about["width"]), int(about["depth"]))
        mapper.load_state_dict(tensors)
        return mapper.eval()


@lru_cache(maxsize=4)
def _mapper(path: str, changed: tuple[Any, ...], device: str) -> Mapper:
    return Mapper.load(path).to(device)


def rollout(attentions: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Relevance of every position for every other (L, L): R = I, then R + mean_h((gradient * A)^+) R layer by layer.

    Args:
        attentions: A of every layer, first to last, (H, L, L) each, rows are queries.
        gradients: Of what is explained, such as the log-probability of an answer, by A; same shapes.
    """
    size = attentions[0].shape[-1]
    relevance = torch.eye(size, device=attentions[0].device)
    for attention, gradient in zip(attentions, gradients, strict=True):
        relevance = relevance + (gradient.float() * attention.float()).clamp(min=0).mean(dim=0) @ relevance
    return relevance


def relevance_target(relevance: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Shares (N,), of sum 1, of visual tokens at `columns` in what predicts an answer at `rows`; equal if all are 0."""
    received = relevance[rows][:, columns].sum(dim=0)
    total = received.sum()
    return torch.where(total > 0, received / total.clamp(min=torch.finfo(received.dtype).tiny), 1 / len(received))


def mapper_loss(scores: Tensor, target: Tensor) -> Tensor:
    """KL(target || softmax(scores)) over the tokens of an image."""
    scores, target = scores.flatten(), target.flatten()
    return (torch.special.xlogy(target, target) - target * scores.log_softmax(dim=-1)).sum()

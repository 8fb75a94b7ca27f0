"""CDPruner: tokens that are diverse and relevant to the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens, select_tokens
from foveate.methods.shared.diversity import Cosines, Row

Relevance = Literal["instruction", "text"]


@dataclass(frozen=True)
class CDPruner(PreLLMMethod):
    """Keeps a diverse subset of tokens, weighted by relevance to the question: a determinantal point process.

    The kernel is L'_ij = r_i cos(x_i, x_j) r_j over the tokens x that the language model would read. Its most likely
    subset is chosen greedily, each pick maximising det L'_S, in O(k N D + k^2 N) (CDPruner, arXiv 2506.10967; Chen et
    al., arXiv 1709.05135, algorithm 1). The relevance r is the mean cosine of a token with the vectors of the question,
    scaled to 0..1 within the image (a crop, where an image is tiled).

    The relevance "text" is the authors' for LLaVA, with CLIP's own text encoder, and takes minus the cosine, for CLIP's
    patches are least like the text that they show. They project the patches of the block that the language model uses
    into the joint space; here the caller brings the text into the space of the encoder. "instruction" needs no text
    encoder: it uses the embeddings of the question as the language model reads them, as ports to models without CLIP do
    (one of them with minus the cosine). The authors' release has no such model, so this is a substitute.

    Where all tokens are equally relevant the method is plain diversity, and once the picks span all tokens the first of
    the others follow; the authors' code divides by zero there. It scales relevance over all crops of a batch.

    Args:
        relevance: "instruction", or "text" with the question's features given to `compress`.
        opposite: Whether the least similar token is the most relevant one. None: for "text", as in the authors' code.
        theta: From 0 (no relevance) to below 1: r becomes exp(theta r / (2 - 2 theta)), an option that the authors'
            code mentions. None: r itself.
    """

    relevance: Relevance = "instruction"
    opposite: bool | None = None
    theta: float | None = None

    name: ClassVar[str] = "cdpruner"
    mechanism: ClassVar = ("similarity", "query")
    title: ClassVar[str] = "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs"
    paper: ClassVar[str] = "arXiv 2506.10967"

    def __post_init__(self) -> None:
        if self.relevance not in get_args(Relevance):
            raise FoveateError(
                f"cdpruner: relevance is one of {', '.join(get_args(Relevance))}, not {self.relevance!r}."
            )
        if self.opposite not in (None, True, False):
            raise FoveateError(f"cdpruner: opposite is True, False or None, not {self.opposite!r}.")
        if self.theta is not None and not 0 <= self.theta < 1:
            raise FoveateError(f"cdpruner: theta is a number from 0 to below 1, not {self.theta}.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The question, and for "text" the encoder's features."""
        if self.relevance == "instruction":
            return (Need("instruction"),)
        return Need("text_feature"), Need("features", tower.last_used)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        needs = self.needs(tokens.tower)
        compared = tokens.features if self.relevance == "instruction" else tokens.get(needs[1])
        opposite = self.relevance == "text" if self.opposite is None else self.opposite
        weight = relevance(compared, tokens.get(needs[0]), opposite)
        if self.theta is not None:
            weight = (weight * (self.theta / (2 - 2 * self.theta))).exp()
        return select_tokens(most_likely(Cosines(tokens.features, picks=count), weight, count))


def relevance(x: Tensor, question: Tensor, opposite: bool = False) -> Tensor:
    """Mean cosine of the tokens (N, d) with the vectors (T, d) or (d,) of a question, scaled to 0..1: (N,).

    Raises:
        FoveateError: the question is of another space, or there is none.
    """
    question = question.reshape(-1, question.shape[-1]).float()
    if question.shape[1] != x.shape[1]:
        raise FoveateError(
            f"cdpruner: the question has {question.shape[1]} features a vector and the tokens have {x.shape[1]}: "
            "text features must be in the space of the encoder's output."
        )
    if not len(question):
        raise FoveateError("cdpruner: there is no question to compare the image with.")
    score = F.normalize(x.float(), dim=-1) @ F.normalize(question, dim=-1).mean(dim=0)
    score = -score if opposite else score
    low, high = score.amin(), score.amax()
    return torch.where(high > low, (score - low + 1e-6) / (high - low), 1.0)


def most_likely(row: Row, weight: Tensor, count: int) -> Tensor:
    """Indices (count,) of the determinantal point process with kernel weight_i row(i)_j weight_j, chosen greedily.

    Each pick adds a row to the Cholesky factor of the kernel, by one matrix-vector product; `residual` is the part of
    each token's squared length that is orthogonal to the picks. Where only rounding remains, the first token wins.
    """
    factor = weight.new_zeros(count, len(weight))
    residual = weight.square()
    tolerance = residual * (32 * torch.finfo(residual.dtype).eps)
    penalty = torch.zeros_like(residual)
    picks = []
    for step in range(count):
        pick = (residual + penalty).argmax(dim=0, keepdim=True)
        picks.append(pick)
        penalty.index_fill_(0, pick, -torch.inf)
        length = residual.index_select(0, pick)
        new = row(pick) * weight * weight.index_select(0, pick)
        new = new - factor[:step].index_select(1, pick)[:, 0] @ factor[:step]
        factor[step] = torch.where(length > 0, new * length.rsqrt(), 0.0)
        residual = residual - factor[step].square()
        residual = residual.masked_fill(residual <= tolerance, 0.0)
    return torch.cat(picks)

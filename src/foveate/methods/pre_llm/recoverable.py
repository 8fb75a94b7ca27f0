"""Recoverable Compression: tokens like [CLS], tokens like the question, and clusters of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.core.method import BudgetRule
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens, merge_tokens, topk_indices, wide
from foveate.methods.shared.clustering import nearest, outlier_factor, weighted


@dataclass(frozen=True)
class RecoverableCompression(PreLLMMethod):
    """Keeps the tokens most similar to [CLS], recovers those most similar to the question, and clusters the rest.

    1. Visual scores v; as many tokens as v has outliers stay, the highest ones. 2. Of the rest, text scores t; as many
    as t has outliers are recovered. 3. Of what still remains, as many tokens as v has outliers become centres, the
    highest, at least one; every other remaining token joins the centre whose key is most similar to its own, and a
    cluster becomes its mean (Recoverable Compression, arXiv 2409.01179, four steps of the method). All stay in raster
    order. Outliers are those whose local outlier factor exceeds 1.5, on either side, as in scikit-learn's "auto". With
    a budget, the counts are shares of it. The number of neighbours of the filter is that of the code, and the
    clustering (named kNN) is our reading.

    v is the dot product of [CLS] and the patch at the block whose output is used, as in the paper; an encoder without
    [CLS] takes the attention received, which the paper does not define. t is a dot product too; similarity="cosine"
    normalises both. The paper compares the text embedding of CLIP with patches projected into its space. Few models
    carry such an encoder, so by default the text embedding is the mean of the embeddings of the user's own words (of
    their directions, for cosines), compared with the tokens, both as the language model reads them: a substitute of
    ours. text_embedding="aligned" compares a given text feature with the output of the last block of the encoder, which
    must have the same width.

    The authors' code differs (`reference`): v is the [CLS] attention and t a cosine; in step 2 the tokens of step 1
    compete with the least score; in step 3 each centre becomes x_i + sum_j a_j x_j over the 32 others of greatest
    cosine of keys plus 50 t / sqrt(d), d the width that t was measured in, unnormalised, and one token sum a_j x_j of
    all others follows, in place of the last of them, unless there are no centres. Two slips of the code are not
    repeated: it takes the width of the features for the number of tokens when it counts centres, and looks up indices
    among the remaining tokens in the keys of all.

    Args:
        text_embedding: "instruction" (embeddings of the prompt) or "aligned" (a text feature given by the user).
        similarity: "dot" or "cosine", of [CLS] and text with the tokens.
        visual: Share of a budget for step 1. The shares are ours: the paper has no budget.
        recovered: Share of a budget for step 2; clusters take the rest.
        layer: Encoder block to read, 0-based or from the end; None: the one whose output is used.
        reference: Scores and merging as in the authors' code.
    """

    text_embedding: Literal["instruction", "aligned"] = "instruction"
    similarity: Literal["dot", "cosine"] = "dot"
    visual: float = 0.5
    recovered: float = 0.3
    layer: int | None = None
    reference: bool = False

    name: ClassVar[str] = "recoverable"
    mechanism: ClassVar = ("similarity", "query")
    title: ClassVar[str] = (
        "Recoverable Compression: A Multimodal Vision Token Recovery Mechanism Guided by Text Information"
    )
    paper: ClassVar[str] = "arXiv 2409.01179"
    static_count: ClassVar[bool] = False
    budget: ClassVar[BudgetRule] = "optional"
    with_budget: ClassVar = ("visual", "recovered")
    renamed_arguments: ClassVar = {"text": "text_embedding"}

    def __post_init__(self) -> None:
        if self.text_embedding not in ("instruction", "aligned"):
            raise FoveateError(
                f"recoverable: text_embedding is 'instruction' or 'aligned', not {self.text_embedding!r}."
            )
        if self.similarity not in ("dot", "cosine"):
            raise FoveateError(f"recoverable: similarity is 'dot' or 'cosine', not {self.similarity!r}.")
        if min(self.visual, self.recovered) < 0 or self.visual + self.recovered > 1:
            raise FoveateError(
                "recoverable: visual and recovered are shares of the budget, at least 0 and together at most 1, not "
                f"{self.visual} and {self.recovered}."
            )

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """Visual scores, keys, text, and what each is compared with."""
        layer = tower.layer(self.layer)
        if tower.has_cls and not self.reference:
            visual = (Need("cls_feature", layer), Need("features", layer))
        else:
            visual = (Need("cls_attention", layer, substitute=True),)
        if self.text_embedding == "instruction":
            text = (Need("instruction"),)
        else:
            text = (Need("text_feature"), Need("features", tower.layer(-1)))
        return tuple(dict.fromkeys((Need("keys", layer), *visual, *text)))

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        v, t = self._visual(tokens), self._text(tokens)
        free = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        first = topk_indices(v, share_of(self.visual, count) if count else _outliers(v, 20))
        free[first] = False
        rest = free.nonzero().flatten()
        second = rest[topk_indices(t[rest], self._recovered(t, first, rest, count))]
        free[second] = False
        rest = free.nonzero().flatten()
        kept = torch.cat([first, second]).sort().values
        if count:
            centres = count - len(kept) - self.reference
        else:
            ratio = _outliers(v[rest], 10) / max(1, len(rest))
            centres = int(len(tokens) * ratio) if self.reference else max(1, int(len(rest) * ratio))
        keys = tokens.get(self.needs(tokens.tower)[0])
        if self.reference:
            return self._summed(tokens, kept, rest, v, t, keys, min(max(centres, 0), len(rest)))
        return _clusters(tokens, kept, rest, v, keys, min(centres, len(rest)))

    def _recovered(self, t: Tensor, first: Tensor, rest: Tensor, count: int) -> int:
        if count:
            recovered = min(share_of(self.recovered, count), count - len(first))
            alone = self.reference and count - len(first) - recovered == 1  # a sum of all others needs a centre
            return recovered + alone
        if self.reference:  # the chosen ones take part with the least score
            return int(len(rest) * (_outliers(t.index_fill(0, first, float(t.min())), 20) / len(t)))
        return _outliers(t[rest], 20)

    def _visual(self, tokens: VisualTokens) -> Tensor:
        needs = self.needs(tokens.tower)
        if needs[1].kind == "cls_attention":
            return tokens.get(needs[1]).float()
        return self._like(tokens.get(needs[2]), tokens.get(needs[1])[None])

    def _text(self, tokens: VisualTokens) -> Tensor:
        if self.text_embedding == "instruction":
            words = tokens.get(Need("instruction"))
            if not len(words):
                raise FoveateError("recoverable needs a text to compare the tokens with: the prompt has none.")
            return self._like(tokens.features, words)
        text = tokens.get(Need("text_feature"))
        patches = tokens.get(Need("features", tokens.tower.layer(-1)))
        if text.shape[-1] != patches.shape[-1]:
            raise FoveateError(
                f"recoverable: a text feature of width {text.shape[-1]} cannot be compared with patches of width "
                f"{patches.shape[-1]}; text_embedding='instruction' needs no aligned encoder."
            )
        return self._like(patches, text[None])

    def _like(self, x: Tensor, others: Tensor) -> Tensor:
        """How similar the tokens x (N, d) are to the mean of others (T, d): (N,)."""
        x, others = x.float(), others.float()
        if self.similarity == "cosine" or self.reference:
            return F.cosine_similarity(x, F.normalize(others, dim=-1).mean(dim=0)[None], dim=-1)
        return x @ others.mean(dim=0)

    def _summed(
        self, tokens: VisualTokens, kept: Tensor, rest: Tensor, v: Tensor, t: Tensor, keys: Tensor, centres: int
    ) -> Selection:
        if not centres:
            return Selection(kept) if len(kept) else Selection(topk_indices(v, 1))
        x = wide(tokens.features[rest])
        a = v[rest].to(x.dtype)
        chosen = topk_indices(a, centres)
        width = (tokens.features if self.text_embedding == "instruction" else tokens.get(Need("text_feature"))).shape[
            -1
        ]
        near = nearest(keys[rest], chosen, 32, 50 * t[rest] / width**0.5)
        sums = x[chosen] + weighted(x, a, near)
        other = torch.ones(len(rest), dtype=torch.bool, device=rest.device).index_fill_(0, chosen, False)
        rows, row_indices = [wide(tokens.features[kept]), sums], [kept, rest[chosen]]
        assignment = torch.full((len(tokens),), -1, dtype=torch.int64, device=rest.device)
        weights = a.new_zeros(len(tokens))
        if bool(other.any()):
            extra = (a * other) @ x
            rows.append(extra[None])
            row_indices.append(rest[other][-1:])
            weights[rest[other]] = a[other] / a[other].sum()
        indices, order = torch.cat(row_indices).sort()
        assignment[rest[other]] = torch.searchsorted(indices, rest[other][-1:]) if bool(other.any()) else -1
        single = torch.cat(row_indices[:2])
        assignment[single] = torch.searchsorted(indices, single)
        weights[single] = 1.0
        return Selection(indices, torch.cat(rows)[order].to(tokens.features.dtype), assignment, weights)


def _clusters(tokens: VisualTokens, kept: Tensor, rest: Tensor, v: Tensor, keys: Tensor, centres: int) -> Selection:
    """The kept ones as they are, and the means of clusters of the rest around its tokens of the highest scores."""
    if not centres:
        return Selection(kept)
    chosen = rest[topk_indices(v[rest], centres)]
    indices = torch.cat([kept, chosen]).sort().values
    x = F.normalize(keys.float(), dim=-1)
    assignment = torch.searchsorted(indices, chosen)[(x @ x[chosen].T).argmax(dim=1)]
    assignment[indices] = torch.arange(len(indices), device=indices.device)
    return merge_tokens(tokens.features, indices, assignment)


def _outliers(values: Tensor, neighbours: int) -> int:
    """How many values have a local outlier factor above 1.5."""
    return int((outlier_factor(values, neighbours) > 1.5).sum())

"""Training losses as sums of a forward pass and their divisors.

Losses are passed as sums, so that their mean over a batch does not depend on how the batch is split into processes and
accumulation steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foveate.training.attention_supervision import NO_TARGET
from foveate.training.dense_labels import cell_weight
from foveate.training.recipe import Losses

#: Label of a position without a loss.
IGNORED = -100


@dataclass(frozen=True)
class Term:
    """One term of the loss.

    Args:
        weight: Field of `recipe.Losses` with its weight.
        name: Name in the log: `name_loss`, and `name_accuracy` if it counts correct predictions.
        count: The divisor of the sum `name_loss`.
        answers: The divisor of the sum `name_right`; None: the term has no accuracy.
    """

    weight: str
    name: str
    count: str
    answers: str | None = None

    @property
    def loss(self) -> str:
        """Name of the sum of losses."""
        return f"{self.name}_loss"

    @property
    def right(self) -> str:
        """Name of the sum of correct predictions."""
        return f"{self.name}_right"

    @property
    def sums(self) -> tuple[str, ...]:
        """Names of all its sums."""
        answers = () if self.answers is None else (self.right, self.answers)
        return tuple(dict.fromkeys((self.loss, self.count, *answers)))


#: All terms.
TERMS = (
    Term("answer", "answer", "answer_tokens", "answer_tokens"),
    Term("cells", "cell", "cell_weight", "cell_characters"),
    Term("early_cells", "early_cell", "early_cell_weight", "early_cell_characters"),
    Term("answer_attention", "answer_attention", "answer_attention_count", "answer_attention_count"),
    Term("question_attention", "question_attention", "question_attention_count", "question_attention_count"),
    Term("page", "page", "page_count"),
    Term("colours", "colour", "colour_count"),
    Term("captions", "caption", "caption_tokens", "caption_tokens"),
    Term("recalibration", "recalibration", "recalibration_count"),
)

#: Sums that a forward pass may report.
SUMS = tuple(name for term in TERMS for name in term.sums)


def counts_of(batch: dict[str, torch.Tensor], losses: Losses) -> torch.Tensor:
    """Divisors of `TERMS`, computed from a batch's targets before the forward pass: (terms,) float64."""
    counts = dict.fromkeys((term.weight for term in TERMS), torch.zeros((), dtype=torch.float64))
    if "labels" in batch:
        counts["answer"] = (batch["labels"][:, 1:] != IGNORED).sum()
    if "cells" in batch:
        counts["cells"] = counts["early_cells"] = cell_weight(batch["cells"], losses.blank)
    if "answer_targets" in batch:
        counts["answer_attention"] = (batch["answer_targets"] != NO_TARGET).sum() * len(losses.answer_attention_layers)
    if "question_targets" in batch:
        counts["question_attention"] = (batch["question_targets"] != NO_TARGET).sum()
    if "pages" in batch:
        counts["page"] = (batch["pages"] >= 0).sum()
    if "colours" in batch:
        counts["colours"] = torch.tensor(batch["colours"].numel())
    if "captions" in batch:
        counts["captions"] = (batch["captions"] != IGNORED).sum()
    if "pixel_values" in batch:
        counts["recalibration"] = torch.tensor(len(batch["pixel_values"]))
    return torch.stack([counts[term.weight].double().cpu() for term in TERMS])


def weighted(sums: dict[str, torch.Tensor], counts: torch.Tensor, losses: Losses) -> torch.Tensor:
    """Loss of a micro-batch, as its share of the mean over a batch whose `counts_of` are (terms,)."""
    counts = counts.clamp(min=torch.finfo(torch.float32).tiny)
    loss = torch.zeros((), device=counts.device)
    for term, count in zip(TERMS, counts, strict=True):
        weight = getattr(losses, term.weight)
        if weight and term.loss in sums:
            loss = loss + weight * sums[term.loss] / count
    return loss


def means(sums: dict[str, float]) -> dict[str, float]:
    """Mean losses and accuracies of the terms with a non-zero count."""
    values = {}
    for term in TERMS:
        if sums[term.count]:
            values[term.loss] = sums[term.loss] / sums[term.count]
        if term.answers is not None and sums[term.answers]:
            values[f"{term.name}_accuracy"] = sums[term.right] / sums[term.answers]
    return values

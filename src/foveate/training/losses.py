"""What the losses of training are made of: sums that a forward pass reports, and by what each is divided.

Losses travel as sums, so that their mean over a batch does not depend on how the batch is spread over processes and
accumulation steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foveate.training.attention_supervision import NOWHERE
from foveate.training.dense_labels import cell_weight
from foveate.training.recipe import Losses


@dataclass(frozen=True)
class Term:
    """One loss.

    Args:
        weight: Its weight among `recipe.Losses`.
        name: What the log calls it: `name_loss`, and `name_accuracy` where it counts right answers.
        count: The sum by which the sum `name_loss` is divided.
        answers: The sum by which the sum `name_right` is divided; None: nothing is right or wrong.
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
        """Name of the sum of right answers."""
        return f"{self.name}_right"

    @property
    def sums(self) -> tuple[str, ...]:
        """Names of all its sums."""
        answers = () if self.answers is None else (self.right, self.answers)
        return tuple(dict.fromkeys((self.loss, self.count, *answers)))


#: All losses.
TERMS = (
    Term("answer", "answer", "answer_tokens", "answer_tokens"),
    Term("cells", "cell", "cell_weight", "cell_characters"),
    Term("before", "before", "before_weight", "before_characters"),
    Term("pointing", "pointing", "pointing_count", "pointing_count"),
    Term("matching", "matching", "matching_count", "matching_count"),
    Term("page", "page", "page_count"),
    Term("colours", "colour", "colour_count"),
)

#: Sums that a forward pass may report.
SUMS = tuple(name for term in TERMS for name in term.sums)


def counts_of(batch: dict[str, torch.Tensor], losses: Losses) -> torch.Tensor:
    """What the sums of `TERMS` are divided by, told from a batch's targets before anything runs: (terms,) float64."""
    counts = dict.fromkeys((term.weight for term in TERMS), torch.zeros((), dtype=torch.float64))
    if "labels" in batch:
        counts["answer"] = (batch["labels"][:, 1:] != -100).sum()
    if "cells" in batch:
        counts["cells"] = counts["before"] = cell_weight(batch["cells"], losses.blank)
    if "pointers" in batch:
        counts["pointing"] = (batch["pointers"] != NOWHERE).sum() * len(losses.pointing_layers)
    if "matches" in batch:
        counts["matching"] = (batch["matches"] != NOWHERE).sum()
    if "pages" in batch:
        counts["page"] = (batch["pages"] >= 0).sum()
    if "colours" in batch:
        counts["colours"] = torch.tensor(batch["colours"].numel())
    return torch.stack([counts[term.weight].double().cpu() for term in TERMS])


def weighted(sums: dict[str, torch.Tensor], counts: torch.Tensor, losses: Losses) -> torch.Tensor:
    """The loss of a micro-batch, as its share of the mean over a whole batch whose `counts_of` are (terms,)."""
    counts = counts.clamp(min=torch.finfo(torch.float32).tiny)
    loss = torch.zeros((), device=counts.device)
    for term, count in zip(TERMS, counts, strict=True):
        weight = getattr(losses, term.weight)
        if weight and term.loss in sums:
            loss = loss + weight * sums[term.loss] / count
    return loss


def means(sums: dict[str, float]) -> dict[str, float]:
    """Mean losses and accuracies, of the terms of which something was counted."""
    found = {}
    for term in TERMS:
        if sums[term.count]:
            found[term.loss] = sums[term.loss] / sums[term.count]
        if term.answers is not None and sums[term.answers]:
            found[f"{term.name}_accuracy"] = sums[term.right] / sums[term.answers]
    return found

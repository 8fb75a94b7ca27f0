"""Score of a plan on some items: accuracy, or similarity of hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from foveate.answering.conversations import greedy
from foveate.benchmark.accuracy import answer_items
from foveate.benchmark.generation import batches, prepare
from foveate.benchmark.rows import Rows
from foveate.benchmark.scores import scores
from foveate.benchmark.tasks import Item
from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL
from foveate.runtime import compress
from foveate.statistics import Compared, paired_bootstrap

Row = dict[str, Any]


@dataclass(frozen=True)
class Score:
    """Score of a plan on some items.

    Args:
        value: 1 is as good as the full model.
        low: Lower end of its 95 % interval, or None.
        high: Upper end.
        numbers: For the record.
    """

    value: float
    low: float | None = None
    high: float | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


class Answers:
    """Scorer that compares answers and caches them.

    Args:
        model: The model.
        processor: Of the model.
        name: Of the model, in rows.
        rows: Where answers are kept.
        batch_size: Items asked at once.
    """

    def __init__(self, model: Any, processor: Any, name: str, rows: Rows, batch_size: int) -> None:
        self._model, self._processor, self._name = model, processor, name
        self._rows, self._batch_size = rows, batch_size
        self._by_key = {_key(row): row for row in rows.rows}

    def of(self, plan: str, items: Sequence[Item]) -> list[Row]:
        """Return the rows of all turns of all items, in order.

        Raises:
            FoveateError: the plan cannot run on this model or these images.
        """
        missing = [item for item in items if not self._has(plan, item)]
        for batch in batches(missing, self._batch_size):
            rows = [
                {"model": self._name, **row, "plan": plan}
                for row in answer_items(self._model, self._processor, plan, batch, self._batch_size)
            ]
            self._rows.add(rows)
            self._by_key |= {_key(row): row for row in rows}
        return [self._by_key[plan, item.task, item.index, turn] for item in items for turn in range(len(item.turns))]

    def _has(self, plan: str, item: Item) -> bool:
        return self._rows.has(self._name, plan, item.task, item.index, len(item.turns))

    def score(self, plan: str, items: Sequence[Item]) -> Score:
        """Return the accuracy relative to the full model.

        Raises:
            FoveateError: the full model has no right answer, or the plan cannot run.
        """
        rows = [*self.of(FULL_MODEL, items), *self.of(plan, items)]
        tasks = list(dict.fromkeys(row["task"] for row in rows))
        score = next(row for row in scores(rows, [self._name], lambda _: [plan], tasks) if row["task"] == "all")
        if score["relative"] is None:
            raise FoveateError("the full model has no right answer to these questions; choose others.")
        names = ("accuracy", "majority", "agreement", "tokens_in", "tokens_kept")
        numbers = {"questions": score["count"], **{name: score[name] for name in names}}
        return Score(score["relative"], score["relative_low"], score["relative_high"], numbers)

    def compared(self, plan: str, other: str, items: Sequence[Item]) -> Compared:
        """Compare two plans on the same questions; tasks have equal weight, questions of one item form a cluster."""
        first, second = self.of(plan, items), self.of(other, items)
        return paired_bootstrap(
            [row["right"] for row in first],
            [row["right"] for row in second],
            strata=[row["task"] for row in first],
            clusters=[(row["task"], row["index"]) for row in first],
        )


class Flow:
    r"""Scorer by visual information flow, which needs no answers.

    $\cos(h, h')$ of the states from which the first token of the answer is read, without and with the plan, mean over
    the items: the objective that VFlowOpt searches its settings by (Yang et al., ICCV 2025, arXiv 2508.05211, there
    the sum over 30 items).

    Args:
        model: The model.
        processor: Of the model.
        batch_size: Items at once.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int) -> None:
        self._model, self._processor, self._batch_size = model, processor, batch_size
        self._full_model: dict[tuple[str, int], Tensor] = {}

    def score(self, plan: str, items: Sequence[Item]) -> Score:
        """Return the mean cosine similarity.

        Raises:
            FoveateError: the plan cannot run on this model or these images.
        """
        missing = [item for item in items if (item.task, item.index) not in self._full_model]
        self._full_model |= self._states(missing)
        with compress(self._model, plan, processor=self._processor):
            plan_states = self._states(items)
        cosines = [
            float(torch.cosine_similarity(state, self._full_model[key], dim=0)) for key, state in plan_states.items()
        ]
        return Score(fmean(cosines), numbers={"questions": len(cosines), "flow": round(fmean(cosines), 6)})

    @torch.inference_mode()
    def _states(self, items: Sequence[Item]) -> dict[tuple[str, int], Tensor]:
        """Return the last prompt token's input of the output layer (D,) in float32 for every item."""
        states: dict[tuple[str, int], Tensor] = {}
        for batch in batches(items, self._batch_size):
            prepared = prepare(self._model, self._processor, batch)
            captured: list[Tensor] = []

            def keep(module: Any, inputs: tuple[Tensor, ...], captured: list[Tensor] = captured) -> None:
                captured.append(inputs[0][:, -1].float().cpu())

            hook = self._model.get_output_embeddings().register_forward_pre_hook(keep)
            try:
                self._model.generate(**prepared.inputs, generation_config=greedy(self._model, 1))
            finally:
                hook.remove()
            states |= {(item.task, item.index): row for item, row in zip(batch, captured[0], strict=True)}
        return states


Scorer = Callable[[str, Sequence[Item]], Score]


def _key(row: Row) -> tuple[str, str, int, int]:
    return row["plan"], row["task"], row["index"], row["turn"]

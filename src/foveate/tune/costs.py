"""Cost of a plan relative to the full model: measured time to first token, and FLOPs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from foveate.benchmark import profiling
from foveate.benchmark.generation import prepare
from foveate.benchmark.speed.measurement import PlanMeasurement
from foveate.benchmark.speed.models import MeasuredModel
from foveate.benchmark.tasks import Item
from foveate.core.plan import Plan

#: Items that costs are measured on: a small, a middle and a large one.
_ITEMS = 3


class Costs:
    """Measurements of plans on a few items, one at a time, alternating with the full model.

    What else the machine does falls on both alike, so the ratio of two times that were taken right after each other
    is more informative than either of them.

    Args:
        model: The model.
        processor: Of the model.
        items: To choose from.
        repeats: Timed turns.
    """

    def __init__(self, model: Any, processor: Any, items: Sequence[Item], repeats: int) -> None:
        ordered = sorted(items, key=lambda item: (item.pixels, item.task, item.index))
        count = min(_ITEMS, len(ordered))
        chosen = [ordered[(2 * number + 1) * len(ordered) // (2 * count)] for number in range(count)]
        self.repeats = repeats
        self._measuring = [_measuring(model, processor, item) for item in chosen]
        self._full_model = [_counted(measuring, None) for measuring in self._measuring]

    def flops(self, plan: str, quick: bool = False) -> float:
        """Return the FLOPs to the first token relative to the full model; `quick`: on the middle item only.

        Raises:
            FoveateError: the plan cannot run on this model or these images.
        """
        if quick:
            middle = len(self._measuring) // 2
            return _counted(self._measuring[middle], plan) / self._full_model[middle]
        return sum(_counted(measuring, plan) for measuring in self._measuring) / sum(self._full_model)

    def time(self, plan: str, repeats: int | None = None) -> dict[str, Any]:
        """Return the time to first token relative to the full model: median, extremes and values of all turns.

        Every turn goes over all items, with the plan and without; which of the two is first changes from turn to turn.
        The first turn warms up and does not count.
        """
        parsed = Plan.of(plan)
        ratios, seconds = [], []
        for turn in range((repeats or self.repeats) + 1):
            sums = {True: 0.0, False: 0.0}
            for measuring in self._measuring:
                for is_plan in (turn % 2 == 0, turn % 2 == 1):
                    sums[is_plan] += measuring.turn(parsed if is_plan else None)["ttft"]
            if turn:
                ratios.append(sums[True] / sums[False])
                seconds.append((sums[True], sums[False]))
        mean = [statistics.median(column) / len(self._measuring) for column in zip(*seconds, strict=True)]
        return {**profiling.spread(ratios), "seconds": mean[0], "full_model_seconds": mean[1]}


def _measuring(model: Any, processor: Any, item: Item) -> PlanMeasurement:
    inputs = prepare(model, processor, [item]).inputs
    image = item.images[0]
    return PlanMeasurement(MeasuredModel(item.task, model, (), lambda batch: inputs, image.size), 1, 2, "sdpa")


def _counted(measuring: PlanMeasurement, plan: str | None) -> int:
    return measuring.exact(None if plan is None else Plan.of(plan))["flops"]["counted"]

"""One question answered by the full model, by a plan and by two baselines, and timed under equal conditions.

Every contender first answers once untimed, which also warms it up. Then all of them answer in rounds that alternate
their order, so that a machine that slows down does not count against the last one. These passes do nothing but answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from foveate.answering import Answer
from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL
from foveate.core.plan import Plan

#: Timed rounds: at least one, and no further one after as many seconds.
MOST_ROUNDS, TIMING_SECONDS = 5, 6.0

#: Baselines at the token count of the plan: the method of each, with its title; of images and of clips.
BASELINES = {"random": "random tokens", "downsample": "smaller image"}
CLIP_BASELINES = {"random": "random tokens", "uniform-frames": "fewer frames"}

#: Answers one question with a plan, or with the full model.
Answerer = Callable[[Plan | None], Answer]


@dataclass(frozen=True)
class Contender:
    """One of the compared ways to answer, with its results so far.

    Attributes:
        kind: "full-model", "plan", or the method of a baseline.
        title: what its card is called.
        plan: what it follows; None: the full model.
        answer: its answer, from the untimed pass.
        runs: the times of its timed passes, each as in `Answer.times`.
        refusal: why it cannot answer, for a baseline that the model does not support.
    """

    kind: str
    title: str
    plan: Plan | None = None
    answer: Answer | None = None
    runs: tuple[dict[str, float], ...] = ()
    refusal: str = ""

    @property
    def times(self) -> dict[str, float]:
        """Seconds of the parts and in total of the fastest timed pass; empty before the first.

        The fastest: other work on the machine only ever makes a pass slower.
        """
        return min(self.runs, key=lambda run: run["total"], default={})


def contenders(
    plan: Plan | None, title: str | None = None, *, baselines: bool = True, clip: bool = False
) -> list[Contender]:
    """The full model and, if there is a plan, the plan and its baselines, before anything is answered.

    Args:
        plan: the plan.
        title: what the plan's card is called, by default the plan as text.
        baselines: whether random tokens and a smaller image, of clips fewer frames, are compared too; one that is the
            plan itself is left out.
        clip: whether the question is about a clip.
    """
    full_model = Contender("full-model", FULL_MODEL)
    if plan is None:
        return [full_model]
    methods = {step.method.name for step in plan.steps}
    if clip and plan.for_model is not None:
        methods = {step.method.name for step in plan.for_model.steps}
    possible = (CLIP_BASELINES if clip else BASELINES) if baselines else {}
    others = [Contender(name, text) for name, text in possible.items() if methods != {name}]
    return [full_model, Contender("plan", title or str(plan), plan), *others]


def compare(answerer: Answerer, compared: Sequence[Contender], layers: int) -> Generator[list[Contender]]:
    """Answer with every contender and then time them, yielding all contenders after each step.

    Args:
        answerer: answers the question, deterministically.
        compared: from `contenders`. Baselines get the token count of the plan, and go where they would drop nothing.
        layers: number of layers of the language model, over which the plan's tokens are averaged.

    Raises:
        FoveateError: the full model or the plan cannot answer.
    """
    compared = list(compared)
    for place, contender in enumerate(compared[:2]):
        compared[place] = replace(contender, answer=answerer(contender.plan))
        yield list(compared)
    plans = [(baseline, _baseline_plan(baseline.kind, compared, layers)) for baseline in compared[2:]]
    compared = [*compared[:2], *(baseline for baseline, plan in plans if plan is not None)]
    for place, plan in enumerate((plan for _, plan in plans if plan is not None), start=2):
        baseline = compared[place]
        try:
            compared[place] = replace(baseline, plan=plan, answer=answerer(plan))
        except FoveateError as error:
            compared[place] = replace(baseline, plan=plan, refusal=str(error))
        yield list(compared)
    timed = [place for place, contender in enumerate(compared) if contender.answer is not None]
    rounds, started = 0, time.perf_counter()
    while rounds < MOST_ROUNDS and (not rounds or time.perf_counter() - started < TIMING_SECONDS):
        for place in reversed(timed) if rounds % 2 else timed:
            contender = compared[place]
            compared[place] = replace(contender, runs=(*contender.runs, answerer(contender.plan).times))
        rounds += 1
        yield list(compared)


def _baseline_plan(kind: str, compared: Sequence[Contender], layers: int) -> Plan | None:
    """Return the plan of a baseline; None where it would drop nothing.

    Of a clip, random tokens are those of the frames that the plan reads, and fewer frames are at even times: as many
    as have no more tokens than the plan reads, and one at least.
    """
    full_model, planned, plan = compared[0].answer, compared[1].answer, compared[1].plan
    assert full_model is not None
    assert planned is not None
    assert plan is not None
    budget = mean_budget(planned, layers)
    if full_model.frames is None:
        return None if budget is None else Plan.of(kind, budget)
    if kind == "uniform-frames":
        tokens = planned.tokens.read if budget is None else budget
        frames = max(1, full_model.frames * int(tokens) // full_model.tokens.read)
        return None if frames >= full_model.frames else Plan.of(kind, frames)
    chosen = [] if plan.frame_step is None else [str(plan.frame_step)]
    return None if budget is None else Plan.of(" + ".join([*chosen, f"{kind}:{budget}"]))


def mean_budget(planned: Answer | None, layers: int) -> int | str | None:
    """Tokens of an image that the language model reads under a plan, averaged over its layers.

    Returns:
        A number of tokens, a percentage where tiles count as images of their own, or None where nothing is dropped.
    """
    if planned is None:
        return None
    before = sum(image["tokens_in"] for image in planned.selection)
    mean = sum(_mean_tokens(image, layers) for image in planned.selection)
    if round(mean) >= before:
        return None
    return max(round(mean), 1) if len(planned.selection) == 1 else f"{100 * mean / before:.4g}%"


def _mean_tokens(image: dict[str, Any], layers: int) -> float:
    changes = [(0, image["tokens_kept"]), *((layer["layer"], layer["tokens_kept"]) for layer in image["layers"])]
    return sum(kept * (later - layer) for (layer, kept), (later, _) in pairwise([*changes, (layers, 0)])) / layers

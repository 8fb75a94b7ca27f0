"""Search space of plans for one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foveate.benchmark.budgets import CONTROLS
from foveate.core.errors import FoveateError, Refusal
from foveate.core.in_decoder import DecoderMethod
from foveate.core.plan import Plan
from foveate.core.registry import model_methods

#: Keep tokens at random or make the image smaller: what plans are compared with, so no candidates unless named.
NO_CANDIDATES = (*CONTROLS, "random-decoder")
#: Where the steps of a plan act.
BEFORE, INSIDE, BOTH = "before the language model", "inside it", "both"


@dataclass(frozen=True)
class Candidate:
    """A method that plans may contain.

    Args:
        text: Name and arguments, as in plans.
        inside: Whether it acts inside the language model.
        budget: As methods have it: "count", "optional" or "none".
        layered: Whether the layer at which it acts is to be searched: methods that act at one.
    """

    text: str
    inside: bool
    budget: str
    layered: bool

    def at(self, budget: str) -> str:
        """Return a plan of this method alone, at the method's default layers."""
        return self.text if self.budget == "none" else f"{self.text}:{budget}"


@dataclass(frozen=True)
class Space:
    """All plans of the search: a candidate before the language model, one inside it, or both.

    Args:
        before: Texts of candidates to begin with.
        inside: Those inside the language model.
        budgets: Ascending.
        depth: Layers of the language model.
        chains: Whether there are plans of both.
        left_out: {"method", "code", "reason"} of every method that is not a candidate.
    """

    before: tuple[Candidate, ...]
    inside: tuple[Candidate, ...]
    budgets: tuple[str, ...]
    depth: int
    chains: bool
    left_out: tuple[dict[str, str], ...] = ()

    def draw(self, trial: Any) -> str:
        """Sample a plan with an optuna trial.

        Methods of one place share their budget: what a tenth of the tokens costs is much the same for all of them, so
        that a trial of one method tells about the others.
        """
        places = [name for name, some in ((BEFORE, self.before), (INSIDE, self.inside)) if some]
        if self.chains and len(places) == 2:
            places.append(BOTH)
        place = trial.suggest_categorical("place", places)
        steps = []
        if place != INSIDE:
            steps.append(self._step(trial, "before", self.before))
        if place != BEFORE:
            steps.append(self._step(trial, "inside", self.inside))
        return str(Plan.of(" + ".join(steps)))

    def _step(self, trial: Any, place: str, candidates: Sequence[Candidate]) -> str:
        by_text = {candidate.text: candidate for candidate in candidates}
        chosen = by_text[trial.suggest_categorical(place, list(by_text))]
        text = chosen.text
        fixed = chosen.budget == "none"
        if chosen.budget == "optional":
            fixed = trial.suggest_categorical(f"{place}, own rule", [False, True])
        if not fixed:
            text += f":{self.budgets[trial.suggest_int(f'{place}, budget', 0, len(self.budgets) - 1)]}"
        if chosen.layered:
            text += f"@{trial.suggest_int('layer', 1, max(1, self.depth - 1))}"
        return text

    @property
    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Space:
        """Build a space from the values of `as_json`."""
        before, inside = (tuple(Candidate(**entry) for entry in document[name]) for name in ("before", "inside"))
        budgets, left_out = tuple(document["budgets"]), tuple(document["left_out"])
        return cls(before, inside, budgets, document["depth"], document["chains"], left_out)


def space_for(
    model: Any,
    cost: Callable[[str], float],
    methods: Sequence[str],
    budgets: Sequence[str],
    chains: bool,
) -> Space:
    """Build the space of plans that run on a model and save something; every candidate is run once.

    Args:
        model: Gives the depth of the language model.
        cost: Operations of a plan relative to the full model; raises FoveateError if it cannot run.
        methods: Names, also with arguments; by default all, trained ones only with weights saved with the model.
        budgets: To choose from.
        chains: Whether a candidate before the language model and one inside it may be joined.

    Raises:
        FoveateError: a method does not exist, or none remains.
    """
    known = model_methods()
    depth = model.config.get_text_config().num_hidden_layers
    ordered = tuple(sorted(budgets, key=lambda budget: (not budget.endswith("%"), float(budget.rstrip("%")))))
    by_place: dict[bool, list[Candidate]] = {False: [], True: []}
    left_out = []
    for text in methods or known:
        name = text.partition("(")[0].strip().lower()
        if name not in known:
            raise FoveateError(f"method {name!r} is not known; possible are {', '.join(known)}.")
        try:
            if not methods and name in NO_CANDIDATES:
                raise FoveateError(Refusal("is-control", "a control, which plans are compared with"))
            candidate = _candidate(text, known[name], depth)
            if cost(candidate.at(ordered[0])) >= _SAVES_NOTHING:
                raise FoveateError(Refusal("saves-nothing", "saves nothing on this model, even at the least budget"))
        except FoveateError as error:
            left_out.append({"method": text, **error.as_json()})
            continue
        by_place[candidate.inside].append(candidate)
    if not by_place[False] and not by_place[True]:
        reasons = "; ".join(f"{candidate['method']}: {candidate['reason']}" for candidate in left_out)
        raise FoveateError(f"no method remains to search with: {reasons}")
    return Space(tuple(by_place[False]), tuple(by_place[True]), ordered, depth, chains, tuple(left_out))


#: Of the full model's operations.
_SAVES_NOTHING = 0.999


def _candidate(text: str, cls: Any, depth: int) -> Candidate:
    step = Plan.of(text if cls.budget == "none" else f"{text}:50%").steps[0]
    method = step.method
    text = str(step) if cls.budget == "none" else str(step).rpartition(":")[0]
    # A trained method acts before the layers that it was trained for.
    moves = isinstance(method, DecoderMethod) and not cls.trained and len(method.layers(depth)) == 1
    return Candidate(text, method.takes_layers, cls.budget, moves)

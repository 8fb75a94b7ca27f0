"""PosPad: one marker in place of every run of dropped tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.files import stamp
from foveate.core.plan import Plan, Step, parse_plan
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens
from foveate.core.trained import Trained, copy_file

MARKERS = ("zero", "mean")


@dataclass(frozen=True)
class PosPad(PreLLMMethod):
    """Wraps another method and puts one marker in place of every run of tokens that it drops.

    The tokens of an image are one sequence, row after row. Each maximal run of dropped tokens becomes a marker at the
    run's last index, with that position, so that the language model can tell where something is missing (PosPad,
    FocusUI, arXiv 2601.03928). Runs do not end at the ends of rows, and newline tokens are tokens like others. With
    everything dropped a single marker remains, at the last index.

    The budget counts kept tokens and markers together, exactly; see `exact_runs`. In the paper it is of kept tokens,
    and markers come on top: `apart=True`, where the number of tokens depends on the image.

    The paper's marker is a learned embedding. Without one (`embedding`) a marker is zero or the mean of its run, for
    which nothing was trained. Merged tokens of the other method stay as they are, and their members leave a gap like
    dropped tokens.

    Args:
        selector: The other method, as in a plan and without a budget, such as `hiprune(alpha=0.1)`, or as an object.
        marker: "zero" or "mean", the value of a marker without an embedding.
        embedding: A safetensors file with the learned marker, its only tensor, (D,) or (1, D).
        apart: The budget is of kept tokens alone, as in the paper; markers come on top.
    """

    selector: Any = "fastervlm"
    marker: Literal["zero", "mean"] = "zero"
    embedding: str | None = None
    apart: bool = False

    name: ClassVar[str] = "pospad"
    mechanism: ClassVar = ("query",)
    modality: ClassVar = ("image",)
    title: ClassVar[str] = "FocusUI: Efficient UI Grounding via Position-Preserving Visual Token Selection"
    paper: ClassVar[str] = "arXiv 2601.03928"
    handles_tiles: ClassVar[bool] = True
    sees_separators: ClassVar[bool] = True
    positions: ClassVar = "original"

    def __post_init__(self) -> None:
        if self.marker not in MARKERS:
            raise FoveateError(f"pospad: marker is one of {', '.join(MARKERS)}, not {self.marker!r}.")
        if self.embedding is not None and self.marker != "zero":
            raise FoveateError("pospad: a marker is what its embedding says; give marker or embedding, one of the two.")
        if self.apart:
            object.__setattr__(self, "static_count", False)
        if self.embedding is not None:
            object.__setattr__(self, "embedding", str(self.embedding))
        if not isinstance(self.selector, str):  # plans are text, and equal plans are to be equal
            object.__setattr__(self, "selector", str(Plan.of(self.selector)))
        self.method  # noqa: B018 - refuses a wrong name at once

    @cached_property
    def method(self) -> PreLLMMethod:
        """The other method."""
        steps = parse_plan(f"{self.selector}:1").steps
        method = steps[0].method
        if len(steps) != 1 or not isinstance(method, PreLLMMethod) or isinstance(method, PosPad):
            raise FoveateError(f"pospad: selector is one other method before the language model, not {self.selector}.")
        return method

    def resolve_weights(self, location: str | PathLike[str]) -> PosPad:
        """This method with the files next to a model: weights of the other method, and the embedding."""
        resolved = copy.copy(self)
        if isinstance(self.method, Trained):
            object.__setattr__(resolved, "method", self.method.resolve_weights(location))
        if self.embedding is not None and not Path(self.embedding).is_file():
            path = Path(location) / self.embedding
            if path.is_file():
                object.__setattr__(resolved, "embedding", str(path))
        return resolved

    def portable(self, folder: Path, copied: dict[str, str]) -> PosPad:
        """See `Method.portable`; the embedding and the files of the other method are copied."""
        embedding = self.embedding
        if embedding is not None:
            copy_file(self.name, Path(embedding), folder / "pospad.safetensors")
            embedding = "pospad.safetensors"
        method = self.method.portable(folder, copied)
        return replace(
            self, selector=self.selector if method is self.method else str(Step(method)), embedding=embedding
        )

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """Those of the other method."""
        return self.method.needs(tower)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        size, device = len(tokens), tokens.device
        choices: dict[int, Selection] = {}

        def choose(number: int) -> Tensor:
            if number not in choices:
                nothing = Selection(torch.zeros(0, dtype=torch.int64, device=device))
                choices[number] = self.method(tokens, number) if number else nothing
            return torch.zeros(size, dtype=torch.bool, device=device).index_fill_(0, choices[number].indices, True)

        if self.apart:
            number, kept = count, choose(count)
            ends = run_ends(~kept)
        else:
            kept, ends, number = exact_runs(choose, size, count)
        chosen = choices[number]
        indices = (kept | ends).nonzero().flatten()
        row = torch.full((size,), -1, dtype=torch.int64, device=device)
        row[indices] = torch.arange(len(indices), device=device)
        # Rows are made of what the other method made them of; markers of nothing, or of their run.
        members = chosen.members(size)
        assignment = torch.full_like(row, -1)
        assignment[members >= 0] = row[chosen.indices[members[members >= 0]]]
        weights = chosen._shares(size) if len(chosen) else torch.zeros(size, dtype=torch.float32, device=device)
        added = kept.index_fill(0, chosen.indices, False)
        assignment[added], weights[added] = row[added], 1.0
        if self.marker == "mean" and self.embedding is None:
            numbers = torch.arange(size, device=device)
            last = torch.where(run_ends(~kept), numbers, size).flip(0).cummin(0).values.flip(0).clamp(max=size - 1)
            dropped = (assignment < 0) & ends[last]  # a run without a marker leaves nothing
            assignment[dropped], weights[dropped] = row[last[dropped]], 1.0
        used = assignment >= 0
        total = weights.new_zeros(len(indices)).index_add_(0, assignment[used], weights[used])
        weights[used] /= total.clamp(min=torch.finfo(torch.float32).tiny)[assignment[used]]
        assigned = Selection(indices, None, assignment, weights)
        features = assigned.apply(tokens.features)
        if chosen.features is not None:
            features[row[chosen.indices]] = chosen.features
        if self.embedding is not None:
            features[row[ends]] = _learned(self.embedding, stamp(self.embedding)).to(features)
        return Selection(indices, features, assignment, weights)


def run_ends(dropped: Tensor) -> Tensor:
    """The last index of every maximal run of True in (N,): (N,) bool."""
    return dropped & ~torch.cat([dropped[1:], dropped.new_zeros(1)])


def exact_runs(choose: Callable[[int], Tensor], size: int, count: int) -> tuple[Tensor, Tensor, int]:
    """Tokens to keep and markers of the runs between them, `count` together exactly.

    Where a larger choice contains the smaller ones, kept + runs never falls as tokens are added: one more token adds 1
    at the end of a run, 2 inside a run, 0 in place of a run of one. So bisection between (count - 1) // 2 tokens, which
    cannot be too many, and `count`, which always are, finds the m of which m fit and m + 1 do not, in about log2(count
    / 2) choices. If m tokens give one less than `count`, because the next one lies inside a run, that token is kept,
    and the shorter of the two runs around it gets no marker: the best tokens matter more than a marker, and with a
    budget of 2 the best one stays. Choices that do not contain each other are filled up to `count` with tokens at the
    ends of runs, the nearest to those that the next choice adds.

    Args:
        choose: From a number of tokens, at most `count`, to (N,) bool, which ones stay.
        size: N.
        count: Kept tokens and markers, 0 < count < N.

    Returns:
        (N,) bool of kept tokens, (N,) bool of markers, and the number that `choose` was called with for the kept
            tokens, without those that were added.
    """

    def total(kept: Tensor) -> int:
        return int(kept.sum() + run_ends(~kept).sum())

    fits, exceeds = (count - 1) // 2, count
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        if total(choose(middle)) <= count:
            fits = middle
        else:
            exceeds = middle
    kept = choose(fits).clone()
    missing = count - total(kept)
    larger = choose(exceeds)
    if missing == 1 and int((larger & ~kept).sum()) == 1 and not bool((kept & ~larger).any()):
        index = int((larger & ~kept).nonzero())
        ends = run_ends(~larger)
        before = index - 1 - max((p for p in range(index) if larger[p]), default=-1)
        after = next((p for p in range(index + 1, size) if larger[p]), size) - index - 1
        ends[index - 1 if before <= after else index + after] = False
        return larger.clone(), ends, exceeds
    for _ in range(missing):
        dropped = ~kept
        before_kept, after_kept = (
            torch.cat([dropped.new_zeros(1), dropped[:-1]]),
            torch.cat([dropped[1:], dropped.new_zeros(1)]),
        )
        edges = (dropped & (before_kept ^ after_kept)).nonzero().flatten()  # of runs of two and more
        next_choice = (larger & dropped).nonzero().flatten()
        if len(next_choice):
            edges = edges[(edges[:, None] - next_choice).abs().amin(dim=1).argsort(stable=True)]
        kept[edges[0]] = True
    return kept, run_ends(~kept), fits


@lru_cache(maxsize=8)
def _learned(path: str, changed: tuple[Any, ...]) -> Tensor:
    if not Path(path).is_file():
        raise FoveateError(f"pospad: there is no file {path!r} with a learned marker.")
    try:
        tensors = list(load_file(path).values())
    except SafetensorError as error:
        raise FoveateError(f"pospad: {path} is no safetensors file: {error}") from error
    if len(tensors) != 1:
        raise FoveateError(f"pospad: {path} holds {len(tensors)} tensors, not one marker.")
    return tensors[0].flatten()

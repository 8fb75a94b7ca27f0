"""Published costs of methods next to those that foveate computes, as plain values.

Nothing here imports torch, so that `foveate flops --papers` prints at once. `foveate.cost.papers` computes the claims;
`published.json` next to this file holds them, written by `docs/generate.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json

#: All claims, one a line.
PUBLISHED = Path(__file__).with_name("published.json")

#: Text tokens if a paper does not state them: LLaVA's system prompt and a question of a benchmark.
TEXT = 64
#: Other lengths that are tried.
SPAN = (32, 128)
#: Up to this far apart, two numbers are called the same.
SAME = 0.02

Unit = Literal["G", "T", "MB", "%", "x", "tokens"]


@dataclass(frozen=True)
class Claim:
    """A published number and the number computed here.

    Args:
        paper: Name of the method.
        source: Place of the number in the paper.
        what: What it is the cost of.
        published: As printed.
        ours: As counted.
        unit: Of both: 10^9 or 10^12 operations, megabytes, per cent, times, or visual tokens.
        convention: How it is counted here.
        among: Ours at the lengths of text in `SPAN`, where the paper leaves the length open.
        input: Whether this number was used to find an open input, so that it confirms nothing.
        open: Whether the convention is one of several tried, and no other number of the paper settles it.
        decimals: Those that the paper prints, where so few that rounding moves the number by more than `SAME`.
    """

    paper: str
    source: str
    what: str
    published: float
    ours: float
    unit: Unit
    convention: str
    among: tuple[float, float] | None = None
    input: bool = False
    open: bool = False
    decimals: int | None = None

    @property
    def apart(self) -> float:
        """Computed minus published number: in points for per cent, else relative."""
        return (self.ours - self.published) / (100 if self.unit == "%" else self.published)

    @property
    def same(self) -> bool:
        """Whether the numbers differ by at most `SAME`, or only by rounding, and the claim is not an input."""
        rounded = self.decimals is not None and round(self.ours, self.decimals) == self.published
        return (rounded or abs(self.apart) <= SAME) and not self.input

    @property
    def difference(self) -> str:
        """Format the difference between computed and published number."""
        points = self.unit == "%"
        return f"{100 * self.apart:+.1f} {'points' if points else '%'}"

    def shown(self, value: float) -> str:
        """Format a value with its unit, with as many decimals as papers print."""
        few = {"G": 1 if value >= 100 else 2, "T": 2, "MB": 1 if value >= 10 else 2, "%": 1, "x": 1, "tokens": 0}
        decimals = few[self.unit] if self.decimals is None or value != self.published else self.decimals
        return f"{value:,.{decimals}f}{'' if self.unit == 'x' else ' '}{self.unit}"

    def as_json(self) -> dict[str, Any]:
        """Return the claim as plain JSON values."""
        among = None if self.among is None else list(self.among)
        return {**asdict(self), "among": among, "apart": self.apart, "same": self.same}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Claim:
        """What the file holds."""
        among = document["among"]
        values: dict[str, Any] = {**document, "among": None if among is None else tuple(among)}
        return cls(**values)


def spanned(count: Callable[[int], float]) -> dict[str, Any]:
    """Compute a number at `TEXT` tokens of text, and its range over `SPAN`."""
    low, high = sorted(count(text) for text in SPAN)
    return {"ours": count(TEXT), "among": (low, high)}


def recorded() -> list[Claim]:
    """Return the claims in the file.

    Raises:
        FoveateError: the file is not there or is damaged.
    """
    try:
        return [Claim.from_json(document) for document in read_json(PUBLISHED)["claims"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FoveateError(f"{PUBLISHED} holds no published costs; install foveate again.") from error


def text_of(claims: Iterable[Claim]) -> str:
    """The text of the file: a line for every claim."""
    lines = [json.dumps(asdict(claim), ensure_ascii=False) for claim in claims]
    return '{"claims": [\n' + ",\n".join(lines) + "\n]}\n"

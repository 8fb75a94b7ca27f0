"""Entries of the gallery: facts about each method and the families it runs on, as plain values.

Nothing here imports torch, so that `foveate methods` prints at once. `foveate.gallery` computes the entries from the
classes; `index.json` next to this file holds those of this package, written by `docs/generate.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from foveate.core.errors import CODES, FoveateError
from foveate.core.patterns import matching
from foveate.core.text_files import read_json

if TYPE_CHECKING:
    from foveate.core.method import Method

#: The entries of all methods of this package, one a line.
INDEX = Path(__file__).with_name("index.json")

Outcome = Literal["runs", "substitute", "no"]

#: What "substitute" means.
STANDS_IN = "attention received in place of [CLS] attention"


@dataclass(frozen=True)
class Verdict:
    """Whether a method runs on a family.

    Attributes:
        outcome: "runs"; "substitute": runs with what its paper allows in place of a [CLS] token; or "no".
        code: of the refusal where the outcome is "no"; see `foveate.core.errors.CODES`.
        detail: what is wrong, where no code of this package says it.
        conditions: codes of what a user has to bring: "needs-weights", "needs-text-features",
            "needs-nested-connector".
        without_cls: of the family's models whose encoder has no [CLS] token, where others have one; None where all are
            alike.
    """

    outcome: Outcome
    code: str = ""
    detail: str = ""
    conditions: tuple[str, ...] = ()
    without_cls: Verdict | None = None

    @property
    def why(self) -> str:
        """The missing part, the substitute or the condition, in words; empty where there is none."""
        if self.outcome == "no":
            return self.detail or CODES[self.code]
        is_substituted = [STANDS_IN] if self.outcome == "substitute" else []
        return "; ".join([*(CODES[code] for code in self.conditions), *is_substituted])

    def as_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values."""
        return {
            "outcome": self.outcome,
            "code": self.code,
            "why": self.why,
            "conditions": list(self.conditions),
            "without_cls": None if self.without_cls is None else self.without_cls.as_json(),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Verdict:
        """What the index holds: fields that say nothing are missing."""
        inner = document.get("without_cls")
        return cls(
            document["outcome"],
            document.get("code", ""),
            document.get("detail", ""),
            tuple(document.get("conditions", ())),
            None if inner is None else cls.from_json(inner),
        )


@dataclass(frozen=True)
class Entry:
    """One method of the gallery.

    Attributes:
        name: its name in plans.
        title: title of its paper.
        paper: such as "arXiv 2503.02175"; empty for a control.
        site: where it acts: "pre_llm", "decoder", "encoder", "connector", "image" or "frames".
        mechanism: how it chooses or makes tokens, the main class first; see `foveate.core.method.Mechanism`.
        modality: what it is made for.
        summary: first paragraph of its docstring.
        needs: kinds of what has to be measured for it, and whether a substitute is allowed.
        trained: whether it needs weights or thresholds of its own.
        static_count: whether the number of tokens that stay follows from sizes alone.
        budget: "count" (it needs one), "optional", or "none".
        arguments: hyper-parameters with their defaults.
        families: verdict for every family by name.
        module: where its class is.
    """

    name: str
    title: str
    paper: str
    site: str
    mechanism: tuple[str, ...]
    modality: tuple[str, ...]
    summary: str
    needs: dict[str, bool]
    trained: bool
    static_count: bool
    budget: str
    arguments: dict[str, Any]
    families: dict[str, Verdict]
    module: str = ""

    @property
    def runs_on(self) -> list[str]:
        """Families on which it runs."""
        return [name for name, verdict in self.families.items() if verdict.outcome != "no"]

    def as_json(self) -> dict[str, Any]:
        """The entry as plain JSON values."""
        return {
            **asdict(self),
            "mechanism": list(self.mechanism),
            "modality": list(self.modality),
            "needs": [{"kind": kind, "substitute": substitute} for kind, substitute in self.needs.items()],
            "arguments": {name: _plain(value) for name, value in self.arguments.items()},
            "families": {name: verdict.as_json() for name, verdict in self.families.items()},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Entry:
        """What the index holds."""
        values: dict[str, Any] = {
            **document,
            "mechanism": tuple(document["mechanism"]),
            "modality": tuple(document["modality"]),
            "needs": {need["kind"]: need["substitute"] for need in document["needs"]},
            "arguments": {name: _frozen(value) for name, value in document["arguments"].items()},
            "families": {name: Verdict.from_json(verdict) for name, verdict in document["families"].items()},
        }
        return cls(**values)


def methods_named(pattern: str | None = None) -> dict[str, type[Method]]:
    """Return the methods that a plan can name, or those that a pattern names, by name, in alphabetical order.

    Args:
        pattern: shell wildcards (`*`, `?`, `[ab]`) for a name or a title, in any case.

    Raises:
        FoveateError: no method has such a name or title.
    """
    from foveate.core.registry import all_methods  # imports torch, which listing methods from the index does not need

    known = all_methods()
    chosen = matching(known.values(), pattern)
    if not chosen:
        refuse_unknown(pattern, list(known))
    return {cls.name: cls for cls in chosen}


def refuse_unknown(pattern: str | None, names: Sequence[str]) -> NoReturn:
    """Refuse a pattern that names no method, with the names that are close.

    Raises:
        FoveateError: always.
    """
    close = get_close_matches(str(pattern).strip("*?").lower(), names, 3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise FoveateError(f"no method is called {pattern!r}; {hint}possible are {', '.join(names)}.")


@cache
def indexed() -> tuple[Entry, ...]:
    """Entries of this package's methods, from the index.

    Raises:
        FoveateError: the index is not there or is damaged.
    """
    try:
        return tuple(Entry.from_json(document) for document in read_json(INDEX)["methods"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FoveateError(f"{INDEX} holds no index of methods; install foveate again.") from error


def index_of(entries: Iterable[Entry]) -> str:
    """The text of the index: a line for every method, without values that say nothing."""
    lines = []
    for entry in entries:
        verdicts = {name: _without_defaults(asdict(verdict)) for name, verdict in entry.families.items()}
        lines.append(json.dumps({**entry.as_json(), "families": verdicts}, ensure_ascii=False))
    return '{"methods": [\n' + ",\n".join(lines) + "\n]}\n"


def _without_defaults(verdict: dict[str, Any]) -> dict[str, Any]:
    said = {name: value for name, value in verdict.items() if value}
    return {name: _without_defaults(value) if isinstance(value, dict) else value for name, value in said.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else str(value)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value

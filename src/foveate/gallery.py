"""The gallery: what every method is, and on which families it runs, computed from the two registries.

`foveate methods` prints it, and `docs/methods.md` and `docs/matrix.md` are generated from it.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal

from foveate.core.errors import FoveateError
from foveate.core.plan import Plan, Step, all_methods
from foveate.core.tokens import EncoderSpec, Need
from foveate.families import Family, families
from foveate.runtime.probe import OF_ATTENTION, OF_OUTPUT
from foveate.runtime.requirements import OF_PROMPT, check_sites

#: Blocks of the encoder that needs are asked for, and the block whose output it gives: those of CLIP in LLaVA-1.5.
BLOCKS, OUTPUT_LAYER = 24, 22

Outcome = Literal["runs", "substitute", "no"]


@dataclass(frozen=True)
class Verdict:
    """Whether a method runs on a family.

    Attributes:
        outcome: "runs"; "substitute": runs with what its paper allows in place of a [CLS] token; or "no".
        why: what stands in, what is missing, or what it depends on; empty where there is nothing to say.
    """

    outcome: Outcome
    why: str = ""


@dataclass(frozen=True)
class Entry:
    """One method of the gallery.

    Attributes:
        name: its name in plans.
        title: title of its paper.
        paper: such as "arXiv 2503.02175"; empty for a control.
        site: where it acts: "pre_llm", "decoder", "encoder" or "image".
        mechanism: how it chooses or makes tokens, the main class first; see `foveate.core.registry`.
        modality: what it is made for.
        summary: first paragraph of its docstring.
        needs: what has to be measured for it.
        trained: whether it needs weights or thresholds of its own.
        static_count: whether the number of tokens that stay follows from sizes alone.
        budget: "count" (it needs one), "optional", or "none".
        arguments: hyper-parameters with their defaults.
        families: verdict for every family by name.
    """

    name: str
    title: str
    paper: str
    site: str
    mechanism: tuple[str, ...]
    modality: tuple[str, ...]
    summary: str
    needs: tuple[Need, ...]
    trained: bool
    static_count: bool
    budget: str
    arguments: dict[str, Any]
    families: dict[str, Verdict]

    def as_json(self) -> dict[str, Any]:
        """The entry as plain JSON values."""
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        document |= {"mechanism": list(self.mechanism), "modality": list(self.modality)}
        document["needs"] = [{"kind": kind, "substitute": own} for kind, own in self.kinds.items()]
        document["arguments"] = {name: _plain(value) for name, value in self.arguments.items()}
        document["families"] = {name: vars(verdict) for name, verdict in self.families.items()}
        return document

    @property
    def kinds(self) -> dict[str, bool]:
        """Kinds of needs, each once, and whether a substitute is allowed."""
        return {need.kind: need.substitute for need in self.needs}


def gallery(pattern: str | None = None, *, none_is_wrong: bool = True) -> list[Entry]:
    """All methods, or those that a pattern names, in alphabetical order.

    Args:
        pattern: shell wildcards (`*`, `?`, `[ab]`) for a name or a title, in any case.
        none_is_wrong: whether a pattern that names no method is an error.

    Raises:
        FoveateError: no method has such a name or title.
    """
    known = all_methods()
    chosen = [name for name, cls in known.items() if pattern is None or _matches(pattern, name, cls.title)]
    if not chosen and none_is_wrong:
        close = get_close_matches(str(pattern).strip("*?").lower(), known, 3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise FoveateError(f"no method is called {pattern!r}; {hint}possible are {', '.join(known)}.")
    return [_entry(known[name]) for name in chosen]


def verdict(method: Any, family: Family) -> Verdict:
    """Whether a method (object) runs on a family, found without a model.

    A family whose encoder has a [CLS] token in some models and none in others is judged by those that have one; `why`
    then says what happens on the others.
    """
    try:
        check_sites(Plan((Step(method),)), family)
    except FoveateError as error:
        return Verdict("no", _because(str(error)))
    if method.site not in ("pre_llm", "decoder"):
        return Verdict("runs")
    without = _on_tower(method, family, EncoderSpec(BLOCKS, False, family.merge, OUTPUT_LAYER))
    if type(family).has_cls is Family.has_cls:
        return without
    found = _on_tower(method, family, EncoderSpec(BLOCKS, True, family.merge, OUTPUT_LAYER))
    if found == without:
        return found
    other = "the substitute" if without.outcome == "substitute" else "not possible"
    return Verdict(found.outcome, "; ".join(filter(None, (found.why, f"on encoders without [CLS]: {other}"))))


def _on_tower(method: Any, family: Family, tower: EncoderSpec) -> Verdict:
    try:
        needs = method.needs(tower)
    except FoveateError as error:
        return Verdict("no", str(error).rstrip("."))
    outcome: Outcome = "runs"
    why: dict[str, None] = {"needs trained weights": None} if method.trained else {}
    for need in needs:
        if need.kind.startswith("cls") and not tower.has_cls:
            if not (need.kind == "cls_attention" and need.substitute):
                return Verdict("no", "needs a [CLS] token, and the encoder has none")
            outcome = "substitute"
            why["attention received in place of [CLS] attention"] = None
        if need.kind == "first_layer_attention" and not family.first_layer:
            return Verdict("no", "needs the attention of the language model's first layer, which cannot be asked")
        if need.kind not in (*OF_ATTENTION, *OF_OUTPUT, *OF_PROMPT):
            return Verdict("no", f"needs {need.kind}, which no probe of a live model gives")
        if need.kind == "text_feature":
            why["needs text_features from a contrastive text encoder"] = None
    return Verdict(outcome, "; ".join(why))


def _because(message: str) -> str:
    """The reason in a refusal, without the names that the table already has."""
    if "merges inside the encoder" in message:
        return "needs every patch to become one token of the language model"
    if "cannot reduce the images" in message:
        return "its images are no single raster that could be made smaller"
    return message.rstrip(".")


def _entry(cls: Any) -> Entry:
    sample = _sample(cls)
    tower = EncoderSpec(BLOCKS, True, 1, OUTPUT_LAYER)
    return Entry(
        name=cls.name,
        title=cls.title,
        paper=cls.paper,
        site=cls.site,
        mechanism=cls.mechanism,
        modality=cls.modality,
        summary=" ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()),
        needs=tuple(sample.needs(tower)) if hasattr(sample, "needs") else (),
        trained=cls.trained,
        static_count=cls.static_count,
        budget=cls.budget,
        arguments={field.name: _default(field) for field in dataclasses.fields(cls) if field.init},
        families={name: verdict(sample, family) for name, family in families().items()},
    )


def _sample(cls: Any) -> Any:
    """A method with its defaults; one that cannot be made without arguments has those defaults that there are.

    A trained method gets the name of a file: only with weights does it say what it needs, and it reads them later.
    """
    try:
        return cls(weights="FILE") if "weights" in {field.name for field in dataclasses.fields(cls)} else cls()
    except (FoveateError, TypeError):
        return object.__new__(cls)


def _default(field: Any) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "required" if field.default is dataclasses.MISSING else field.default


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else str(value)


def _matches(pattern: str, *texts: str) -> bool:
    return any(fnmatchcase(text.lower(), pattern.lower()) for text in texts)

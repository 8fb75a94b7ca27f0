"""Gallery of methods and the model families that they support, computed from the two registries.

`docs/methods.md`, `docs/matrix.md` and the index that `foveate methods` prints from are generated from it.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from foveate.core.errors import CODES, FoveateError, Refusal
from foveate.core.method import Site
from foveate.core.plan import Plan, Step
from foveate.core.tokens import EncoderSpec
from foveate.families import Family, families
from foveate.methods.entries import Entry, Verdict, methods_named
from foveate.runtime.requirements import check_sites, is_substituted, missing_need

__all__ = ["Entry", "Verdict", "gallery", "verdict"]

#: Blocks of the encoder that needs are asked for, and the block whose output it gives: those of CLIP in LLaVA-1.5.
BLOCKS, OUTPUT_LAYER = 24, 22


def gallery(pattern: str | None = None) -> list[Entry]:
    """Return all methods, or those that a pattern names, in alphabetical order.

    Args:
        pattern: shell wildcards (`*`, `?`, `[ab]`) for a name or a title, in any case.

    Raises:
        FoveateError: no method has such a name or title.
    """
    return [_entry(cls) for cls in methods_named(pattern).values()]


def verdict(method: Any, family: Family) -> Verdict:
    """Whether a method (object) supports a family, determined without a model.

    A family whose encoder has a [CLS] token in some models and none in others is judged by those that have one;
    `without_cls` has the outcome for the others.
    """
    if method.site is Site.FRAMES:
        if not family.reads_clips:
            return _no(Refusal("needs-clips", f"{method.name} chooses frames of clips, and {family.title} reads none"))
        return Verdict("runs")
    if method.site is Site.ACQUISITION:  # two calls of any model, nothing is attached
        return Verdict("runs", conditions=("needs-asking-model",))
    try:
        check_sites(Plan((Step(method),)), family)
    except FoveateError as error:
        return _refused(error)
    if method.site is Site.CONNECTOR and family.connectors:
        return Verdict("runs", conditions=("needs-nested-connector",))
    if method.shortens_encoder:
        return Verdict("runs")
    first, *others = (
        _on_encoder(method, family, EncoderSpec(BLOCKS, has_cls, family.merge, OUTPUT_LAYER))
        for has_cls in family.cls_tokens
    )
    return dataclasses.replace(first, without_cls=others[0]) if others and others[0] != first else first


def _on_encoder(method: Any, family: Family, encoder: EncoderSpec) -> Verdict:
    try:
        needs = method.needs(encoder)
    except FoveateError as error:
        return _refused(error)
    conditions: dict[str, None] = {"needs-weights": None} if method.trained else {}
    substitute = False
    for need in needs:
        refusal = missing_need(method.name, need, family, encoder)
        if refusal is not None:
            return _no(refusal)
        substitute |= is_substituted(need, encoder)
        if need.kind == "text_feature":
            conditions["needs-text-features"] = None
    return Verdict("substitute" if substitute else "runs", conditions=tuple(conditions))


def _refused(error: FoveateError) -> Verdict:
    return Verdict("no", detail=str(error).rstrip(".")) if error.refusal is None else _no(error.refusal)


def _no(refusal: Refusal) -> Verdict:
    return Verdict("no", refusal.code, "" if refusal.code in CODES else refusal.what)


def _entry(cls: Any) -> Entry:
    sample = _sample(cls)
    needs = sample.needs(EncoderSpec(BLOCKS, True, 1, OUTPUT_LAYER))
    return Entry(
        name=cls.name,
        title=cls.title,
        paper=cls.paper,
        site=str(cls.site),
        mechanism=cls.mechanism,
        modality=cls.modality,
        summary=" ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()),
        needs={need.kind: need.substitute for need in needs},
        trained=cls.trained,
        static_count=cls.static_count,
        budget=cls.budget,
        arguments={field.name: _default(field) for field in dataclasses.fields(cls) if field.init},
        families={name: verdict(sample, family) for name, family in families().items()},
        module=cls.__module__,
    )


def _sample(cls: Any) -> Any:
    """Create a method with its defaults, or with partial defaults if it needs arguments.

    A trained method gets a placeholder file name, since it states its needs only with weights, which it loads later.
    """
    try:
        return cls(weights="FILE") if "weights" in {field.name for field in dataclasses.fields(cls)} else cls()
    except (FoveateError, TypeError):
        return object.__new__(cls)


def _default(field: Any) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "required" if field.default is dataclasses.MISSING else field.default

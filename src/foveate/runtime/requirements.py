"""Check a plan against a family, and collect what it needs to have measured."""

from __future__ import annotations

from foveate.core.connector import RasterMethod
from foveate.core.errors import FoveateError, Refusal
from foveate.core.method import Method, Site
from foveate.core.plan import Plan
from foveate.core.tokens import EncoderSpec, Need
from foveate.families import Family
from foveate.families.family import OUTSIDE_ENCODER
from foveate.runtime.probe import OF_ATTENTION, OF_OUTPUT

#: Kinds of needs that come from the prompt.
OF_PROMPT = ("instruction", "text_feature", "first_layer_attention")


#: Sites whose methods act before there are tokens to select from, and what such a method does.
_FIRST = {
    Site.IMAGE: "acts on the image",
    Site.ENCODER: "acts inside the encoder",
    Site.CONNECTOR: "sets the length of the connector",
}


def check_sites(plan: Plan, family: Family) -> None:
    """Raise FoveateError for an impossible order of steps, or a site that the family lacks."""
    for place, step in enumerate(plan.steps):
        method = step.method
        if method.site is Site.ACQUISITION:
            raise FoveateError(
                Refusal(
                    "needs-two-turns",
                    f"{method.name} reads an image again where the model asks for it, in a second call of the model, "
                    "and cannot be attached to it",
                    f"use foveate.ask(image, question, model, '{step}'), foveate ask, foveate batch or foveate serve",
                )
            )
        if place and method.site in _FIRST:
            raise _wrong_order(f"{method.name} {_FIRST[method.site]}", "it must come first in a plan")
        if method.site is Site.FRAMES:
            others = f", and attach '{plan.for_model}' to the model" if plan.for_model is not None else ""
            raise FoveateError(
                Refusal(
                    "chooses-frames",
                    f"{step} chooses frames of a file, which a live model never sees",
                    f"give the whole plan to foveate.ask, foveate batch or foveate serve, or choose frames by "
                    f"foveate.clips.open_clip(path, sampler=...){others}",
                )
            )
        if method.site is Site.ENCODER:
            if not family.patchwise:
                raise FoveateError(
                    Refusal(
                        "needs-one-token-per-patch",
                        f"{method.name} merges inside the encoder, which needs every patch to become one token of the "
                        f"language model, and in {family.title} it does not",
                        "choose a method that acts before the language model",
                    )
                )
            if family.tiled and step.budget is not None and step.budget.tokens is not None:
                raise FoveateError(
                    Refusal(
                        "needs-fraction-for-tiles",
                        f"{step} counts tokens of an image, and inside the encoder of {family.title} its tiles merge "
                        "each by itself",
                        f"give a fraction, such as {method.name}:25%",
                    )
                )
        elif method.site is Site.IMAGE:
            if type(family).grids is Family.grids:
                raise FoveateError(
                    Refusal(
                        "needs-one-raster",
                        f"{method.name} cannot reduce the images of {family.title}, which are no single raster",
                        "their processor can",
                    )
                )
        elif method.site is Site.CONNECTOR:
            if isinstance(method, RasterMethod) and not family.connectors:
                if family.raster_features is None:
                    raise FoveateError(
                        Refusal(
                            "needs-raster-features",
                            f"{method.name} maps the features of an image before a projector or after a merger, which "
                            f"is not possible in {family.title}",
                            "choose a method that acts before the language model",
                        )
                    )
            elif not family.connectors:
                raise FoveateError(
                    Refusal(
                        "needs-nested-connector",
                        f"{method.name} needs a model with a connector of foveate, which {family.title} has not",
                        "choose a method that acts before the language model",
                    )
                )
        elif method.site is Site.DECODER:
            if not family.decoder:
                raise FoveateError(
                    Refusal(
                        "needs-decoder-layers",
                        f"{method.name} acts inside the language model, whose layers in {family.title} cannot be given "
                        "shorter sequences one by one",
                        "choose a method that acts before the language model",
                    )
                )
            if any(not later.method.takes_layers for later in plan.steps[place:]):
                raise _wrong_order(f"{method.name} acts inside the language model", "what comes before that goes first")
        elif method.site is not Site.PRE_LLM:
            raise FoveateError(
                Refusal(
                    "unknown-site", f"{method.name} acts at the site '{method.site}', where nothing can be attached"
                )
            )
        if getattr(method, "virtual", False) and len(plan.steps) > 1:
            raise _wrong_order(
                f"{method.name} attends as if nothing had been merged, so nothing can go after it",
                "give it virtual=False",
            )


def _wrong_order(what: str, possible: str) -> FoveateError:
    return FoveateError(Refusal("wrong-order", what, possible))


def check_budgets(plan: Plan) -> None:
    """Raise FoveateError for a step without the budget that its method needs, or with arguments that it excludes."""
    for step in plan.steps:
        method, name = step.method, step.method.name
        method.check_budget(step.budget)
        unused = "with_budget" if step.budget is None else "without_budget"
        for argument in getattr(method, unused):
            if argument in method.arguments:
                code, condition, action = (
                    ("argument-needs-budget", "with", "give one")
                    if step.budget is None
                    else ("argument-excludes-budget", "without", "leave it out")
                )
                raise FoveateError(
                    Refusal(
                        code,
                        f"{name}: {argument} means something {condition} a budget alone",
                        f"{action}, or leave {argument} at its default",
                    )
                )


def needs_of(
    plan: Plan, family: Family, tower: EncoderSpec, text_features: bool
) -> tuple[tuple[Need, ...], tuple[str, ...]]:
    """Needs of the steps of a plan, and notes for the user.

    Args:
        plan: The plan.
        family: The family of the model.
        tower: Specification of its encoder.
        text_features: Whether the caller gave embeddings of the prompts by a contrastive text encoder.

    Returns:
        The needs, each once, and notes such as a substitute for what the encoder lacks.

    Raises:
        FoveateError: the encoder, or the caller, does not provide what a method needs.
    """
    first = plan.steps[0].method
    needs: dict[Need, None] = {}
    notes: dict[str, None] = {}
    for step in plan.steps:
        name = step.method.name
        for need in step.method.needs(tower):
            refusal = missing_need(name, need, family, tower)
            if refusal is not None:
                raise FoveateError(refusal)
            if is_substituted(need, tower):
                notes[f"{name}: attention received in place of [CLS] attention"] = None
            if need.kind == "text_feature" and not text_features:
                raise FoveateError(
                    Refusal(
                        "needs-text-features",
                        f"{name} compares the image with the prompt in the space of a contrastive text encoder",
                        "pass text_features=... to compress",
                    )
                )
            if (refusal := missing_patches(name, need, first, tower)) is not None:
                raise FoveateError(refusal)
            needs[need] = None
    if text_features and not any(need.kind == "text_feature" for need in needs):
        raise FoveateError(
            Refusal(
                "unused-text-features",
                f"'{plan}' compares nothing with text_features",
                "leave them out, or choose a method that does, such as cdpruner(relevance=text)",
            )
        )
    return tuple(needs), tuple(notes)


def is_substituted(need: Need, tower: EncoderSpec) -> bool:
    """Whether attention received is used in place of [CLS] attention, which the encoder lacks."""
    return need.kind == "cls_attention" and need.substitute and not tower.has_cls


def missing_patches(name: str, need: Need, first: Method, tower: EncoderSpec) -> Refusal | None:
    """Why no value of every patch reaches the method `name` in a plan that begins with `first`; None: it does."""
    if need.kind not in (*OF_ATTENTION, *OF_OUTPUT):
        return None
    if not tower.spatial and need.kind != "cls_feature":
        return Refusal(
            "needs-equal-regions",
            f"{name} needs {need.kind} of every patch, and tokens of this model stand for no part of the image",
            "choose a method that measures nothing in the encoder",
        )
    if first.shortens_encoder:
        return Refusal(
            "needs-every-patch",
            f"{name} needs {need.kind} of every patch, and after {first.name} there are fewer",
            "join it with a method that needs nothing of the encoder",
        )
    return None


def missing_need(name: str, need: Need, family: Family, tower: EncoderSpec) -> Refusal | None:
    """Why a family and its encoder cannot provide what the method `name` needs; None: they can.

    What the caller has to pass, such as `text_features`, is not checked.
    """
    if not family.measures_encoder and need.kind not in OUTSIDE_ENCODER:
        return Refusal(
            "needs-plain-encoder",
            f"{name} measures the encoder ({need.kind}), and {family.title} merges its patches over space and time",
            "choose a method that reads only the tokens after the connector, such as divprune",
        )
    if need.kind.startswith("cls") and not tower.has_cls and not is_substituted(need, tower):
        return Refusal(
            "needs-cls", f"{name} needs the encoder's [CLS] token ({need.kind}), and {family.title} has none"
        )
    if need.kind == "first_layer_attention" and not family.first_layer:
        return Refusal(
            "needs-first-layer-attention",
            f"{name} needs the attention of the language model's first layer, and that of {family.title} cannot be "
            "computed before the layer runs",
        )
    if need.kind not in (*OF_ATTENTION, *OF_OUTPUT, *OF_PROMPT):
        return Refusal("needs-known-measurement", f"{name} needs {need.kind}, which no probe of a live model measures")
    return None

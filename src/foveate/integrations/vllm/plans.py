"""Plans of a vLLM engine, their support in vLLM, and their token counts."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import torch

from foveate.core.connector import RasterMethod
from foveate.core.errors import FoveateError, Refusal
from foveate.core.full_model import FULL_MODEL, is_full_model
from foveate.core.method import Method, Site
from foveate.core.plan import Plan
from foveate.core.registry import model_methods
from foveate.core.tokens import EncoderSpec, Need
from foveate.core.video import VideoMethod
from foveate.families import Family, families
from foveate.families.family import check_connector, places_at_length, spread_by
from foveate.integrations.vllm.connectors import ServedConnector, served_connector
from foveate.methods.video.ts_llava import TSLLaVA
from foveate.runtime.probe import OF_ATTENTION, OF_OUTPUT
from foveate.runtime.requirements import OF_PROMPT, check_sites, is_substituted, missing_patches
from foveate.serving.protocol import refuse_files

#: Name of the plan, in `--hf-overrides` for an engine and in `mm_processor_kwargs` for a request.
NAME = "foveate_plan"
#: Environment variable that is read without an override.
VARIABLE = "FOVEATE_PLAN"
#: Bytes of the longest plan.
LONGEST = 256
#: Why an engine's encoder cannot be looked into, noted in its configuration when it starts.
BLIND = "foveate_blind"

#: Methods whose tokens carry the positions of several others, by dimension of the rotary embedding.
_CARRYING = ("ppe",)
#: Models whose clips are compressed too. Clips of Qwen3-VL have text between frames: vLLM would have to know the tokens
#: of every frame before the clip is encoded.
_CLIPS = ("qwen2_5_vl",)
#: Encoders of LLaVA, and how all patches and nothing else are taken from them.
_STRATEGIES = {"clip_vision_model": "default", "siglip_vision_model": "full"}


@dataclass(frozen=True)
class ServedPlan:
    """A plan that vLLM supports on one kind of model.

    Args:
        plan: Its steps are all before the language model, after one that chooses the length of a nested connector or
            without it; None leaves every token.
        needs: What must be measured in the encoder, each once.
        places: Places of the tokens of the connector at this length, among those that it gives by default, ascending;
            None: it gives these.
    """

    plan: Plan | None
    needs: tuple[Need, ...] = ()
    places: tuple[int, ...] | None = None

    @property
    def key(self) -> str:
        """Identifier of the embeddings under this plan: 16 hexadecimal digits."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:16]

    def count(self, tokens: int) -> int:
        """Return the number of kept tokens of an image or clip of `tokens` tokens."""
        for step in self.plan.steps if self.plan is not None else ():
            tokens = step.count(tokens) or tokens  # every step has a budget
        return tokens

    def __str__(self) -> str:
        return FULL_MODEL if self.plan is None else str(self.plan)


@dataclass(frozen=True)
class EnginePlans:
    """Plans that an engine accepts.

    Args:
        kind: `model_type` of the model.
        tower: Its encoder.
        axes: Axes of its positions; with several (M-RoPE) tokens keep the positions they had.
        text: The engine's plan, as a user wrote it; what is not named by a request.
        blind: Why its encoder cannot be looked into; empty: it can.
        connector: Its connector, of models with one of foveate.
    """

    kind: str
    tower: EncoderSpec
    axes: int
    text: str
    blind: str = ""
    connector: ServedConnector | None = None

    @property
    def family(self) -> Family:
        """Family of the model."""
        return _families()[self.kind]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities whose tokens are compressed: "image", or "image" and "video"."""
        return ("image", "video") if self.kind in _CLIPS else ("image",)

    def setting(self, text: Any = None, *, request: bool = False) -> ServedPlan:
        """Parse a plan into a setting.

        Args:
            text: The plan; None is the engine's.
            request: Whether a request names it: such plans load no files.

        Raises:
            FoveateError: vLLM cannot serve it.
        """
        if text is None:
            return _setting(self, self.text)
        if not isinstance(text, str) or not text.strip():
            raise FoveateError(f"{NAME} is a plan as text, such as 'divprune:64' or '{FULL_MODEL}', not {text!r}.")
        if len(text.encode(errors="replace")) > LONGEST:
            raise FoveateError(f"{NAME} has {len(text)} characters; a plan in vLLM has {LONGEST} bytes at most.")
        if request and text != self.text:
            _check_files(text)
        return _setting(self, text)


@lru_cache(maxsize=1024)
def _check_files(text: str) -> None:
    if not is_full_model(text):
        refuse_files(Plan.of(text))


@lru_cache(maxsize=1024)
def _setting(serving: EnginePlans, text: str) -> ServedPlan:
    if is_full_model(text):
        return ServedPlan(None)
    plan, title = Plan.of(text), serving.family.title
    for step in plan.steps:
        method = step.method
        nested = method.site is Site.CONNECTOR and (serving.connector or not isinstance(method, RasterMethod))
        if method.site is not Site.PRE_LLM and not nested:
            raise FoveateError(
                Refusal(
                    "site-not-served",
                    f"{method.name} acts at the site '{method.site}'",
                    f"vLLM serves methods that act before the language model ({', '.join(servable())}) and lengths of "
                    "nested connectors",
                )
            )
        if not method.static_count or step.budget is None:
            raise FoveateError(
                Refusal(
                    "count-not-from-sizes",
                    f"how many tokens '{step}' leaves does not follow from the size of an image or clip, as vLLM needs",
                    f"possible are {', '.join(servable())}, with a budget",
                )
            )
        if method.name in _CARRYING:
            raise FoveateError(
                Refusal(
                    "several-positions",
                    f"{method.name} gives a token several positions, which vLLM's layers do not take",
                )
            )
    if serving.axes == 1 and plan.steps[-1].method.positions != "contiguous":
        raise FoveateError(
            Refusal(
                "keeps-positions",
                f"{plan.steps[-1].method.name} keeps the positions of the long sequence, and vLLM counts those of "
                f"{title} anew",
            )
        )
    check_sites(plan, serving.family)
    if "video" in serving.modalities:
        _check_clips(plan)
    places = _places(plan, serving.connector) if serving.connector else None
    needs: dict[Need, None] = {}
    for step in plan.steps:
        for need in step.method.needs(serving.tower):
            _check(step.method.name, need, plan.steps[0].method, serving)
            needs[need] = None
    if needs and serving.blind:
        raise FoveateError(
            Refusal("encoder-not-readable", f"'{plan}' measures inside the encoder, and {serving.blind}")
        )
    return ServedPlan(plan, tuple(needs), places)


def _check_clips(plan: Plan) -> None:
    """Refuse a plan that some clips could not be shortened under, which would be known only once one was encoded."""
    for before, step in zip((None, *plan.steps), plan.steps, strict=False):
        method = step.method
        if before is not None and isinstance(method, VideoMethod):
            raise FoveateError(
                Refusal(
                    "needs-whole-frames",
                    f"{method.name} compares the frames of a clip with each other, which lack tokens after "
                    f"{before.method.name}",
                    "let a method for clips be the first step of a plan",
                )
            )
        if isinstance(method, TSLLaVA) and method.thumbnails:
            raise FoveateError(
                Refusal(
                    "chooses-frames",
                    f"'{step}' needs clips with thumbnails among their frames, which the step thumbnails makes, and "
                    "vLLM chooses frames itself",
                    f"leave thumbnails out, as in {method.name}:25%",
                )
            )


def _places(plan: Plan, served: ServedConnector) -> tuple[int, ...] | None:
    """`ServedPlan.places` of a plan.

    Raises:
        FoveateError: The connector cannot give the number of tokens that the plan chooses.
    """
    check_connector(served.connector, plan)
    step = plan.steps[0]
    count = step.count(served.tokens)
    if step.method.site is not Site.CONNECTOR or count is None or count == served.tokens:
        return None
    return tuple(places_at_length(served.connector, served.grid, count).tolist())


def plan_text(config: Any) -> Any:
    """Read an engine's plan from its Hugging Face configuration, else from the environment; "" is none.

    An override that is empty or null disables plans regardless of the environment. The value of the environment is
    stored in the configuration, so that an engine keeps it.
    """
    if not hasattr(config, NAME):
        setattr(config, NAME, os.environ.get(VARIABLE, ""))
    text = getattr(config, NAME)
    return "" if text is None else text


def serving_of(config: Any) -> EnginePlans | None:
    """Read an engine's plans; see `plan_text`.

    Returns:
        None where the engine has no plan: it is as vLLM made it.

    Raises:
        FoveateError: the plan is no text, or the model is of a kind that has none.
    """
    text = plan_text(config)
    if text == "":
        return None
    if not isinstance(text, str):
        raise FoveateError(f"{NAME} is a plan as text, such as 'divprune:64' or '{FULL_MODEL}', not {text!r}.")
    vision, connector = config.vision_config, served_connector(config)
    if connector is not None:
        tower, axes = _connector_tower(config, connector), 1
    elif config.model_type in ("llava", "llava_next"):
        tower, axes = _llava_tower(config), 1
    else:
        depth = vision.depth
        tower, axes = EncoderSpec(depth, False, vision.spatial_merge_size**2, depth - 1), 3
    return EnginePlans(config.model_type, tower, axes, text, getattr(config, BLIND, ""), connector)


def _llava_tower(config: Any) -> EncoderSpec:
    vision, layer = config.vision_config, config.vision_feature_layer
    if not isinstance(layer, int) or _STRATEGIES.get(vision.model_type) != config.vision_feature_select_strategy:
        raise FoveateError(
            Refusal(
                "encoder-not-served",
                f"{_families()[config.model_type].title} takes plans in vLLM with all patches of one layer of a CLIP "
                f"or SigLIP encoder, not with a {vision.model_type}, layer {layer}, "
                f"{config.vision_feature_select_strategy!r}",
            )
        )
    blocks = vision.num_hidden_layers
    used = (layer if layer >= 0 else layer + blocks + 1) - 1
    return EncoderSpec(blocks, vision.model_type == "clip_vision_model", output_layer=used)


def _connector_tower(config: Any, served: ServedConnector) -> EncoderSpec:
    """The encoder of a model with a connector of foveate, and how many patches become a token."""
    tower, connector = _llava_tower(config), served.connector
    layers = [layer % (tower.num_layers + 1) for layer in connector.feature_layers(tower.num_layers)]
    output_layer = max(layers) - 1 if layers else tower.output_layer
    return replace(tower, merge=connector.multiple**2, output_layer=output_layer, spatial=connector.spatial)


def servable() -> list[str]:
    """List the methods whose kept tokens depend on the image alone and whose count depends on its size."""
    supported = []
    for name, method in model_methods().items():
        if method.site is not Site.PRE_LLM or not method.static_count or method.budget == "none" or name in _CARRYING:
            continue
        try:
            needs = method().needs(EncoderSpec(24, True))
        except (TypeError, FoveateError):  # it cannot be made without arguments
            continue
        if not any(need.kind in OF_PROMPT for need in needs) and not method.trained:
            supported.append(name)
    return supported


@cache
def _families() -> dict[str, Family]:
    return {kind: family for family in families().values() for kind in family.model_types}


def _check(name: str, need: Need, first: Method, serving: EnginePlans) -> None:
    """Refuse a method `name`, in a plan that begins with `first`, that needs what cannot be measured in vLLM."""
    tower, title = serving.tower, serving.family.title
    if need.kind in OF_PROMPT:
        raise FoveateError(
            Refusal(
                "needs-prompt",
                f"{name} reads the prompt ({need.kind}), and vLLM keeps the tokens of an image for all prompts",
            )
        )
    if need.kind not in (*OF_ATTENTION, *OF_OUTPUT):
        raise FoveateError(
            Refusal("needs-known-measurement", f"{name} needs {need.kind}, which is not measured in vLLM")
        )
    if need.kind.startswith("cls") and not tower.has_cls and not is_substituted(need, tower):
        raise FoveateError(
            Refusal("needs-cls", f"{name} needs the encoder's [CLS] token ({need.kind}), and {title} has none")
        )
    if need.layer is not None and tower.layer(need.layer) > tower.last_used:
        raise FoveateError(
            Refusal(
                "needs-later-block",
                f"{name} reads block {need.layer} of the encoder, and vLLM runs it up to block {tower.last_used} only",
            )
        )
    if (refusal := missing_patches(name, need, first, tower)) is not None:
        raise FoveateError(refusal)
    if serving.connector is not None and need.kind != "cls_feature":
        grid = serving.connector.grid
        spread_by(serving.connector.connector, torch.zeros(grid.size, 1), grid)  # refuses unequal rectangles

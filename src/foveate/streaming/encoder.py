"""Encode the frames of one step of a stream, and select its tokens."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foveate.core.causal_video import CausalVideoMethod, FrameSelector
from foveate.core.errors import FoveateError, Refusal
from foveate.core.in_encoder import EncoderMethod
from foveate.core.method import Site
from foveate.core.plan import Plan
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import Grid, Need, Selection, VisualTokens, check_finite, select_tokens, wide
from foveate.core.video import VideoMethod
from foveate.families import Family
from foveate.methods.encoder.stc_cacher import STCCacher
from foveate.runtime.encoding import ImageEncoder
from foveate.runtime.feature_reuse import FeatureReuse, FrameHistory
from foveate.runtime.patches import Patches
from foveate.runtime.probe import OF_ATTENTION, Probe
from foveate.runtime.requirements import OF_PROMPT, check_budgets, needs_of
from foveate.streaming.policies import CachePolicy


@dataclass(frozen=True)
class EncodedStep:
    """Visual tokens of one step.

    Args:
        grid: Rows and columns of its tokens before the plan.
        selection: The tokens that the plan keeps.
        tokens: These tokens, as the language model reads them.
        planes: (k, D) DeepStack features of these tokens, for the first layers of the language model.
    """

    grid: Grid
    selection: Selection
    tokens: VisualTokens
    planes: tuple[Tensor, ...]


@dataclass
class EncoderState:
    """What is remembered of earlier steps of a stream.

    Args:
        history: The last reference frame, where features are reused.
        selectors: State of the causal methods of the plan, by their place in it.
    """

    history: FrameHistory = field(default_factory=FrameHistory)
    selectors: dict[int, FrameSelector] = field(default_factory=dict)

    def fork(self) -> EncoderState:
        """The same state, for steps that the stream itself does not keep."""
        history = FrameHistory(self.history.frames, dict(self.history.references))
        return EncoderState(history, copy.deepcopy(self.selectors))


class StepEncoder:
    """Encoder of a model, with the plan and the measurements of a stream.

    Args:
        family: The family of the model.
        core: The model without its output layer.
        plan: Steps before the language model, possibly none.
        policy: Policy of the cache, whose needs are measured too.
        reuse: Reuse of features between frames; None: every frame is computed in full.

    Raises:
        FoveateError: a step of the plan needs the prompt or the whole clip, or acts elsewhere; or the encoder does not
            give what it needs.
    """

    def __init__(
        self, family: Family, core: Any, plan: Plan, policy: CachePolicy, reuse: STCCacher | None = None
    ) -> None:
        self.family, self.core, self.plan = family, core, plan
        tower = family.tower(core)
        for step in plan.steps:
            _check_step(step.method)
        needs: tuple[Need, ...] = policy.needs(tower)
        if plan.steps:
            check_budgets(plan)
            family.check(core, plan)
            needs = tuple(dict.fromkeys((*needs_of(plan, family, tower, False)[0], *needs)))
        for need in needs:
            if need.kind in OF_PROMPT:
                raise FoveateError(
                    Refusal(
                        "needs-prompt",
                        f"the plan or the policy needs {need.kind}, and frames of a stream are encoded before a "
                        "question is asked",
                        "choose a method that does not read the question",
                    )
                )
            if reuse is not None and need.kind in OF_ATTENTION:
                raise FoveateError(
                    f"{need.kind} is measured in attention of all tokens, and with reuse= only some are computed: "
                    "leave one of them out."
                )
        self._tower = tower
        blocks = family.blocks(core)
        self._probe = Probe([family.attention(block) for block in blocks], blocks, needs, tower.has_cls)
        self._encoder = ImageEncoder(family, core, plan, self._probe, None)
        self._reuse_method = reuse
        self._reuse: FeatureReuse | None = None

    @property
    def drops_separator(self) -> bool:
        """Whether the plan, where it selects, drops the token that ends a clip, as it does in a whole clip."""
        return any(not step.method.sees_separators for step in self.plan.steps if isinstance(step.method, PreLLMMethod))

    def attach(self, patches: Patches) -> None:
        """Install the probes and the reuse of features, until `patches` are undone."""
        if self._reuse_method is not None:
            self._reuse = FeatureReuse(self.core, self._reuse_method, streams_only=True)
            patches.callback(self._reuse.restore)
        self._probe.attach(patches)

    def encode(self, pixels: dict[str, Any], number: int, state: EncoderState) -> EncodedStep:
        """Encode one step.

        Args:
            pixels: Arguments of `get_video_features`.
            number: Number of the step.
            state: What is remembered of earlier steps; this one is added.
        """
        with nullcontext() if self._reuse is None else self._reuse.continuing(state.history):
            output, encoded = self._encoder.encode("video", self.core.get_video_features, **pixels, return_dict=True)
        if encoded is None:
            raise FoveateError(f"{self.family.title} encodes clips in a way that a stream does not know.")
        layout = encoded.layouts[0]
        features = output.pooler_output[0]
        grid = layout.crops[0].grid
        # Behind the tokens of the step there may be a separator, which a stream writes once, at its end.
        measured = {need: value[: grid.size] for need, value in encoded.measured[0].items()}
        tokens = VisualTokens(
            features[: grid.size], layout.crops, measured, size=layout.size, number=number, tower=self._tower
        )
        selection = Selection(torch.arange(len(tokens), device=tokens.device))
        for place, step in enumerate(self.plan.steps):
            assert isinstance(step.method, PreLLMMethod)
            if isinstance(step.method, CausalVideoMethod):
                selector = state.selectors.setdefault(place, step.method.start())
                chosen = _select_causally(step.method, selector, tokens, step.count(len(tokens)))
            else:
                chosen = step.method(tokens, step.count(len(tokens)))
            if chosen.positions is not None:
                raise FoveateError(
                    Refusal(
                        "several-positions",
                        f"{step.method.name} gives a token several positions, and entries of a stream have one",
                    )
                )
            selection = selection.then(chosen, grid.size)
            tokens = tokens.take(chosen)
        planes = tuple(selection.apply(plane[0]) for plane in getattr(output, "deepstack_features", None) or ())
        return EncodedStep(grid, selection, tokens, planes)

    @property
    def keeps_positions(self) -> bool | None:
        """Whether kept tokens keep the positions of the full sequence on one axis; None: nothing is selected."""
        return None if not self.plan.steps else self.plan.steps[-1].method.positions == "original"


def _select_causally(
    method: CausalVideoMethod, selector: FrameSelector, tokens: VisualTokens, count: int | None
) -> Selection:
    """The choice of a causal method in the next frame of a stream."""
    method.check_budget(count)
    assert count is not None  # causal methods take a budget
    check_finite(method.name, (("features of the visual tokens", tokens.features),))
    return select_tokens(selector.select(wide(tokens.features), min(count, len(tokens))))


def _check_step(method: Any) -> None:
    """Refuse methods that do not act between the encoder and the language model, or not on single frames.

    Raises:
        FoveateError: as said.
    """
    if isinstance(method, VideoMethod) and not isinstance(method, CausalVideoMethod):
        raise FoveateError(
            Refusal(
                "needs-whole-clip",
                f"{method.name} compares all frames of a clip, and a stream has only those before",
                "choose a method that decides on every frame when it arrives, such as stc",
            )
        )
    if isinstance(method, PreLLMMethod):
        return
    reasons = {
        Site.DECODER: "acts between layers of the language model, which would hold different steps each",
        Site.IMAGE: "makes images smaller, which the processor of a clip can do",
        Site.CONNECTOR: "sets the length of a connector that takes images",
        Site.FRAMES: "chooses frames of a whole file, and the caller of a stream chooses which are fed",
    }
    reason = reasons.get(method.site, "acts at a site that a stream does not have")
    if isinstance(method, EncoderMethod):
        reason = "merges inside the encoder, which needs every patch of a frame to become one token"
    raise FoveateError(
        Refusal("no-stream", f"{method.name} {reason}", "choose a method that acts before the language model")
    )

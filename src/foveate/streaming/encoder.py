"""Encode the frames of one step of a stream, and select its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import FoveateError, Refusal
from foveate.core.in_encoder import EncoderMethod
from foveate.core.method import Site
from foveate.core.plan import Plan
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import Grid, Need, Selection, VisualTokens
from foveate.families import Family
from foveate.runtime.encoding import ImageEncoder
from foveate.runtime.patches import Patches
from foveate.runtime.probe import Probe
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


class StepEncoder:
    """Encoder of a model, with the plan and the measurements of a stream.

    Args:
        family: The family of the model.
        core: The model without its output layer.
        plan: Steps before the language model, possibly none.
        policy: Policy of the cache, whose needs are measured too.

    Raises:
        FoveateError: a step of the plan needs the prompt or the whole clip, or acts elsewhere; or the encoder does not
            give what it needs.
    """

    def __init__(self, family: Family, core: Any, plan: Plan, policy: CachePolicy) -> None:
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
        self._tower = tower
        blocks = family.blocks(core)
        self._probe = Probe([family.attention(block) for block in blocks], blocks, needs, tower.has_cls)
        self._encoder = ImageEncoder(family, core, plan, self._probe, None)

    @property
    def drops_separator(self) -> bool:
        """Whether the plan drops the token that ends a clip, as it does in a whole clip."""
        return any(not step.method.sees_separators for step in self.plan.steps if isinstance(step.method, PreLLMMethod))

    def attach(self, patches: Patches) -> None:
        """Install the probes, until `patches` are undone."""
        self._probe.attach(patches)

    def encode(self, pixels: dict[str, Any], number: int) -> EncodedStep:
        """Encode one step.

        Args:
            pixels: Arguments of `get_video_features`.
            number: Number of the step.
        """
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
        for step in self.plan.early_steps:
            assert isinstance(step.method, PreLLMMethod)
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
        steps: Sequence[Any] = self.plan.early_steps
        return None if not steps else steps[-1].method.positions == "original"


def _check_step(method: Any) -> None:
    """Refuse methods that do not act between the encoder and the language model.

    Raises:
        FoveateError: as said.
    """
    if isinstance(method, PreLLMMethod):
        return
    reasons = {
        Site.DECODER: "acts between layers of the language model, which would hold different steps each",
        Site.IMAGE: "makes images smaller, which the processor of a clip can do",
        Site.CONNECTOR: "sets the length of a connector that takes images",
    }
    reason = reasons.get(method.site, "acts at a site that a stream does not have")
    if isinstance(method, EncoderMethod):
        reason = "merges inside the encoder, which needs every patch of a frame to become one token"
    raise FoveateError(
        Refusal("no-stream", f"{method.name} {reason}", "choose a method that acts before the language model")
    )

"""AdaptVision (arXiv 2512.03794): a model that asks for a crop of the image when it must.

Supervised warm-up teaches the formats of an answer and of a call with a box around the answer, each by chance. GRPO
with DTPO's advantages then teaches when and what to ask: the outcome's reward is VisionThink's, the tool's is 0.1 for a
crop that shows the answer less 0.2 times the area term; see `foveate.training.grpo`. In the paper language models judge
answers and crops; here questions have one exact answer, and a crop is valid if it holds the printed answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.methods.acquisition.adaptvision import AdaptVision
from foveate.training.grpo.advantages import dtpo_advantages, informative, turn_weights
from foveate.training.grpo.rewards import outcome_rewards, tool_rewards
from foveate.training.grpo.rollouts import Question, Rollout, chance, chunks
from foveate.training.grpo.trainer import Scored
from foveate.training.methods.shared.acquisition import (
    AcquisitionTrainConfig,
    AcquisitionTrainer,
    by_need,
    is_correct,
)
from foveate.training.methods.shared.config import option


@dataclass(frozen=True, kw_only=True)
class AdaptVisionTrainConfig(AcquisitionTrainConfig):
    """How a model learns to ask for crops."""

    clip_high: float = option(0.24, "Upper clip range; the lower one is 0.2.", minimum=0)
    tool_weight: float = option(0.3, "Weight of the tool's advantage in the first turn.", minimum=0)
    first_weight: float = option(0.5, "Weight of the mean loss of first turns, when another follows.", minimum=0)


class AdaptVisionTrainer(AcquisitionTrainer):
    """Trains a model to ask for a crop of the image when it must.

    It is trained on rendered pages of which half have a number in small print.
    """

    name = AdaptVision.name
    config_class = AdaptVisionTrainConfig
    acquisition = AdaptVision
    output = "cropping"
    examples = """
        foveate train-method adaptvision --warm-up-steps 1600 --learning-rate 5e-5 --prompts short -o cropping
        foveate train-method adaptvision --model Qwen/Qwen2.5-VL-7B-Instruct --width 1120 --height 840 -o cropping-7b
        foveate ask page.png "What is the number?" --model cropping --plan adaptvision
    """

    def call(self, question: Question, number: int) -> str:
        """A box around the printed answer in the reduced image, with much space on every side.

        Small models learn coordinates slowly: roughly placed, a large box still shows the answer, and GRPO shrinks it.
        """
        rng = chance(self.config.seed + 1, number)
        shown = AdaptVision().reduced_size(question.image.size)
        left, top, right, bottom = question.about["box"]
        scales = [small / side for small, side in zip(shown, question.image.size, strict=True)]
        space = [rng.uniform(0.1, 0.3) * shown[axis % 2] for axis in range(4)]
        box = [
            max(0, int(left * scales[0] - space[0])),
            max(0, int(top * scales[1] - space[1])),
            min(shown[0], int(right * scales[0] + space[2]) + 1),
            min(shown[1], int(bottom * scales[1] + space[3]) + 1),
        ]
        return f"<tool_call>{json.dumps({'name': AdaptVision.tool, 'arguments': {'bbox_2d': box}})}</tool_call>"

    def score(self, rollouts: Sequence[Rollout], turns: Tensor) -> Scored:
        """DTPO's advantages of the outcome and the tool rewards, weighted for its means by turn."""
        config = self.config
        correct = torch.tensor([is_correct(rollout) for rollout in rollouts])
        areas = torch.tensor([_area(rollout) for rollout in rollouts])
        valid = torch.tensor([_shows_answer(rollout) for rollout in rollouts])
        outcome, tool = [], []
        for start, part in enumerate(chunks(rollouts, config.group)):
            here = slice(start * config.group, (start + 1) * config.group)
            outcome.append(outcome_rewards([rollout.texts for rollout in part], correct[here]))
            tool.append(tool_rewards(areas[here], valid[here], correct[here]))
        outcome_, tool_ = torch.cat(outcome), torch.cat(tool)
        advantages = dtpo_advantages(tool_, outcome_, turns, config.group, config.tool_weight)
        measured = by_need(rollouts, correct)
        if (areas > 0).any():
            measured |= {
                "crop_area": float(areas[areas > 0].mean()),
                "crop_valid": float(valid[areas > 0].float().mean()),
            }
        rewards = outcome_ + tool_
        # The loss is averaged over the tokens of groups that teach something.
        learned = turns * informative(rewards, config.group)[:, None]
        return Scored(rewards, advantages * turn_weights(learned, config.first_weight), measured)


def _area(rollout: Rollout) -> float:
    """Area of the box as a share of the image; 0 without a call."""
    if rollout.call is None:
        return 0.0
    left, top, right, bottom = rollout.call.box
    return (right - left) * (bottom - top) / (rollout.question.image.width * rollout.question.image.height)


def _shows_answer(rollout: Rollout) -> bool:
    """Whether the crop holds the printed answer, but for one pixel on a side."""
    if rollout.call is None:
        return False
    box, answer = rollout.call.box, rollout.question.about["box"]
    return box[0] <= answer[0] + 1 and box[1] <= answer[1] + 1 and box[2] >= answer[2] - 1 and box[3] >= answer[3] - 1

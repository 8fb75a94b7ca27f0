"""VisionThink (arXiv 2507.13348): a model that asks for the image at full resolution when it must.

Supervised warm-up teaches the formats of an answer and of a call, each by chance. GRPO then teaches when to ask: the
reward is 1 for a right answer, 0.9 if the tool was used, plus 0.5 for the format; see `foveate.training.grpo.rewards`.
In the paper a language model judges answers; here questions have one exact answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.methods.acquisition.visionthink import VisionThink
from foveate.training.grpo.advantages import group_advantages
from foveate.training.grpo.rewards import outcome_rewards
from foveate.training.grpo.rollouts import Question, Rollout, chunks
from foveate.training.grpo.trainer import Scored
from foveate.training.methods.shared.acquisition import (
    AcquisitionTrainConfig,
    AcquisitionTrainer,
    by_need,
    is_correct,
)
from foveate.training.methods.shared.config import option


@dataclass(frozen=True, kw_only=True)
class VisionThinkTrainConfig(AcquisitionTrainConfig):
    """How a model learns to ask for the full resolution."""

    kl: float = option(0.001, "Weight of the KL divergence from the weights before GRPO.", minimum=0)


class VisionThinkTrainer(AcquisitionTrainer):
    """Trains a model to ask for the image at full resolution when it must.

    It is trained on rendered pages of which half have a number in small print.
    """

    name = VisionThink.name
    config_class = VisionThinkTrainConfig
    acquisition = VisionThink
    output = "asking"
    examples = """
        foveate train-method visionthink --warm-up-steps 500 --learning-rate 5e-5 --prompts short -o asking
        foveate train-method visionthink --model Qwen/Qwen2.5-VL-7B-Instruct --width 1120 --height 840 -o asking
        foveate ask page.png "What is the number?" --model asking --plan visionthink
    """

    def call(self, question: Question, number: int) -> str:
        """The only call that there is."""
        return f"<tool_call>{json.dumps({'name': VisionThink.tool, 'arguments': {'action': 'resize'}})}</tool_call>"

    def score(self, rollouts: Sequence[Rollout], turns: Tensor) -> Scored:
        """VisionThink's outcome rewards, as z-scores of their groups, for all tokens."""
        group = self.config.group
        correct = torch.tensor([is_correct(rollout) for rollout in rollouts])
        rewards = torch.cat(
            [
                outcome_rewards([rollout.texts for rollout in part], right)
                for part, right in zip(chunks(rollouts, group), correct.split(group), strict=True)
            ]
        )
        advantages = group_advantages(rewards, group)[:, None] * (turns > 0)
        return Scored(rewards, advantages, by_need(rollouts, correct))

"""Q-Insight (arXiv 2503.22679): GRPO on image quality, with scores, degradations and comparisons of rendered images.

No token compression. A third of the questions asks for a score from 1 to 5, a third for the class and the level of a
degradation, a third which of two images side by side is better. Rewards are those of
`foveate.training.grpo.q_insight`, the accuracy plus 1 for the format. The paper scores photos with human ratings and
shows two images for a comparison; here pages are degraded by known amounts, and a comparison is one image of two
halves.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.synthetic.degradations import LEVELS, NONE, STRENGTHS, degraded
from foveate.synthetic.small_print import small_print
from foveate.training.grpo import q_insight
from foveate.training.grpo.advantages import group_advantages
from foveate.training.grpo.rollouts import Conversation, Question, Rollout, chance, chunks
from foveate.training.grpo.trainer import Scored
from foveate.training.methods.shared.acquisition import BATCH, GRPOMethodTrainer, GRPOTrainConfig, rate
from foveate.training.methods.shared.config import option

#: Questions by task.
QUESTIONS = {
    "score": "How good is the quality of this image? Answer with JSON: rating, from 1 to 5.",
    "degradation": "How is this image degraded? Answer with JSON: distortion_class, and severity.",
    "comparison": "Which half has the better quality, Image A on the left or Image B on the right?",
}


@dataclass(frozen=True, kw_only=True)
class QInsightTrainConfig(GRPOTrainConfig):
    """How a model learns to judge image quality."""

    group: int = option(8, "Rollouts of a question.", minimum=2)
    kl: float = option(0.001, "Weight of the KL divergence from the weights before GRPO.", minimum=0)
    entropy: float = option(0.0, "Weight of the entropy bonus.", minimum=0)
    threshold: float = option(0.35, "A score is right if it is nearer than this.")
    newlines: bool = option(
        False, "Require every tag on a line of its own, as the authors' code.", flags="--newlines/--no-newlines"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threshold > 0:
            raise FoveateError(f"threshold must be greater than 0, not {self.threshold}.")


class QInsightTrainer(GRPOMethodTrainer):
    """Trains a model to judge image quality: scores, degradations and comparisons.

    It is trained on rendered pages with noise, compression, blur or darkening in five levels.
    """

    name = "q-insight"
    config_class = QInsightTrainConfig
    output = "judging"
    examples = """
        foveate train-method q-insight --warm-up-steps 500 --learning-rate 5e-5 -o judging
        foveate train-method q-insight --model Qwen/Qwen2.5-VL-7B-Instruct -o judging
    """

    def question(self, number: int, split: str) -> Question:
        """A degraded page; `about` holds the task, the right answer and a well-formed text with it."""
        rng = chance(0, number)
        task = tuple(QUESTIONS)[number % 3]
        page = small_print(number, split).image
        kinds = [NONE, *STRENGTHS]
        first = _draw(page, rng.choice(kinds), rng)
        if task == "comparison":
            places = rng.sample(range(len(LEVELS)), 2)
            kind = rng.choice(kinds[1:])
            halves = [degraded(page, kind, LEVELS[place], rng) for place in places]
            image = Image.new("RGB", (2 * page.width, page.height))
            for place, half in enumerate(halves):
                image.paste(half.image, (place * page.width, 0))
            answer: Any = "Image A" if halves[0].score > halves[1].score else "Image B"
            written = answer
        else:
            image = first.image
            named = {"distortion_class": first.kind, "severity": first.level}
            answer = first.score if task == "score" else named
            written = json.dumps({"rating": first.score} if task == "score" else named)
        return Question(
            image, QUESTIONS[task], written, {"task": task, "answer": answer, "right": self._written(written)}
        )

    def _written(self, answer: str) -> str:
        """A well-formed text with an answer."""
        if self.config.newlines:
            return f"<think>\nlook\n</think>\n<answer>\n{answer}\n</answer>"
        return f"<think>look</think><answer>{answer}</answer>"

    def script(self, question: Question, number: int) -> tuple[list[str], bool]:
        """The right answer for half of the questions, the answer of another question of the task for the others."""
        if chance(self.config.seed + 1, number).random() < 0.5:
            return [question.about["right"]], False
        other = -3_000_003 - 3 * number + tuple(QUESTIONS).index(question.about["task"])  # of the same task
        return [self.question(other, "train").about["right"]], False

    def score(self, rollouts: Sequence[Rollout], turns: Tensor) -> Scored:
        """Rewards of accuracy and format, as z-scores of their groups, for all tokens."""
        accuracy, formats = self._rewards(rollouts)
        rewards = accuracy + formats
        measured = {"format": float(formats.mean())}
        for task in QUESTIONS:
            chosen = torch.tensor([rollout.question.about["task"] == task for rollout in rollouts])
            if chosen.any():
                measured[f"reward_{task}"] = float(accuracy[chosen].mean())
        advantages = group_advantages(rewards, self.config.group)[:, None] * (turns > 0)
        return Scored(rewards, advantages, measured)

    def _rewards(self, rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor]:
        accuracy, formats = [], []
        for rollout in rollouts:
            about, text = rollout.question.about, rollout.texts[-1:]
            answer, is_json = about["answer"], about["task"] != "comparison"
            formats.append(q_insight.format_rewards(text, as_json=is_json, newlines=self.config.newlines))
            if about["task"] == "score":
                accuracy.append(q_insight.score_rewards(text, [answer], threshold=self.config.threshold))
            elif about["task"] == "degradation":
                kinds = [answer["distortion_class"]], [answer["severity"]]
                accuracy.append(q_insight.degradation_rewards(text, *kinds))
            else:
                accuracy.append(q_insight.comparison_rewards(text, [answer]))
        return torch.cat(accuracy), torch.cat(formats)

    def measure(self, conversation: Conversation, questions: Sequence[Question]) -> dict[str, Any]:
        """Answers with the whole reward of accuracy, by task, and well-formed ones."""
        rollouts: list[Rollout] = []
        for part in chunks(questions, BATCH):
            rollouts += conversation.sample(part, temperature=0.0)
        accuracy, formats = self._rewards(rollouts)
        row: dict[str, Any] = {"well formed": rate(int(formats.sum()), len(rollouts))}
        for task in QUESTIONS:
            chosen = [place for place, one in enumerate(rollouts) if one.question.about["task"] == task]
            if chosen:
                row[task] = rate(int((accuracy[chosen] == 1).sum()), len(chosen))
        return {"model": row}


def _draw(page: Image.Image, kind: str, rng: Any) -> Any:
    return degraded(page, kind, NONE if kind == NONE else rng.choice(LEVELS), rng)

"""Training of models with GRPO: supervised warm-up on the formats, then rollouts, and an evaluation by need."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.acquisition import AcquisitionMethod, Prompts, answer_in
from foveate.core.errors import FoveateError
from foveate.statistics import wilson_interval
from foveate.training.callbacks import StopRequest
from foveate.training.grpo.rollouts import Conversation, Question, Rollout, chance, chunks, prepare, supervised_loss
from foveate.training.grpo.trainer import Scored, run_grpo
from foveate.training.methods.shared import loop
from foveate.training.methods.shared.base import MethodTrainer
from foveate.training.methods.shared.config import TrainConfig, at_least_one, check_schedule, identity, option
from foveate.training.methods.shared.loop import Losses, TrainState
from foveate.training.run_directory import OnProgress, RunDirectory, quiet

#: Prompts of small models: the question and the second image alone.
SHORT = Prompts(system="", question="{question}", second="{image}")
#: Rollouts that an evaluation samples at once.
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class GRPOTrainConfig:
    """A supervised warm-up with AdamW, then GRPO with a constant learning rate."""

    steps: int = option(400, "Steps of GRPO; 0 for the warm-up alone.", minimum=0)
    warm_up_steps: int = option(
        0, "Supervised steps on the formats before GRPO; models that do not follow them need some.", minimum=0
    )
    warm_up_batch: int = option(16, "Questions of a step of the warm-up.", minimum=1)
    warm_up_rate: float = option(5e-4, "Greatest learning rate of the warm-up.")
    questions: int = option(4, "Questions of a step of GRPO; the papers have 512.", minimum=1)
    group: int = option(16, "Rollouts of a question.", minimum=2)
    micro_batch: int = option(8, "Rollouts of one forward and backward pass.", minimum=1, identifies=False)
    learning_rate: float = option(1e-6, "Learning rate of GRPO.")
    kl: float = option(0.0, "Weight of the KL divergence from the weights before GRPO.", minimum=0)
    entropy: float = option(0.001, "Weight of the entropy bonus.", minimum=0)
    clip_high: float = option(0.2, "Upper clip range; the lower one is 0.2.", minimum=0)
    freeze_vision: bool = option(
        False, "Leave the vision encoder as it is.", flags="--freeze-vision/--no-freeze-vision"
    )
    first_tokens: int = option(256, "Largest number of tokens of a first turn.", minimum=1)
    second_tokens: int = option(128, "Largest number of tokens of a second turn.", minimum=1)
    seed: int = option(0, "Of questions and sampling.", minimum=0)
    held_out: int = option(200, "Held-out questions to measure on.", minimum=2, identifies=False)
    save_every: int = option(10, "Steps of GRPO between checkpoints.", minimum=1, identifies=False)

    def __post_init__(self) -> None:
        at_least_one(self, "warm_up_batch", "questions", "micro_batch", "held_out", "save_every")
        at_least_one(self, "first_tokens", "second_tokens")
        check_schedule(self.learning_rate, self.seed)
        check_schedule(self.warm_up_rate, self.seed)
        if min(self.steps, self.warm_up_steps) < 0 or not self.steps + self.warm_up_steps:
            raise FoveateError("steps and warm_up_steps are 0 or more, and not both 0.")
        if self.group < 2:
            raise FoveateError(f"group must be 2 or more, whose rewards are compared, not {self.group}.")
        if min(self.kl, self.entropy, self.clip_high) < 0:
            raise FoveateError("kl, entropy and clip_high must be 0 or more.")


class GRPOMethodTrainer(MethodTrainer[Any]):
    """Trainer of a model's own weights with GRPO. A task gives questions, scripts of the warm-up and scores."""

    trains_model: ClassVar[bool] = True
    #: The acquisition; None: one turn.
    acquisition: ClassVar[type[AcquisitionMethod] | None] = None

    @abstractmethod
    def question(self, number: int, split: str) -> Question:
        """Question `number` of a split."""

    @abstractmethod
    def script(self, question: Question, number: int) -> tuple[list[str], bool]:
        """Texts of the turns of a question of the warm-up, and whether the first turn shows the original image."""

    @abstractmethod
    def score(self, rollouts: Sequence[Rollout], turns: Tensor) -> Scored:
        """Rewards and advantages of groups of rollouts with their turn map (B, T)."""

    @abstractmethod
    def measure(self, conversation: Conversation, questions: Sequence[Question]) -> dict[str, Any]:
        """Measure a trained model on held-out questions."""

    def prompts(self) -> Prompts | None:
        """Prompts around questions; None for one turn."""
        return None

    def about(self) -> dict[str, Any]:
        """Options and version of the texts."""
        return {"method": self.name, **identity(self.config)}

    def data(self) -> None:
        """Nothing: questions are rendered."""

    def conversation(self, model: Any, processor: Any) -> Conversation:
        """Token ids of this method's conversations."""
        method = None if self.acquisition is None else self.acquisition()
        limits = self.config.first_tokens, self.config.second_tokens
        return Conversation(model, processor, method, self.prompts(), limits)

    def fit(
        self,
        model: Any,
        processor: Any,
        data: Any,
        run: RunDirectory,
        on_progress: OnProgress = quiet,
        stop: StopRequest | None = None,
    ) -> TrainState[Any]:
        """See `MethodTrainer.fit`; `step` of the result counts both stages."""
        config, stop = self.config, stop or StopRequest()
        conversation = self.conversation(model, processor)
        self._processor = processor
        self._log = run.log.path
        prepare(model, config.freeze_vision)
        warm_up = TrainConfig(
            steps=max(1, config.warm_up_steps),
            batch_size=config.warm_up_batch,
            learning_rate=config.warm_up_rate,
            seed=config.seed,
        )
        done = 0
        if config.warm_up_steps:
            state = loop.fit(
                model, lambda step: self._warm_up(conversation, warm_up, step), warm_up, self.about(), run, on_progress,
                stop,
            )  # fmt: skip
            done = state.step
            if not state.finished:
                return TrainState(model, done, False)
        if not config.steps:
            return TrainState(model.eval(), done, True)
        folder = run.path / "grpo"
        self._log = folder / "log.jsonl"
        trained, finished = run_grpo(
            conversation,
            lambda number: self.question(number + config.seed * 1_000_003, "train"),
            self.score,
            folder,
            on_progress,
            stop,
            steps=config.steps,
            questions=config.questions,
            group=config.group,
            micro_batch=config.micro_batch,
            learning_rate=config.learning_rate,
            kl=config.kl,
            clip_high=config.clip_high,
            entropy=config.entropy,
            seed=config.seed,
            save_every=config.save_every,
        )
        return TrainState(model, done + trained, finished)

    def _warm_up(self, conversation: Conversation, config: TrainConfig, step: int) -> Losses:
        def compute() -> Tensor:
            rollouts = []
            for number in config.samples(step):
                question = self.question(-1 - number, "train")  # other questions than those of GRPO
                texts, full = self.script(question, number)
                rollouts.append(conversation.scripted(question, texts, full))
            return supervised_loss(conversation, rollouts)

        yield config.seed * 1_000_003 + step, compute

    def save(self, network: Any, output: Path) -> None:
        """Write the model, its processor and its prompts to a folder for `foveate.load`."""
        network.save_pretrained(output)
        self._processor.save_pretrained(output)
        if (prompts := self.prompts()) is not None:
            prompts.save(output)

    def evaluate(self, model: Any, processor: Any, state: TrainState[Any], output: Path) -> dict[str, Any]:
        """Measure on held-out questions with greedy decoding."""
        questions = [self.question(number, "heldout") for number in range(self.config.held_out)]
        return {"held_out": len(questions), "measured": self.measure(self.conversation(model, processor), questions)}

    def describe(self, model: Any, state: TrainState[Any]) -> dict[str, Any]:
        """Steps, and the log of the stage that was trained last: GRPO has one of its own."""
        return {**super().describe(model, state), "log": str(self._log)}

    def report(self, document: dict[str, Any]) -> Iterable[str]:
        """What was written, then a line for everything that was measured."""
        yield f"{document['output']} written: {document['steps']} steps of warm-up and GRPO."
        yield f"On {document['held_out']} held-out questions:"
        for name, row in document["measured"].items():
            yield f"  {name}: " + ", ".join(f"{key} {_shown(value)}" for key, value in row.items())


class AcquisitionTrainer(GRPOMethodTrainer):
    """Trainer of a model that asks for more of an image, on pages of which half have small print."""

    #: What the model thinks in the warm-up before it asks. Before it answers, it thinks what it reads.
    unreadable: ClassVar[str] = "?"

    @abstractmethod
    def call(self, question: Question, number: int) -> str:
        """Text of a tool call of the warm-up for a question."""

    def prompts(self) -> Prompts:
        """Those of the method, the short ones, or those of a file."""
        assert self.acquisition is not None
        chosen = self.config.prompts
        return {"full": self.acquisition.default_prompts, "short": SHORT}.get(chosen) or Prompts.read(chosen)

    def question(self, number: int, split: str) -> Question:
        """A page with a large or a small number; see `foveate.synthetic.small_print`."""
        from foveate.synthetic.small_print import small_print

        page = small_print(number, split, (self.config.width, self.config.height))
        return Question(page.image, page.question, page.answer, {"small": page.small, "box": page.box})

    def script(self, question: Question, number: int) -> tuple[list[str], bool]:
        """A direct answer or a call, by chance and whatever the page needs: when to ask is left to GRPO.

        A fifth of the questions shows the original image in the first turn and is answered directly, so that the model
        can also be measured as one that always reads all tokens.
        """
        drawn = chance(self.config.seed, number).random()
        answer = f"<think>{question.answer}</think><answer>{question.answer}</answer>"
        if drawn < 0.6:
            return [answer], drawn < 0.2
        return [f"<think>{self.unreadable}</think>{self.call(question, number)}", answer], False

    def measure(self, conversation: Conversation, questions: Sequence[Question]) -> dict[str, Any]:
        """The policy, and the same weights that always answer from the reduced or from the original image."""
        direct = {"prefix": "<think>", "not_first": self.unreadable}
        ways: dict[str, dict[str, Any]] = {
            "policy": {},
            "always low": direct,
            "always full": {**direct, "full": True},
        }
        measured = {}
        for name, options in ways.items():
            rollouts: list[Rollout] = []
            for part in chunks(questions, BATCH):
                rollouts += conversation.sample(part, temperature=0.0, **options)
            measured[name] = self.rates(rollouts)
        return measured

    def rates(self, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """Accuracy, asking and image tokens of rollouts, for all of them and by need."""
        row: dict[str, Any] = {}
        for part, chosen in (
            ("", rollouts),
            (" (large print)", [r for r in rollouts if not r.question.about["small"]]),
            (" (small print)", [r for r in rollouts if r.question.about["small"]]),
        ):
            if chosen:
                row[f"accuracy{part}"] = rate(sum(map(is_correct, chosen)), len(chosen))
                row[f"asked{part}"] = rate(sum(r.call is not None for r in chosen), len(chosen))
        row["bad calls"] = sum(r.problem is not None for r in rollouts)
        row["image tokens"] = round(sum(r.image_tokens for r in rollouts) / len(rollouts), 2)
        return row


def is_correct(rollout: Rollout) -> bool:
    """Whether the answer of the last turn is exactly the right one."""
    return "<answer>" in rollout.texts[-1] and answer_in(rollout.texts[-1]) == rollout.question.answer


def by_need(rollouts: Sequence[Rollout], correct: Tensor) -> dict[str, float]:
    """Means for the log: accuracy, and how often the model asked, by the size of the print."""
    asked = torch.tensor([float(rollout.call is not None) for rollout in rollouts])
    small = torch.tensor([bool(rollout.question.about["small"]) for rollout in rollouts])
    measured = {
        "correct": float(correct.float().mean()),
        "bad_calls": sum(rollout.problem is not None for rollout in rollouts) / len(rollouts),
        "image_tokens": sum(rollout.image_tokens for rollout in rollouts) / len(rollouts),
    }
    for name, chosen in (("small", small), ("large", ~small)):
        if chosen.any():
            measured[f"asked_{name}"] = float(asked[chosen].mean())
            measured[f"correct_{name}"] = float(correct[chosen].float().mean())
    return measured


def rate(right: int, count: int) -> dict[str, Any]:
    """A share with its interval, as JSON values."""
    low, high = wilson_interval(right, count)
    return {
        "right": right,
        "count": count,
        "rate": round(right / count, 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def _shown(value: Any) -> str:
    return f"{value['rate']:.1%} ({value['low']:.1%} to {value['high']:.1%})" if isinstance(value, dict) else str(value)


@dataclass(frozen=True, kw_only=True)
class AcquisitionTrainConfig(GRPOTrainConfig):
    """Options of models that ask for more of an image."""

    prompts: str = option("full", "Prompts: full, short (the question alone, for small models), or a JSON file.")
    # Small print of these pages can just be read by the embedded model, whose capitals have 12 pixels or more.
    width: int = option(256, "Width of rendered pages, in pixels.", minimum=96)
    height: int = option(192, "Height of rendered pages, in pixels.", minimum=64)

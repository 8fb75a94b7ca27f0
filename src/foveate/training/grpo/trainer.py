"""GRPO on rollouts in two turns: TRL's `GRPOTrainer` with the rollouts, images and advantages of this package.

TRL generates through its `rollout_func`, which gets the questions by number and returns token ids with a mask of what
the model wrote. Its own loop for tools is not used, because it takes images of tools for a few families only. TRL owns
the loss, the optimizer, checkpoints and the log.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json
from foveate.training import checkpoints
from foveate.training.callbacks import StopRequest
from foveate.training.grpo.advantages import informative
from foveate.training.grpo.curve import draw_curve
from foveate.training.grpo.rollouts import Conversation, Question, Rollout, log_probabilities, padded
from foveate.training.log import RunLog, require_matplotlib
from foveate.training.precision import bfloat16_pays
from foveate.training.run_directory import OnProgress

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise FoveateError(f"GRPO needs the package {error.name}: pip install 'foveate[train]'.") from error


@dataclass(frozen=True)
class Scored:
    """Rewards and advantages of a batch.

    Args:
        rewards: (B,) total rewards, which decide which groups teach something.
        advantages: (B, T) of the tokens of the completions; see `turn map` in `advantages`.
        measured: Means for the log.
    """

    rewards: Tensor
    advantages: Tensor
    measured: dict[str, float]


class TwoTurnGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` whose completions may hold a tool's answer with an image.

    Args:
        conversation: Model, processor and acquisition.
        question: Question of a number.
        score: Rewards and advantages of rollouts, neighbours of one question, with their turn map (B, T).
        numbers: Numbers of the questions, in the order of training.
        kl: Weight of the KL divergence from the weights that the model has now.
        args: Configuration of TRL, for one process.
        callbacks: Of the trainer of transformers.
    """

    def __init__(
        self,
        conversation: Conversation,
        question: Callable[[int], Question],
        score: Callable[[Sequence[Rollout], Tensor], Scored],
        numbers: Sequence[int],
        kl: float,
        args: Any,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.conversation, self.question, self.score = conversation, question, score
        self._group: int = args.num_generations
        self._rollouts: list[Rollout] = []
        self._rows: list[int] = []
        self._scored: Scored | None = None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'")
            super().__init__(
                model=conversation.model,
                reward_funcs=cast("Any", self._rewards),
                args=args,
                train_dataset=Dataset.from_dict({"prompt": [str(number) for number in numbers]}),
                processing_class=conversation.processor,
                callbacks=callbacks,
                rollout_func=self._roll_out,
            )
        if kl > 0:  # TRL would load the reference by the name of the model, which has other weights
            self.beta, self.ref_model = kl, copy.deepcopy(conversation.model).eval().requires_grad_(False)
        if self.accelerator.num_processes > 1:
            raise FoveateError("GRPO in two turns runs in one process; start it without torchrun or accelerate launch.")

    def _roll_out(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """Sample a group of rollouts for every question; TRL repeats the number of a question for its group."""
        group = self._group
        numbers = [int(prompt) for prompt in prompts]
        questions = [self.question(number) for number in numbers[::group]]
        model = self.conversation.model
        model.eval()
        self._rollouts = self.conversation.sample(questions, group, temperature=self.temperature)
        model.train()
        self._rows = list(range(len(self._rollouts)))
        turns = padded([rollout.turns for rollout in self._rollouts], 0)
        self._scored = self.score(self._rollouts, turns)
        return {
            "prompt_ids": [rollout.prompt for rollout in self._rollouts],
            "completion_ids": [rollout.completion for rollout in self._rollouts],
            "logprobs": None,
            "env_mask": [[int(turn > 0) for turn in rollout.turns] for rollout in self._rollouts],
        }

    def _rewards(self, log_metric: Callable[[str, float], None], **others: Any) -> list[float]:
        assert self._scored is not None
        for name, value in self._scored.measured.items():
            log_metric(name, value)
        return self._scored.rewards.tolist()

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        scored = self._scored
        assert scored is not None
        device = output["completion_ids"].device
        output["advantages"] = scored.advantages.to(device, torch.float32)
        # Groups whose rewards are all alike are left out, of the mean over tokens too.
        used = informative(scored.rewards, self._group).to(device)
        output["tool_mask"] = output["tool_mask"] * used[:, None]
        output["num_items_in_batch"] = (output["completion_mask"] * output["tool_mask"]).sum()
        output["rollout"] = torch.arange(len(self._rollouts), device=device)
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._rows = inputs["rollout"].tolist()
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """Log-probabilities and entropies of completions, with the images of their rollouts."""
        results = []
        for start in range(0, len(input_ids), batch_size or len(input_ids)):
            part = slice(start, start + (batch_size or len(input_ids)))
            rollouts = [self._rollouts[row] for row in self._rows[part]]
            inputs = self.conversation.with_images(input_ids[part], attention_mask[part], rollouts)
            with self.accelerator.autocast():
                results.append(log_probabilities(model, inputs, logits_to_keep, self.temperature))
        chosen, entropy = (torch.cat(values) for values in zip(*results, strict=True))
        return chosen, entropy, None


class RunCallback(TrainerCallback):
    """Progress, log and stop requests of a run of GRPO."""

    def __init__(self, log: RunLog, on_progress: OnProgress, stop: StopRequest, seconds: float) -> None:
        self.log, self.on_progress, self.stop, self.seconds = log, on_progress, stop, seconds
        self._begun: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        """Append the means of a step."""
        if logs and "reward" in logs:
            kept = {name: round(value, 5) for name, value in logs.items() if isinstance(value, (int, float))}
            self.seconds += kept.get("step_time", 0.0)
            self.log.append({"step": state.global_step, "seconds": round(self.seconds, 1), **kept})

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Show progress; save and stop if asked."""
        self.on_progress("GRPO", state.global_step, state.max_steps, None)
        if self.stop.requested:
            control.should_training_stop = control.should_save = True


def run_grpo(
    conversation: Conversation,
    question: Callable[[int], Question],
    score: Callable[[Sequence[Rollout], Tensor], Scored],
    folder: Path,
    on_progress: OnProgress,
    stop: StopRequest,
    *,
    steps: int,
    questions: int,
    group: int,
    micro_batch: int,
    learning_rate: float,
    kl: float,
    clip_high: float,
    entropy: float,
    seed: int,
    save_every: int,
) -> tuple[int, bool]:
    """Train with GRPO, or resume from the last checkpoint in a folder.

    Args:
        conversation: Model, processor and acquisition; the model is trained in place.
        question: Question of a number.
        score: Rewards and advantages; see `TwoTurnGRPOTrainer`.
        folder: Gets checkpoints, `log.jsonl` and its plot, `curve.png`.
        on_progress: Called after every step.
        stop: Asked after every step.
        steps: Optimizer steps.
        questions: Questions a step.
        group: Rollouts of a question.
        micro_batch: Rollouts of one forward and backward pass.
        learning_rate: Of AdamW, constant.
        kl: Weight of the KL divergence from the first weights.
        clip_high: Upper clip range of the ratio of probabilities; the lower one is 0.2.
        entropy: Weight of the entropy bonus.
        seed: Of questions and sampling.
        save_every: Steps between checkpoints.

    Returns:
        Steps done, and whether these are all.

    Raises:
        FoveateError: the sizes do not divide each other, or matplotlib is missing.
    """
    require_matplotlib()
    rollouts = questions * group
    if group < 2:
        raise FoveateError(f"a group has 2 or more rollouts, whose rewards are compared, not {group}.")
    if rollouts % micro_batch:
        raise FoveateError(f"{questions} questions of {group} rollouts cannot be divided into passes of {micro_batch}.")
    model = conversation.model
    device = model.device
    cpu = device.type == "cpu"
    # The name since transformers 5.24, and the one before, which is deprecated.
    names = ("activation_checkpointing", "gradient_checkpointing")
    no_checkpointing: dict[str, Any] = {next(name for name in names if name in GRPOConfig.__dataclass_fields__): False}
    args = GRPOConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=rollouts // micro_batch,
        num_generations=group,
        max_completion_length=sum(conversation.limits),
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        epsilon_high=clip_high,
        entropy_coef=entropy,
        loss_type="dapo",
        bf16=bfloat16_pays(device.type),
        **no_checkpointing,
        use_cpu=cpu,
        dataloader_pin_memory=not cpu,
        report_to=[],
        logging_steps=1,
        save_steps=save_every,
        save_total_limit=1,
        disable_tqdm=True,
        shuffle_dataset=False,
        log_completions=False,
        seed=seed,
    )
    log = RunLog(folder / "log.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, done = newest_checkpoint(folder)
    callback = RunCallback(log, on_progress, stop, log.rewind(done))
    numbers = range(steps * questions)
    trainer = TwoTurnGRPOTrainer(conversation, question, score, numbers, kl, args, [callback])
    trainer.remove_callback(_printer())
    if done < steps:
        trainer.train(resume_from_checkpoint=checkpoint)
    elif checkpoint is not None:
        trainer._load_from_checkpoint(checkpoint)
    done = max(done, cast("int", trainer.state.global_step))
    draw_curve(log, folder / "curve.png")
    model.to(device).eval()
    return done, done >= steps


def newest_checkpoint(folder: Path) -> tuple[str | None, int]:
    """The newest complete checkpoint of the trainer and its step; half-written ones are removed.

    The trainer writes into the checkpoint itself, its state last, so that a kill may leave one without it.
    """
    for path, step in reversed(checkpoints.checkpoints(folder)):
        try:
            read_json(path / TRAINER_STATE_NAME)
        except (OSError, ValueError):
            shutil.rmtree(path)
            continue
        return str(path), step
    return None, 0


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback

"""`transformers.Trainer` for one stage of a recipe.

In addition to the plain trainer: several losses with exact means over processes and accumulation steps,
learning rates per part, atomic checkpoints, and a data stream that resumes by batch number.
"""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json
from foveate.training import checkpoints
from foveate.training.batch_stream import BatchStream
from foveate.training.callbacks import Display, StageCallback, StopRequest
from foveate.training.log import RunLog, draw_losses
from foveate.training.losses import SUMS, TERMS, counts_of, means, weighted
from foveate.training.muon import MuonAdamW
from foveate.training.precision import bfloat16_pays, uses_bfloat16
from foveate.training.provenance import FILE as RECIPE
from foveate.training.recipe import Recipe, Stage
from foveate.training.training_model import TrainingModel

WEIGHTS = "learner.safetensors"
PROGRESS = "progress.json"
TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Progress:
    """Progress of a run, over all its stages.

    Args:
        step: Optimiser steps.
        samples: Training samples.
        seconds: Seconds spent training.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, checkpoint: Path) -> Progress:
        """Progress at a checkpoint."""
        with _readable(checkpoint):
            return cls(**read_json(checkpoint / PROGRESS))


def training_arguments(recipe: Recipe, stage: Stage, folder: Path, cpu: bool = False) -> TrainingArguments:
    """The trainer's arguments for a stage; logging, saving and stopping are decided by `StageCallback`."""
    # Explicit, because the trainer refuses bfloat16 on a machine without a GPU.
    cpu = cpu or not torch.accelerator.is_available()
    accelerator = torch.accelerator.current_accelerator()
    device = "cpu" if cpu or accelerator is None else accelerator.type
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size,
        gradient_accumulation_steps=stage.accumulate,
        max_grad_norm=stage.clip,
        bf16=uses_bfloat16(recipe.bf16, device),
        use_cpu=cpu,
        seed=recipe.seed,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        ignore_data_skip=True,
        remove_unused_columns=False,
        # A batch without images or without answers leaves parts without a gradient.
        ddp_find_unused_parameters=True,
    )


def load_weights(training_model: TrainingModel, checkpoint: Path) -> None:
    """Load the weights of a checkpoint, heads included; heads that it lacks keep their initial weights.

    Raises:
        FoveateError: they are missing, damaged or of another model.
    """
    with _readable(checkpoint):
        missing, unknown = load_model(training_model, checkpoint / WEIGHTS, strict=False)
        absent = [name for name in missing if not name.startswith(("colour_reader.", "routers."))]
        if absent or unknown:
            raise ValueError(f"its weights are of another model: {', '.join([*absent, *unknown][:3])}")


@contextmanager
def _readable(checkpoint: Path) -> Generator[None]:
    """Turn errors of reading a checkpoint into a FoveateError; pickles other than tensors are not executed."""
    try:
        yield
    except (
        OSError,
        RuntimeError,
        SafetensorError,
        UnpicklingError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        reason = next(iter(str(error).strip().splitlines()), "")[:200] or type(error).__name__
        raise FoveateError(
            f"the checkpoint {checkpoint} is damaged or of another model; remove it to go on from the one before. "
            f"({reason})"
        ) from error


class StageTrainer(Trainer):
    """Trainer of the parts of a `TrainingModel` that a stage names.

    Args:
        training_model: Model and heads.
        args: Arguments from `training_arguments`.
        recipe: Gives the intervals of log and checkpoints.
        stage: The stage.
        stream: The batches, from the step on at which training resumes.
        start: Progress of the run before this stage.
        log: Gets an entry every few steps.
        stop: Checked after every step.
        workers: Processes that prepare batches; 0 prepares them in this one.
        display: Where progress is shown, None in all but the main process.
        origin: What is trained with (`provenance`), for checkpoints.
    """

    model: TrainingModel
    args: TrainingArguments

    def __init__(
        self,
        training_model: TrainingModel,
        args: TrainingArguments,
        *,
        recipe: Recipe,
        stage: Stage,
        stream: BatchStream,
        start: Progress,
        log: RunLog,
        stop: StopRequest,
        workers: int = 1,
        display: Display | None = None,
        origin: dict[str, Any] | None = None,
    ) -> None:
        for name, parameter in training_model.named_parameters():
            parameter.requires_grad_(training_model.part_of(name) in stage.train)
        super().__init__(model=training_model, args=args, train_dataset=stream)
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)
        self.add_callback(StageCallback(recipe, stop, self._any_process))
        self._training_model = training_model
        self._recipe = recipe
        self._stage = stage
        self._start = start
        self._log = log
        self._workers = workers
        self._display = display
        self._origin = origin
        self._sums = torch.zeros(len(SUMS), dtype=torch.float64)
        # Micro-batches of this process by the number of tokens that they were trained at.
        self._lengths: Counter[int] = Counter()
        self._clock = time.monotonic()
        self._earlier_seconds = start.seconds
        self._logged = (0, self._clock)

    def resume(self, checkpoint: Path) -> None:
        """Train from a checkpoint of this stage to the stage's end or until stopped."""
        self._earlier_seconds = Progress.of(checkpoint).seconds
        self._logged = (int(checkpoint.name.rpartition("-")[2]), self._clock)
        self.train(resume_from_checkpoint=str(checkpoint))

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """Loader of the stream, which divides batches among processes and workers itself."""
        return DataLoader(
            self.train_dataset,  # ty: ignore[invalid-argument-type]
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=4 if self._workers else None,
            worker_init_fn=_leave_signals_to_the_trainer,
            pin_memory=self.args.device.type == "cuda",
            # A separate generator: starting the workers must not change the training's random state.
            generator=torch.Generator(),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
        """Micro-batches of one optimiser step, and the divisors of their losses.

        The second is (terms,), `losses.counts_of` summed over micro-batches and processes, so that the mean does not
        depend on how a batch is divided.
        """
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        for batch in batches:
            if isinstance(batch, FoveateError):  # of a worker
                raise batch
        counts = sum((counts_of(batch, self._stage.loss) for batch in batches), torch.zeros(len(TERMS)))
        return batches, self.accelerator.reduce(counts.to(device, torch.float32), "sum")

    # Losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Weighted loss of a micro-batch, as its share of the mean over the batch."""
        weights = self._stage.loss
        if "lengths" in inputs:
            self._lengths.update(inputs["lengths"].tolist())
        sums = model(**inputs, blank_weight=weights.blank)
        # Accumulated in float64 on the CPU: thousands of losses of float32 would lose digits.
        self._sums += torch.stack(
            [
                sums[name].detach().double().cpu() if name in sums else torch.zeros((), dtype=torch.float64)
                for name in SUMS
            ]
        )
        # Gradients are averaged over processes, and this is already a share of the sum.
        loss = weighted(sums, num_items_in_batch, weights) * self.accelerator.num_processes
        return (loss, sums) if return_outputs else loss

    # Optimiser

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the stage's optimiser, with one learning rate per part; see `recipe.Stage.optimizer`.

        Weight matrices decay; biases, norms and embeddings do not.
        """
        if self.optimizer is None:
            muon = self._stage.optimizer == "muon"
            groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
            for name, parameter in (model or self.model).named_parameters():
                if parameter.requires_grad:
                    decays = parameter.ndim > 1 and "emb" not in name
                    part = self._training_model.part_of(name)
                    # Heads end in classes, like the output layers that Muon's authors leave to AdamW.
                    uses_muon = muon and decays and parameter.ndim == 2 and part != "heads"
                    groups.setdefault((part, decays, uses_muon), []).append(parameter)
            param_groups = [
                {
                    "params": parameters,
                    "lr": self._stage.train[part],
                    "weight_decay": self._stage.weight_decay if decays else 0.0,
                    "part": part,
                    "muon": uses_muon,
                }
                for (part, decays, uses_muon), parameters in groups.items()
            ]
            if muon:
                iteration = torch.bfloat16 if bfloat16_pays(self.args.device.type) else torch.float32
                self.optimizer = MuonAdamW(param_groups, self._stage.betas, iteration)
            else:
                self.optimizer = torch.optim.AdamW(param_groups, betas=self._stage.betas, fused=True)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the recipe's schedule, one factor on all learning rates."""
        if self.lr_scheduler is None:
            schedule = self._stage.schedule
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.create_optimizer(), lambda step: schedule.factor(step, num_training_steps)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # Log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Append the means since the last entry to the run's log."""
        if "loss" not in logs:
            return  # the plain trainer's summary at the end
        sums = dict(zip(SUMS, self.accelerator.reduce(self._sums.to(self._float), "sum").tolist(), strict=True))
        self._sums.zero_()
        lengths, self._lengths = self._lengths, Counter()
        if not self.is_world_process_zero():
            return
        progress = self._progress()
        previous, self._logged = self._logged, (self.state.global_step, time.monotonic())
        samples = (self._logged[0] - previous[0]) * self._stage.batch_size * self._stage.accumulate
        entry: dict[str, Any] = {
            "step": progress.step,
            "stage": self._stage.name,
            "stage_step": self.state.global_step,
            "samples": progress.samples,
            "loss": logs["loss"],
        }
        if self._stage.plan is not None:
            entry["plan"] = self._stage.plan
        if lengths:
            entry["lengths"] = {str(length): lengths[length] for length in sorted(lengths)}
        entry |= means(sums)
        factor = self._stage.schedule.factor(self.state.global_step - 1, self._stage.steps)
        entry["learning_rates"] = {part: rate * factor for part, rate in self._stage.train.items()}
        entry["grad_norm"] = logs.get("grad_norm")
        entry["processes"] = self.accelerator.num_processes
        entry["precision"] = "bfloat16" if self.args.bf16 else "float32"
        entry["samples_per_second"] = round(samples / max(self._logged[1] - previous[1], 1e-9), 2)
        entry["seconds"] = round(progress.seconds, 2)
        entry["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._log.append(entry)
        if self._display is not None:
            self._display.show(entry)

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            self._write_checkpoint()
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk raises different errors
            folder = self.args.output_dir
            reason = next(iter(str(error).strip().splitlines()), "")[:200] or type(error).__name__
            raise FoveateError(
                f"the checkpoint of step {self.state.global_step} could not be written into {folder}; make space, and "
                f"the same command goes on from the one before. ({reason})"
            ) from error

    def _write_checkpoint(self) -> None:
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        if self.args.should_save:
            writing = checkpoints.writing_folder(folder, step)
        self.accelerator.wait_for_everyone()
        writing = folder / f"{checkpoints.WRITING}{step}"
        self._save_optimizer_and_scheduler(str(writing))
        self._save_rng_state(str(writing))
        if self.args.should_save:
            save_model(self.model, str(writing / WEIGHTS))
            self.state.save_to_json(str(writing / TRAINER_STATE))
            (writing / PROGRESS).write_text(json.dumps(asdict(self._progress())), encoding="utf-8")
            if self._origin is not None:
                (writing / RECIPE).write_text(json.dumps(self._origin), encoding="utf-8")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.commit(folder, step, self._recipe.keep)
            draw_losses(self._log, self._log.path.with_name("losses.png"))
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer: Any = self.optimizer
        ours = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        with _readable(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
        # Rates, decays and betas are those of the recipe, not those that it had when the checkpoint was written.
        scheduler: Any = self.lr_scheduler
        factor = self._stage.schedule.factor(scheduler.last_epoch, self._stage.steps)
        for group, settings in zip(optimizer.param_groups, ours, strict=True):
            group.update(settings, lr=settings["initial_lr"] * factor)
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _readable(Path(str(checkpoint))):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(model or self.model, Path(resume_from_checkpoint))  # ty: ignore[invalid-argument-type]

    def _progress(self) -> Progress:
        step = self.state.global_step
        return Progress(
            step=self._start.step + step,
            samples=self._start.samples + step * self._stage.batch_size * self._stage.accumulate,
            seconds=self._earlier_seconds + time.monotonic() - self._clock,
        )

    @property
    def _float(self) -> torch.dtype:
        # Apple's GPUs have no float64, and sums are only logged.
        return torch.float32 if self.args.device.type == "mps" else torch.float64

    def _any_process(self, wish: bool) -> bool:
        """Whether any process wishes so: all must stop and save at the same step."""
        if self.accelerator.num_processes == 1:
            return wish
        wishes = torch.tensor(float(wish), device=self.args.device)
        return bool(self.accelerator.reduce(wishes, "sum") > 0)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Let a worker ignore Ctrl-C, which a terminal sends to all processes: the trainer stops it after its last step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

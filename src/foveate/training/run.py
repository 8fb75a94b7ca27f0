"""Run a recipe: train its stages one after the other, resuming where an earlier run stopped."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import ProcessorMixin, TrainingArguments

from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json
from foveate.methods.connector.nested import Nested
from foveate.training import checkpoints
from foveate.training.batch_stream import BatchStream
from foveate.training.building import build_model, export, vision_tower_of
from foveate.training.callbacks import Display, StopRequest
from foveate.training.collate import Collator
from foveate.training.cpu_attention import prefer_plain_when_short
from foveate.training.lengths import lengths_of
from foveate.training.log import RunLog, require_matplotlib, training_record
from foveate.training.provenance import differences, provenance
from foveate.training.recipe import PARTS, Recipe, Stage
from foveate.training.sources import open_source
from foveate.training.trainer import Progress, StageTrainer, load_weights, training_arguments
from foveate.training.training_model import TrainingModel


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Args:
        finished: Whether all requested stages are complete.
        progress: Steps, samples and seconds so far, over all runs.
        model: Folder of the exported model, None if nothing was trained yet.
        log: The JSONL log.
    """

    finished: bool
    progress: Progress
    model: Path | None
    log: Path


class Run:
    """A run of a recipe in its output folder.

    Args:
        recipe: What to train.
        output: Folder that replaces the recipe's.
        cpu: Use the CPU even where there is a GPU.
        workers: Processes that prepare batches.
    """

    def __init__(self, recipe: Recipe, output: Path | None = None, cpu: bool = False, workers: int = 1) -> None:
        self.recipe = recipe
        self.output = Path(output or recipe.output)
        self.cpu = cpu
        self.workers = workers
        self.log = RunLog(self.output / "log.jsonl")

    @property
    def is_main_process(self) -> bool:
        """Whether this is the main process of `accelerate launch`, which writes and reports."""
        return PartialState().is_main_process

    def train(
        self,
        resume: bool = True,
        max_minutes: float | None = None,
        only: str | None = None,
        console: Console | None = None,
    ) -> RunResult:
        """Train all stages that are not complete, or only the stage named `only`.

        A stage without a checkpoint is skipped where a later one has a checkpoint, so that a folder with the checkpoint
        of the last stage alone can be resumed. Where the seed, the data or another setting is not what a checkpoint was
        trained with, a line says so.

        Args:
            resume: Resume from the newest checkpoint; False refuses an output folder that has one.
            max_minutes: Stop cleanly, with a checkpoint, after this time. SIGTERM and SIGINT do the same.
            only: Name of a single stage to train, from the newest weights of the stages before it.
            console: Where progress is shown.

        Raises:
            FoveateError: the recipe or a plan in it does not fit the model or the data, there is something to resume
                and `resume` is False, or the output folder holds other stages.
        """
        require_matplotlib()
        stop, console = StopRequest(max_minutes), console or Console()
        stages = self._selected_stages(only)
        if not resume and any(checkpoints.latest(self._folder(i)) for i in range(len(self.recipe.stages))):
            raise FoveateError(f"{self.output} already holds checkpoints; resume, or choose another output folder.")
        self._refuse_other_stages()
        if self.is_main_process:
            for partial in self.output.glob(".*.partial"):  # of an export that was killed
                shutil.rmtree(partial, ignore_errors=True)
        model, processor = build_model(self.recipe.model, self.recipe.seed)
        training_model = TrainingModel(model, self.recipe.seed, self.recipe.cells)
        no_clips = training_model.architecture.excludes_clips()
        for _, stage in stages:  # impossible stages are refused before hours of training
            if (stage.loss.answer_attention or stage.loss.question_attention) and getattr(
                model.config, "num_voco_tokens", 0
            ):
                raise FoveateError(
                    f"stage {stage.name}: attention supervision needs text that attends to the image, not to VoCo "
                    "tokens; leave loss.answer_attention and loss.question_attention out."
                )
            if any(data.clips is not None for data in stage.data) and no_clips is not None:
                raise FoveateError(f"stage {stage.name}: {no_clips}.")
            _check_reach(stage, training_model)
            varied = lengths_of(stage, processor) != "full"
            with (
                training_model.under_plan(f"{Nested.name}:1" if varied else stage.plan),
                training_model.taught_by(_teacher(stage)),
            ):
                pass
        unit = training_model.architecture.unit(model.config)
        sources = {
            index: [
                (open_source(data, unit, self.recipe.seed, no_clips or stage.excludes_clips()), data.weight)
                for data in stage.data
            ]
            for index, stage in stages
        }
        with stop.on_signals():
            for index, stage in stages:
                if only is None and self._is_passed(index):
                    console.print(f"stage {stage.name} has no checkpoint, and a later stage has one: it is skipped")
                    continue
                finished = self._train_stage(index, stage, training_model, processor, sources[index], stop, console)
                if not finished:
                    break
        return RunResult(finished, self._progress(), self.output / "model", self.log.path)

    def export(self, folder: Path) -> RunResult:
        """Save the model of the newest checkpoint, in bfloat16 and without the heads, to `folder`.

        Raises:
            FoveateError: there is no checkpoint yet.
        """
        newest = self._newest(len(self.recipe.stages))
        if newest is None:
            raise FoveateError(f"{self.output} holds no checkpoint to export; train first.")
        model, processor = build_model(self.recipe.model, self.recipe.seed)
        training_model = TrainingModel(model, self.recipe.seed, self.recipe.cells)
        for _, other in self._selected_stages(None):
            with training_model.under_plan(other.plan):
                pass
        load_weights(training_model, newest)
        stage = next(stage for index, stage in enumerate(self.recipe.stages) if self._folder(index) == newest.parent)
        self._export(training_model, processor, stage, newest, folder)
        return RunResult(self._complete(), self._progress(), folder, self.log.path)

    def _train_stage(
        self,
        index: int,
        stage: Stage,
        training_model: TrainingModel,
        processor: ProcessorMixin,
        sources: list,
        stop: StopRequest,
        console: Console,
    ) -> bool:
        """Train one stage to its end (True) or until stopped (False); a complete stage is only loaded."""
        folder = self._folder(index)
        newest = checkpoints.latest(folder)
        before = self._newest(index)
        origin = provenance(self.recipe, stage) if self.is_main_process else {}
        changed = differences(newest[0], origin) if newest else {}
        if newest is not None and newest[1] >= stage.steps:
            load_weights(training_model, newest[0])
            if changed:
                console.print(
                    f"stage {stage.name} is complete, and was trained with another {', '.join(changed)}: it is not "
                    "trained again; choose another output folder for that"
                )
            if newest[0] == self._newest(len(self.recipe.stages)) and not self._is_exported(newest[0]):
                self._export(training_model, processor, stage, newest[0], self.output / "model")
            return True
        if "optimizer" in changed or changed.get("train", stage.train).keys() != stage.train.keys():
            raise FoveateError(
                f"stage {stage.name} was begun with another {', '.join(changed)}: it cannot be continued with other "
                "parts in train or another optimizer; choose another output folder."
            )
        if changed:
            console.print(
                f"stage {stage.name} was begun with another {', '.join(changed)}, and continues with that of the recipe"
            )
        if newest is None and before is not None:
            load_weights(training_model, before)
        args = training_arguments(self.recipe, stage, folder, self.cpu)
        done = newest[1] if newest else 0
        start = Progress.of(before) if before else Progress()
        display = None
        if args.process_index == 0:
            checkpoints.clean(folder)
            self.log.rewind(start.step + done)
            display = Display(console, stage, done)
        if stage.loss.answer_attention:
            training_model.supervise_answer_attention(stage.loss.answer_attention_layers)
        if stage.loss.question_attention:
            training_model.supervise_question_attention(stage.loss.question_attention_layer)
        if args.device.type == "cpu":
            prefer_plain_when_short(training_model.model)
        trainer = StageTrainer(
            training_model,
            args,
            recipe=self.recipe,
            stage=stage,
            stream=self._stream(index, stage, processor, sources, done, args),
            start=start,
            log=self.log,
            stop=stop,
            workers=self.workers,
            display=display,
            origin=origin,
        )
        try:
            with training_model.under_plan(stage.plan), training_model.taught_by(_teacher(stage)):
                if newest is None:
                    trainer.train()
                else:
                    trainer.resume(newest[0])
        finally:
            if display is not None:
                display.close()
        written = checkpoints.latest(folder)
        if args.process_index == 0 and written is not None:
            self._export(training_model, processor, stage, written[0], self.output / "model")
        trainer.accelerator.wait_for_everyone()
        return trainer.state.global_step >= stage.steps

    def _export(
        self, training_model: TrainingModel, processor: ProcessorMixin, stage: Stage, checkpoint: Path, folder: Path
    ) -> None:
        """Save the model of a checkpoint of a stage, whose weights are loaded."""
        record = training_record(self.log, Progress.of(checkpoint).step)
        routers = training_model.routers
        export(training_model.model, processor, folder, record=record, plan=stage.plan, routers=routers)

    def _is_exported(self, checkpoint: Path) -> bool:
        """Whether the exported model is that of a checkpoint; a run may be killed between the two.

        True in all but the main process, which alone exports.
        """
        if not self.is_main_process:
            return True
        try:
            return read_json(self.output / "model" / "training.json")["steps"] == Progress.of(checkpoint).step
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _refuse_other_stages(self) -> None:
        """Raise FoveateError if the output folder holds checkpoints of other stages: its log would be overwritten."""
        ours = {self._folder(index) for index in range(len(self.recipe.stages))}
        others = [
            folder.name
            for folder in sorted((self.output / "stages").glob("*"))
            if folder not in ours and checkpoints.latest(folder)
        ]
        if others:
            raise FoveateError(
                f"{self.output} holds checkpoints of stages that this recipe does not have ({', '.join(others)}); "
                "choose another output folder."
            )

    def _stream(
        self,
        index: int,
        stage: Stage,
        processor: ProcessorMixin,
        sources: list,
        done: int,
        args: TrainingArguments,
    ) -> BatchStream:
        lengths = lengths_of(stage, processor)
        return BatchStream(
            stage,
            sources,
            Collator(
                processor,
                answers=stage.loss.answer > 0,
                cells=bool(stage.loss.cells or stage.loss.early_cells),
                answer_attention=stage.loss.answer_attention > 0,
                question_attention=stage.loss.question_attention > 0,
                pages=stage.loss.page > 0,
                colours=stage.loss.colours > 0,
                captions=stage.loss.captions > 0,
                window=stage.window,
                cell_grid=self.recipe.cells,
                lengths=lengths != "full",
            ),
            # Stages see different data.
            seed=self.recipe.seed * 1000 + index,
            start=done * stage.accumulate,
            rank=args.process_index,
            processes=args.world_size,
            sampled=lengths == "sampled",
        )

    def _selected_stages(self, only: str | None) -> list[tuple[int, Stage]]:
        stages = list(enumerate(self.recipe.stages))
        if only is None:
            return stages
        selected = [(index, stage) for index, stage in stages if stage.name == only]
        if not selected:
            names = ", ".join(stage.name for stage in self.recipe.stages)
            raise FoveateError(f"the recipe has no stage {only!r}; its stages are {names}.")
        return selected

    def _folder(self, index: int) -> Path:
        return self.output / "stages" / f"{index + 1}-{self.recipe.stages[index].name}"

    def _newest(self, end: int) -> Path | None:
        """The newest checkpoint of the stages before number `end`."""
        for index in reversed(range(end)):
            checkpoint = checkpoints.latest(self._folder(index))
            if checkpoint:
                return checkpoint[0]
        return None

    def _progress(self) -> Progress:
        newest = self._newest(len(self.recipe.stages))
        return Progress.of(newest) if newest else Progress()

    def _is_passed(self, index: int) -> bool:
        """Whether a stage has no checkpoint and a later one has."""
        present = [checkpoints.latest(self._folder(other)) for other in range(index, len(self.recipe.stages))]
        return not present[0] and any(present)

    def _complete(self) -> bool:
        newest = [checkpoints.latest(self._folder(index)) for index in range(len(self.recipe.stages))]
        return all(
            f[1] >= stage.steps if f else self._is_passed(index)
            for index, (f, stage) in enumerate(zip(newest, self.recipe.stages, strict=True))
        )


def _check_reach(stage: Stage, training_model: TrainingModel) -> None:
    """Raise FoveateError for a loss or a part that the model does not have, or a loss that the data say nothing of."""
    kind = training_model.architecture.name
    if stage.loss.page and training_model.page_reader is None:
        raise FoveateError(
            f"stage {stage.name}: loss.page reads a [CLS] token, which this {kind} model does not have; leave it out."
        )
    if stage.loss.early_cells and training_model.reader.before is None:
        raise FoveateError(
            f"stage {stage.name}: loss.early_cells reads the tokens before the last stage, which this {kind} model "
            "does not have; leave it out."
        )
    if stage.loss.captions and any(data.clips is None for data in stage.data):
        raise FoveateError(
            f"stage {stage.name}: loss.captions needs captions, which only rendered clips have; take other data out, "
            "or leave it out."
        )
    rendered = any(data.rendered is not None for data in stage.data)
    shown = rendered or any(data.clips is not None for data in stage.data)
    for name in ("cells", "early_cells", "page", "answer_attention", "question_attention"):
        if getattr(stage.loss, name) and not (shown if name.endswith("attention") else rendered):
            raise FoveateError(
                f"stage {stage.name}: loss.{name} needs to know where something is drawn, which only rendered images "
                "tell; add some to the data, or leave it out."
            )
    parts = {training_model.part_of(name) for name, _ in training_model.named_parameters()}
    for part in stage.train:
        if part not in parts:
            possible = ", ".join(name for name in PARTS if name in parts)
            raise FoveateError(
                f"stage {stage.name}: train.{part} is no part of this {kind} model; possible are {possible}."
            )


def _teacher(stage: Stage) -> Any:
    """The vision tower that teaches in a stage, or None.

    Raises:
        FoveateError: it cannot be loaded.
    """
    return None if stage.teacher is None else vision_tower_of(stage.teacher)

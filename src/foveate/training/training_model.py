"""The trained module: a model and its training heads, with one forward for all losses."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from foveate.core.network_folder import read_networks
from foveate.core.plan import Plan
from foveate.methods.connector.nested import Nested
from foveate.methods.decoder.dpn import DPN, build
from foveate.models.llava.lengths import NestedEncoder
from foveate.models.vit_uhd.layout import Layout
from foveate.runtime import Handle, compress
from foveate.training.architectures import architecture_of
from foveate.training.attention_supervision import AttentionSupervision
from foveate.training.dense_labels import (
    NUM_CLASSES,
    CellReader,
    ColourReader,
    targets_before_last_stage,
    usual_cells,
)
from foveate.training.lengths import encoded_once
from foveate.training.losses import IGNORED
from foveate.training.methods import dpn
from foveate.training.recalibration import Recalibration, slimmed_tower


class TrainingModel(nn.Module):
    """A model with its training heads; computes the sums of all losses, and only what they need.

    Without the answer loss neither the connector nor the language model runs. The losses are returned as sums:
    the trainer computes their mean over processes and accumulation steps.

    Args:
        model: The model to train.
        seed: Seed of the heads' initial weights; the global random state is unchanged.
        cells: (rows, columns) of the cells of a final token; by default `supervision.usual_cells`.
    """

    #: The trainer divides the losses itself.
    accepts_loss_kwargs = False

    def __init__(self, model: PreTrainedModel, seed: int = 0, cells: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.architecture = architecture_of(model)
        config = model.config
        width = self.architecture.token_width(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            cells = cells or usual_cells(self.architecture.stages(config))
            self.reader = CellReader(width, cells, self.architecture.has_windows(config))
            # Characters in the image, from its [CLS] token.
            self.page_reader = nn.Linear(width, NUM_CLASSES - 1) if self.architecture.has_cls(config) else None
            self.colour_reader = ColourReader(width)
        self._captured: dict[str, torch.Tensor] = {}
        self._answer_attention: AttentionSupervision | None = None
        self._question_attention: AttentionSupervision | None = None
        self._handle: Handle | None = None
        self._recalibration: Recalibration | None = None
        self._seed = seed
        #: Routers of a Dynamic Pyramid Network, by layer, once a plan needs them.
        self.routers = nn.ModuleDict()
        self._router_shares: list[tuple[int, torch.Tensor]] = []
        self.architecture.capture_tokens(model, self._captured.__setitem__)
        self.architecture.enable_windows(model)

    @property
    def config(self) -> Any:
        """The model's configuration, which `transformers.Trainer` reads."""
        return self.model.config

    def supervise_answer_attention(self, layers: Sequence[int]) -> None:
        """Enable attention supervision of answers on head 0 of the given layers."""
        if self._answer_attention is not None:
            self._answer_attention.remove()
        self._answer_attention = AttentionSupervision(self.model.model.language_model, layers)

    def supervise_question_attention(self, layer: int) -> None:
        """Enable attention supervision of question words on head 0 of the given layer."""
        if self._question_attention is not None:
            self._question_attention.remove()
        self._question_attention = AttentionSupervision(self.model.model.language_model, [layer])

    @contextmanager
    def under_plan(self, plan: str | None) -> Generator[None]:
        """Train the model under a plan (`foveate.compress`) while the context is open; None: without one.

        Raises:
            FoveateError: the plan cannot act on this model.
        """
        if plan is None:
            yield
            return
        with compress(self.model, self._with_trainable_routers(Plan.of(plan))) as self._handle:
            try:
                yield
            finally:
                self._handle = None

    @contextmanager
    def taught_by(self, teacher: nn.Module | None) -> Generator[None]:
        """Compare the vision tower with that of a teacher while the context is open; None: without one.

        Raises:
            FoveateError: the tower recovers no tokens, or is not the teacher's.
        """
        if teacher is None:
            yield
            return
        self._recalibration = Recalibration(slimmed_tower(self.model), teacher)
        try:
            yield
        finally:
            self._recalibration.remove()
            self._recalibration = None

    def _with_trainable_routers(self, plan: Plan) -> Plan:
        """The plan with trainable routers: those of the folder that it names, or new ones."""
        steps = []
        for step in plan.steps:
            if isinstance(step.method, DPN):
                if not self.routers:
                    method = step.method.resolve_weights(self.model.name_or_path)
                    layers = step.layers or method.layers(len(self.model.model.language_model.layers))
                    fresh: Any = dpn.first_routers(self.model, layers, self._seed)
                    self.routers.update(fresh.to(self.model.device))
                    if method.path:
                        for layer, router in read_networks(method.path, DPN.name, build).items():
                            self.routers[str(layer)].load_state_dict(router.state_dict())
                step = replace(step, method=step.method.learning(self.routers, self._router_shares))
            steps.append(step)
        return Plan(tuple(steps))

    def forward(
        self,
        labels: torch.Tensor | None = None,
        cells: torch.Tensor | None = None,
        answer_targets: torch.Tensor | None = None,
        question_targets: torch.Tensor | None = None,
        pages: torch.Tensor | None = None,
        colours: torch.Tensor | None = None,
        captions: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        blank_weight: float = 1.0,
        **inputs: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The sums of `losses.SUMS` that the given targets allow.

        Args:
            labels: (B, T), -100 where nothing is learned; None skips the language model.
            cells: Cell classes (L', cells) of the final tokens (`dense_labels.cell_targets`); None skips the heads.
            answer_targets: (B, T), position to attend to at every position, after `supervise_answer_attention`; None
                skips it.
            question_targets: (B, T), the position where the character read at every position stands, after
                `supervise_question_attention`; None skips them.
            pages: (n, classes), 1 for every character on an image, 0 for the others, negative where that is not known
                (`dense_labels.page_targets`); None skips them.
            colours: (L', 12), of the quarters of the final tokens (`dense_labels.colour_targets`); None skips them.
            captions: (K, L), tokens of the captions of all clips, -100 behind them; None skips them.
            lengths: (n,), numbers of tokens of a nested connector: the answer loss is the mean of the losses at these.
                The vision tower runs once for all of them. None: the connector's default number.
            blank_weight: Weight of a blank cell, relative to 1 for a cell with a character.
            inputs: Inputs of the model: images, ids and mask, as `Collator` makes them.
        """
        sums: dict[str, torch.Tensor] = {}
        if labels is None:
            self.architecture.encode(self.model, inputs)
        else:
            with self._describing(captions, sums):
                sums |= self._answer(labels, inputs) if lengths is None else self._answer_at(lengths, labels, inputs)
            supervisions = (
                ("answer_attention", self._answer_attention, answer_targets),
                ("question_attention", self._question_attention, question_targets),
            )
            for name, supervision, token_targets in supervisions:
                if supervision is not None:
                    if token_targets is not None:
                        predicted = supervision.score(token_targets, inputs["attention_mask"])
                        names = (f"{name}_loss", f"{name}_count", f"{name}_right")
                        sums |= dict(zip(names, predicted, strict=True))
                    supervision.clear()
        if cells is not None:
            sums |= self._read_cells(cells, blank_weight)
        if pages is not None and self.page_reader is not None:
            logits = self.page_reader(self._captured["cls"]).float()
            known = pages >= 0
            sums["page_loss"] = F.binary_cross_entropy_with_logits(logits[known], pages[known].float(), reduction="sum")
            sums["page_count"] = known.sum()
        if colours is not None:
            predicted = self.colour_reader(self._captured["tokens"]).float()
            sums["colour_loss"] = F.mse_loss(predicted, colours, reduction="sum")
            sums["colour_count"] = torch.tensor(colours.numel(), device=colours.device)
        if self._recalibration is not None:
            sums |= self._recalibration.take()
        self._captured.clear()
        return sums

    def _answer(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The sums of the answer loss."""
        hidden, labels = self._run(labels, inputs)
        # Position i predicts token i + 1; only labelled positions pass the output layer.
        learned = labels[:, 1:] != -100
        targets = labels[:, 1:][learned]
        logits = self.model.lm_head(hidden[:, :-1][learned]).float()
        return {
            "answer_loss": F.cross_entropy(logits, targets, reduction="sum") + self._routing(learned.sum()),
            "answer_tokens": learned.sum(),
            "answer_right": (logits.detach().argmax(-1) == targets).sum(),
        }

    @contextmanager
    def _describing(self, captions: torch.Tensor | None, sums: dict[str, torch.Tensor]) -> Generator[None]:
        """Add the sums of the caption loss of the pass within the context."""
        if captions is None:
            yield
            return
        rows = [row[row != IGNORED] for row in captions]
        with self.model.model.multi_modal_projector.supervised(rows) as scores:
            yield
        losses, right = (torch.cat(parts) for parts in zip(*scores, strict=True))
        sums |= {
            "caption_loss": losses.sum(),
            "caption_tokens": torch.tensor(len(losses), device=losses.device),
            "caption_right": right.sum(),
        }

    def _answer_at(
        self, lengths: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The means of the sums of `_answer` over lengths of the connector."""
        passes = []
        core = self.model.model
        reruns = isinstance(getattr(core, "nested_part", None), NestedEncoder)
        with nullcontext() if reruns else encoded_once(core.vision_tower):
            for length in lengths.tolist():
                with self.under_plan(f"{Nested.name}:{length}"):
                    passes.append(self._answer(labels, inputs))
        return {name: torch.stack([sums[name] for sums in passes]).float().mean() for name in passes[0]}

    def _routing(self, count: torch.Tensor) -> torch.Tensor | float:
        """The routing loss of the paper, scaled to a sum over `count` tokens."""
        if not self.routers or self._handle is None:
            return 0.0
        shares: dict[int, list[torch.Tensor]] = {}
        for layer, layer_shares in self._router_shares:
            shares.setdefault(layer, []).append(layer_shares)
        loss = dpn.routing_loss([torch.stack(values) for values in shares.values()], expected=False)
        # Unused routers need a gradient too, which other processes wait for.
        nothing = torch.stack([parameter.sum() for parameter in self.routers.parameters()]).sum() * 0
        return dpn.PRESSURE * loss.to(nothing) * count + nothing

    def _run(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden states (B, P, D) of the language model, and the labels (B, P) of the kept tokens."""
        self._router_shares.clear()
        if getattr(self.model.model, "reads_prompts", False):
            inputs = {**inputs, "answer_mask": labels != -100}
        if self._handle is None:
            return self.model.model(**inputs, use_cache=False).last_hidden_state, labels
        with self._handle.with_labels(labels) as kept_labels:
            hidden = self.model.model(**inputs, use_cache=False).last_hidden_state
        return hidden, kept_labels()

    def _read_cells(self, cells: torch.Tensor, blank_weight: float) -> dict[str, torch.Tensor]:
        score = self.reader.final.score(self._captured["tokens"], cells, blank_weight)
        sums = {
            "cell_loss": score.loss,
            "cell_weight": score.weight,
            "cell_right": score.correct,
            "cell_characters": score.characters,
        }
        if self.reader.before is not None:
            layout = Layout.from_grids(self._captured["grids"], len(cells), 0)
            targets = targets_before_last_stage(layout.pack(cells), self.reader.cells)
            score = self.reader.before.score(self._captured["windows"], targets, blank_weight)
            sums |= {
                "early_cell_loss": score.loss,
                "early_cell_weight": score.weight,
                "early_cell_right": score.correct,
                "early_cell_characters": score.characters,
            }
        return sums

    def part_of(self, name: str) -> str:
        """The part of `recipe.PARTS` that the learner's parameter `name` belongs to."""
        if name.startswith("routers."):
            return "language_model"
        heads = name.startswith(("reader.", "page_reader.", "colour_reader."))
        return "heads" if heads else self.architecture.part_of(name)

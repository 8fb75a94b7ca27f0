"""What is optimised: a model and the heads that help to train it, with one forward for every loss."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from foveate.core.network_folder import read_networks
from foveate.core.plan import Plan
from foveate.methods.decoder.dpn import DPN, build
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
from foveate.training.methods import dpn


class TrainingModel(nn.Module):
    """A model with its cell heads; computes answer and cell losses, and only what they need.

    Without the answer loss neither the connector nor the language model runs. The losses are returned as sums:
    their mean over a batch that is spread over processes and accumulation steps is the trainer's to take.

    Args:
        model: The model to train.
        seed: Seed of the heads' first weights; the global random state is left alone.
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
            # Which characters stand on the page, from its [CLS] token.
            self.page_reader = nn.Linear(width, NUM_CLASSES - 1) if self.architecture.has_cls(config) else None
            self.colour_reader = ColourReader(width)
        self._seen: dict[str, torch.Tensor] = {}
        self._teacher: AttentionSupervision | None = None
        self._matcher: AttentionSupervision | None = None
        self._handle: Handle | None = None
        self._seed = seed
        #: Routers of a Dynamic Pyramid Network, by layer, once a plan asks for them.
        self.routers = nn.ModuleDict()
        self._routed: list[tuple[int, torch.Tensor]] = []
        self.architecture.watch(model, self._seen.__setitem__)
        self.architecture.take_windows(model)

    @property
    def config(self) -> Any:
        """The model's configuration, where `transformers.Trainer` looks for it."""
        return self.model.config

    def point(self, layers: Sequence[int]) -> None:
        """Tell the first head of these layers of the language model where to look; see `pointing`."""
        if self._teacher is not None:
            self._teacher.remove()
        self._teacher = AttentionSupervision(self.model.model.language_model, layers)

    def match(self, layer: int) -> None:
        """Tell the first head of this layer where the words of questions stand; see `pointing`."""
        if self._matcher is not None:
            self._matcher.remove()
        self._matcher = AttentionSupervision(self.model.model.language_model, [layer])

    @contextmanager
    def following(self, plan: str | None) -> Generator[None]:
        """Inside this context the model is trained under a plan (`foveate.compress`), or as it is where there is none.

        Raises:
            FoveateError: the plan cannot act on this model.
        """
        if plan is None:
            yield
            return
        with compress(self.model, self._learning(Plan.of(plan))) as self._handle:
            try:
                yield
            finally:
                self._handle = None

    def _learning(self, plan: Plan) -> Plan:
        """The plan, with routers that learn: those of a folder that it names, or new ones."""
        steps = []
        for step in plan.steps:
            if isinstance(step.method, DPN):
                if not self.routers:
                    method = step.method.resolve_weights(self.model.name_or_path)
                    layers = step.layers or method.layers(len(self.model.model.language_model.layers))
                    fresh: Any = dpn.first_routers(self.model, layers, self._seed)
                    self.routers.update(fresh.to(self.model.device))
                    if method.path:
                        for layer, own in read_networks(method.path, DPN.name, build).items():
                            self.routers[str(layer)].load_state_dict(own.state_dict())
                step = replace(step, method=step.method.learning(self.routers, self._routed))
            steps.append(step)
        return Plan(tuple(steps))

    def forward(
        self,
        labels: torch.Tensor | None = None,
        cells: torch.Tensor | None = None,
        pointers: torch.Tensor | None = None,
        matches: torch.Tensor | None = None,
        pages: torch.Tensor | None = None,
        colours: torch.Tensor | None = None,
        blank_weight: float = 1.0,
        **inputs: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The sums of `losses.SUMS` that the given targets allow.

        Args:
            labels: (B, T), -100 where nothing is learned; None skips the language model.
            cells: Cell classes (L', cells) of the final tokens (`supervision.cell_targets`); None skips the heads.
            pointers: (B, T), the position to look at from every position (`pointing`), after `point`; None skips them.
            matches: (B, T), the position where the character read at every position stands, after `match`; None skips
                them.
            pages: (n, classes), 1 for every character on an image, 0 for the others, negative where that is not known
                (`supervision.page_targets`); None skips them.
            colours: (L', 12), of the quarters of the final tokens (`supervision.colour_targets`); None skips them.
            blank_weight: Weight of a blank cell against 1 for a cell with a character.
            inputs: What the model reads: images, ids and mask, as `Collator` makes them.
        """
        sums: dict[str, torch.Tensor] = {}
        if labels is None:
            self.architecture.encode(self.model, inputs)
        else:
            hidden, labels = self._run(labels, inputs)
            # Position i predicts token i + 1; only the positions that are learned pass the output layer.
            learned = labels[:, 1:] != -100
            targets = labels[:, 1:][learned]
            logits = self.model.lm_head(hidden[:, :-1][learned]).float()
            sums["answer_loss"] = F.cross_entropy(logits, targets, reduction="sum") + self._routing(learned.sum())
            sums["answer_tokens"] = learned.sum()
            sums["answer_right"] = (logits.detach().argmax(-1) == targets).sum()
            on_progress = (("pointing", self._teacher, pointers), ("matching", self._matcher, matches))
            for name, teacher, places in on_progress:
                if teacher is not None:
                    if places is not None:
                        found = teacher.score(places, inputs["attention_mask"])
                        names = (f"{name}_loss", f"{name}_count", f"{name}_right")
                        sums |= dict(zip(names, found, strict=True))
                    teacher.forget()
        if cells is not None:
            sums |= self._read_cells(cells, blank_weight)
        if pages is not None and self.page_reader is not None:
            logits = self.page_reader(self._seen["cls"]).float()
            known = pages >= 0
            sums["page_loss"] = F.binary_cross_entropy_with_logits(logits[known], pages[known].float(), reduction="sum")
            sums["page_count"] = known.sum()
        if colours is not None:
            found = self.colour_reader(self._seen["tokens"]).float()
            sums["colour_loss"] = F.mse_loss(found, colours, reduction="sum")
            sums["colour_count"] = torch.tensor(colours.numel(), device=colours.device)
        self._seen.clear()
        return sums

    def _routing(self, count: torch.Tensor) -> torch.Tensor | float:
        """What routers have to answer for, beside `count` tokens: the routing loss of the paper."""
        if not self.routers or self._handle is None:
            return 0.0
        shares: dict[int, list[torch.Tensor]] = {}
        for layer, found in self._routed:
            shares.setdefault(layer, []).append(found)
        loss = dpn.routing_loss([torch.stack(own) for own in shares.values()], expected=False)
        # Those that were not asked have a gradient too, which other processes wait for.
        nothing = torch.stack([parameter.sum() for parameter in self.routers.parameters()]).sum() * 0
        return dpn.PRESSURE * loss.to(nothing) * count + nothing

    def _run(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the language model makes of its input (B, P, D), and the labels (B, P) of what it still holds."""
        self._routed.clear()
        if self._handle is None:
            return self.model.model(**inputs, use_cache=False).last_hidden_state, labels
        with self._handle.with_labels(labels) as kept_labels:
            hidden = self.model.model(**inputs, use_cache=False).last_hidden_state
        return hidden, kept_labels()

    def _read_cells(self, cells: torch.Tensor, blank_weight: float) -> dict[str, torch.Tensor]:
        score = self.reader.final.score(self._seen["tokens"], cells, blank_weight)
        sums = {
            "cell_loss": score.loss,
            "cell_weight": score.weight,
            "cell_right": score.correct,
            "cell_characters": score.characters,
        }
        if self.reader.before is not None:
            layout = Layout.from_grids(self._seen["grids"], len(cells), 0)
            targets = targets_before_last_stage(layout.pack(cells), self.reader.cells)
            score = self.reader.before.score(self._seen["windows"], targets, blank_weight)
            sums |= {
                "before_loss": score.loss,
                "before_weight": score.weight,
                "before_right": score.correct,
                "before_characters": score.characters,
            }
        return sums

    def part_of(self, name: str) -> str:
        """The part of `recipe.PARTS` that the learner's parameter `name` belongs to."""
        if name.startswith("routers."):
            return "language_model"
        heads = name.startswith(("reader.", "page_reader.", "colour_reader."))
        return "heads" if heads else self.architecture.part_of(name)

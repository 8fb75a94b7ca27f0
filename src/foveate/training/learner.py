"""What is optimised: a LLaVA-UHD model and the heads that help to train it, with one forward for every loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from foveate.encoders.layout import Layout
from foveate.llava_uhd.modeling import LlavaUHDForConditionalGeneration
from foveate.training.pointing import PointingTeacher
from foveate.training.supervision import CellReader, targets_before_last_stage

#: Sums that one forward reports; those of all micro-batches and processes are added before they are divided.
SUMS = (
    "answer_loss",
    "answer_tokens",
    "answer_right",
    "cell_loss",
    "cell_weight",
    "cell_right",
    "cell_characters",
    "before_loss",
    "before_right",
    "pointing_loss",
    "pointing_count",
    "pointing_right",
)


class Learner(nn.Module):
    """A model with its cell heads; computes answer and cell losses, and only what they need.

    Without the answer loss neither the connector nor the language model runs. The losses are returned as sums:
    their mean over a batch that is spread over processes and accumulation steps is the trainer's to take.

    Args:
        model: The model to train.
        seed: Seed of the heads' first weights; the global random state is left alone.
    """

    #: The trainer divides the losses itself.
    accepts_loss_kwargs = False

    def __init__(self, model: LlavaUHDForConditionalGeneration, seed: int = 0) -> None:
        super().__init__()
        self.model = model
        vision = model.config.vision_config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.reader = CellReader(vision.hidden_size, vision.num_stages)
        self._tokens: Any = None
        self._windows: torch.Tensor | None = None
        self._teacher: PointingTeacher | None = None
        tower = model.model.vision_tower
        tower.register_forward_hook(self._keep_tokens)
        if vision.num_stages:
            last = tower.encoder.blocks[vision.merger_layer_index[-1]].merger
            last.register_forward_pre_hook(self._keep_windows)

    @property
    def config(self) -> Any:
        """The model's configuration, where `transformers.Trainer` looks for it."""
        return self.model.config

    def point(self, layers: Sequence[int]) -> None:
        """Tell the first head of these layers of the language model where to look; see `pointing`."""
        if self._teacher is not None:
            self._teacher.remove()
        self._teacher = PointingTeacher(self.model.model.language_model, layers)

    def forward(
        self,
        pixel_values: torch.Tensor,
        grid_hws: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cells: torch.Tensor | None = None,
        pointers: torch.Tensor | None = None,
        blank_weight: float = 1.0,
    ) -> dict[str, torch.Tensor]:
        """The sums of `SUMS` that the given targets allow.

        Args:
            pixel_values: Patches (L, C, p, p) of all images.
            grid_hws: Patch grid (rows, columns) of every image, (n, 2).
            input_ids: Token ids (B, T) with expanded image placeholders.
            attention_mask: (B, T).
            labels: (B, T), -100 where nothing is learned; None skips the language model.
            cells: Cell classes (L', cells) of the final tokens (`supervision.cell_targets`); None skips the heads.
            pointers: (B, T), the position to look at from every position (`pointing`), after `point`; None skips them.
            blank_weight: Weight of a blank cell against 1 for a cell with a character.
        """
        sums: dict[str, torch.Tensor] = {}
        if labels is None:
            self.model.model.vision_tower(pixel_values=pixel_values, grid_hws=grid_hws)
        else:
            hidden = self.model.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                pixel_values=pixel_values,
                grid_hws=grid_hws,
                use_cache=False,
            ).last_hidden_state
            # Position i predicts token i + 1; only the positions that are learned pass the output layer.
            learned = labels[:, 1:] != -100
            targets = labels[:, 1:][learned]
            logits = self.model.lm_head(hidden[:, :-1][learned]).float()
            sums["answer_loss"] = F.cross_entropy(logits, targets, reduction="sum")
            sums["answer_tokens"] = learned.sum()
            sums["answer_right"] = (logits.detach().argmax(-1) == targets).sum()
            if self._teacher is not None:
                if pointers is not None:
                    found = self._teacher.score(pointers, attention_mask)  # ty: ignore[invalid-argument-type]
                    sums |= dict(zip(("pointing_loss", "pointing_count", "pointing_right"), found, strict=True))
                self._teacher.forget()
        if cells is not None:
            score = self.reader.final.score(self._tokens.last_hidden_state, cells, blank_weight)
            sums |= {
                "cell_loss": score.loss,
                "cell_weight": score.weight,
                "cell_right": score.correct,
                "cell_characters": score.characters,
            }
            if self.reader.before is not None:
                layout = Layout.from_grids(self._tokens.grid_hws, len(cells), 0)
                targets = targets_before_last_stage(layout.pack(cells))
                score = self.reader.before.score(self._windows, targets, blank_weight)  # ty: ignore[invalid-argument-type]
                sums |= {"before_loss": score.loss, "before_right": score.correct}
        self._tokens = self._windows = None
        return sums

    def _keep_tokens(self, module: nn.Module, args: Any, output: Any) -> None:
        self._tokens = output

    def _keep_windows(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._windows = args[0]


def part_of(name: str) -> str:
    """The part of `recipe.PARTS` that the parameter `name` of a `Learner` belongs to."""
    if name.startswith("reader."):
        return "heads"
    if ".vision_tower." in name:
        return "stages" if ".merger." in name else "vision_tower"
    return "connector" if ".multi_modal_projector." in name else "language_model"

"""DyMU: dynamic merging inside the encoder by calibrated thresholds, and virtual unmerging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from foveate.core.bipartite import Tokens, best, join, layout, match
from foveate.core.errors import FoveateError
from foveate.core.files import write_json
from foveate.core.in_encoder import EncoderMethod, Step
from foveate.core.method import BudgetRule, Positions
from foveate.core.text_files import read_json


@dataclass(frozen=True)
class DyMU(EncoderMethod):
    """Merges, in every block of the encoder, all pairs of tokens that are more similar than a calibrated threshold.

    The matching is ToMe's; a pair merges where its cosine exceeds the block's threshold, so that simple images end with
    fewer tokens than rich ones (DToMe, the first half of arXiv 2504.17040). `foveate train-method dymu` sets the
    thresholds such that over a set of images a given number of pairs merge in each block on average. At most half of
    the tokens of a block merge.

    In a batch each image merges as it would alone; rows that an image lacks have size 0. In the authors' code a batch
    divides by size + 0.0001, and splits the rows of an image where nothing merged into even and odd ones.

    The other half of the paper, virtual unmerging (section 3.2), lets the language model compute on merged tokens and
    attend as if they had not been merged: projections and MLP get shorter, attention and cache do not.

    Args:
        thresholds: One a block up to the one whose output is read, or the file that `foveate train-method dymu` wrote.
        reference: In encoders without [CLS], order the remaining tokens of set A by score, as the authors' code does
            with single images, though not with the batches that it calibrates on. By default their order stays in both.
        virtual: Unmerge virtually in the language model, as in the paper. False: it reads the merged tokens alone, at
            the position of the first patch of each, and the cache gets shorter too.
    """

    name: ClassVar[str] = "dymu"
    mechanism: ClassVar = ("similarity",)
    title: ClassVar[str] = "DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs"
    paper: ClassVar[str] = "arXiv 2504.17040"
    static_count: ClassVar[bool] = False
    budget: ClassVar[BudgetRule] = "none"
    positions: ClassVar[Positions] = "original"

    thresholds: str | Path | Sequence[float] = ()
    reference: bool = False
    virtual: bool = True

    def __post_init__(self) -> None:
        """Check the hyper-parameters; sequences become tuples, so that the method can be hashed."""
        if not isinstance(self.thresholds, str | Path):
            object.__setattr__(self, "thresholds", tuple(float(value) for value in self.thresholds))
        if not self.thresholds:
            raise FoveateError(
                f"{self.name} needs thresholds, such as {self.name}(thresholds=thresholds.json): "
                "`foveate train-method dymu --model MODEL --images FOLDER --count 192 -o thresholds.json` finds them."
            )

    def portable(self, folder: Path, copied: dict[str, str]) -> Self:
        """See `Method.portable`; the thresholds are written out."""
        return replace(self, thresholds=self.values)

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The threshold of each block."""
        if isinstance(self.thresholds, str | Path):
            return Thresholds.load(self.thresholds).values
        return tuple(self.thresholds)

    def schedule(self, patches: int, blocks: int, cls: bool, count: int | None) -> tuple[Step | None, ...]:
        """See `EncoderMethod.steps`."""
        if len(self.values) != blocks:
            raise FoveateError(
                f"{self.name}: {len(self.values)} thresholds for the {blocks} blocks of this encoder that are read; "
                "thresholds belong to the encoder that they were calibrated on."
            )
        return tuple(self.step(value, cls) if value < 1 else None for value in self.values)

    def step(self, threshold: float, cls: bool) -> Step:
        """Merge the pairs above a threshold."""

        def merge(tokens: Tokens, keys: Tensor) -> Tokens:
            present = tokens.present
            if present.shape[1] < 2:
                return tokens
            matching = match(keys, cls=cls, present=present)
            chosen = matching.score > threshold
            chosen &= best(matching, (present.sum(1, keepdim=True) - int(cls)) // 2)
            row, counts = layout(matching, chosen, ordered=cls or not self.reference, present=present)
            return join(tokens, row, int(counts.max()))

        return merge


class Calibration:
    """Calibration of the threshold of one block, from batches of images.

    It merges the amount * B best pairs of a whole batch, whichever images they are in. The threshold of the batch is
    the score of the first pair that does not merge, at least 0; that of the block the mean over batches (as the
    authors' code). Where all pairs merge it is 0 if there is a token that may not, such as [CLS], and else the score of
    the last pair, which is the authors' too.

    Args:
        amount: Pairs an image, on average.
        cls: Whether token 0 is [CLS].
    """

    def __init__(self, amount: int, cls: bool) -> None:
        self.amount = amount
        self.cls = cls
        self.thresholds: list[float] = []

    @property
    def threshold(self) -> float:
        """The mean over batches; 1, which merges nothing, where nothing shall merge."""
        return sum(self.thresholds) / len(self.thresholds) if self.thresholds else 1.0

    def __call__(self, tokens: Tokens, keys: Tensor) -> Tokens:
        """Merge one batch; see `foveate.core.in_encoder.Step`."""
        present = tokens.present
        if present.shape[1] < 2:
            return tokens
        matching = match(keys, cls=self.cls, present=present)
        order = matching.score.flatten().argsort(descending=True, stable=True)
        possible = int(matching.score.isfinite().sum())
        if not possible:
            return tokens
        merges = min(self.amount * len(present), possible)
        # After the last pair that can merge come tokens that cannot, with -inf: all pairs may merge, so 0.
        after = min(self.amount * len(present), len(order) - 1)
        self.thresholds.append(max(float(matching.score.flatten()[order[after]]), 0.0))
        chosen = torch.zeros_like(matching.score, dtype=torch.bool).flatten()
        chosen[order[:merges]] = True
        row, counts = layout(matching, chosen.view_as(matching.score), ordered=True, present=present)
        return join(tokens, row, int(counts.max()))


@dataclass(frozen=True)
class Thresholds:
    """Thresholds and where they come from.

    Args:
        values: One a block.
        encoder: What they were calibrated on.
        patches: Tokens of an image at the start.
        count: Tokens that stayed on average, as asked for.
        images: How many images were read.
    """

    values: tuple[float, ...]
    encoder: str
    patches: int
    count: int
    images: int

    def save(self, path: str | Path) -> None:
        """Write them as JSON."""
        document = {
            "format": _FORMAT,
            "encoder": self.encoder,
            "patches": self.patches,
            "count": self.count,
            "images": self.images,
            "thresholds": list(self.values),
        }
        write_json(path, document)

    @classmethod
    def load(cls, path: str | Path) -> Thresholds:
        """Read what `save` wrote.

        Raises:
            FoveateError: there is no such file, or it holds something else.
        """
        try:
            document = read_json(path)
            if document["format"] != _FORMAT:
                raise ValueError(document["format"])
            values = tuple(float(value) for value in document["thresholds"])
            return cls(values, document["encoder"], document["patches"], document["count"], document["images"])
        except OSError as error:
            raise FoveateError(f"cannot read thresholds from {path}: {error.strerror}.") from error
        except (KeyError, TypeError, ValueError) as error:
            raise FoveateError(f"{path} holds no thresholds; `foveate train-method dymu` writes them.") from error


_FORMAT = "foveate dymu thresholds 1"

"""Dense supervision of the vision tower: the character in each small cell of the image.

From answers alone a small encoder does not learn to read: a handful of answer characters says little about
which of a few hundred patches shows which letter. A renderer knows the position of every character, so every
image has hundreds of free labels. The image is cut into *cells* of half a patch in width and one patch in
height (a character is about twice as tall as it is wide), each labelled with the character whose centre lies
in it, or blank. One linear head on the tower's final tokens predicts the characters of all cells of a token; a
second one does the same on the tokens just before the last stage, so that the blocks before a merge learn
what the merge must keep. The heads are used in training only and are never part of an exported model.

With s stages and a patch of p pixels, a final token covers 2^s x 2^s patches, hence 2^s rows of 2^(s+1)
cells; a token before the last stage covers 2^(s-1) rows of 2^s cells. A recipe may divide final tokens into other
numbers of rows and columns: where patches are small, into fewer.

Characters of a line belong to one row of cells, that of the middle of its capitals: their own centres would scatter
full stops, capitals and small letters over two rows wherever a line lies near an edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from foveate.synthetic.sample import height_of
from foveate.synthetic.shapes import KINDS

#: Class of a cell in which no character has its centre.
BLANK = 0
#: Label of a cell with a character outside printable ASCII: neither blank nor a class.
UNKNOWN = -100
FIRST_CHARACTER, LAST_CHARACTER = 32, 126
#: Blank, then the characters from space to tilde.
NUM_CLASSES = LAST_CHARACTER - FIRST_CHARACTER + 2
#: Classes of a cell: those of characters, then the kinds of shapes, whose centres are labelled too.
CELL_CLASSES = NUM_CLASSES + len(KINDS)


class Character(Protocol):
    """A drawn character, and its centre in pixels of the image it was drawn on."""

    @property
    def char(self) -> str:
        """The character."""

    @property
    def x(self) -> float:
        """Pixels from the left edge."""

    @property
    def y(self) -> float:
        """Pixels from the top edge."""


def usual_cells(num_stages: int) -> tuple[int, int]:
    """(rows, columns) of the cells of a final token, one patch high and half a patch wide."""
    return 2**num_stages, 2 ** (num_stages + 1)


def character_class(char: str) -> int:
    """Class of one character: 1 to 95 for printable ASCII, from 96 on for kinds of shapes, else `UNKNOWN`."""
    if len(char) != 1:
        return NUM_CLASSES + KINDS.index(char) if char in KINDS else UNKNOWN
    code = ord(char)
    return code - FIRST_CHARACTER + 1 if FIRST_CHARACTER <= code <= LAST_CHARACTER else UNKNOWN


def cell_map(characters: Sequence[Character], image_size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Classes of the cells of one image.

    Args:
        characters: What was drawn, with centres in pixels of the original image.
        image_size: (width, height) of the original image, before the processor resized it.
        grid: (rows, columns) of cells.

    Returns:
        int64 array (rows, columns). Where two centres share a cell, the character listed first wins;
        a character whose centre lies outside the image is left out.
    """
    rows, columns = grid
    cells = np.full((rows, columns), BLANK, dtype=np.int64)
    if not characters:
        return cells
    classes = np.fromiter((character_class(c.char) for c in characters), np.int64, len(characters))
    x = np.fromiter((c.x for c in characters), np.float64, len(characters))
    y = np.fromiter((height_of(c) for c in characters), np.float64, len(characters))
    column = np.floor(x * (columns / image_size[0])).astype(np.int64)
    row = np.floor(y * (rows / image_size[1])).astype(np.int64)
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    # `unique` gives the first of equal places; assigning to equal places directly would keep an arbitrary one.
    places, first = np.unique(row[inside] * columns + column[inside], return_index=True)
    cells.reshape(-1)[places] = classes[inside][first]
    return cells


def cell_targets(
    characters: Sequence[Character],
    image_size: tuple[int, int],
    tokens: tuple[int, int],
    cells: tuple[int, int],
) -> np.ndarray:
    """Targets (L', rows * columns) of one image's final tokens: tokens row-major, the cells of a token row-major.

    Args:
        characters: What was drawn, with centres in pixels of the original image.
        image_size: (width, height) of the original image, before the processor resized it.
        tokens: (rows, columns) of final tokens after resizing.
        cells: (rows, columns) of the cells of a token, such as `usual_cells`.
    """
    down, across = cells
    cell_classes = cell_map(characters, image_size, (tokens[0] * down, tokens[1] * across))
    blocks = cell_classes.reshape(tokens[0], down, tokens[1], across)
    return blocks.transpose(0, 2, 1, 3).reshape(-1, down * across)


def targets_before_last_stage(targets: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
    """Targets (L', rows * columns) of final tokens as those of the 2 x 2 tokens that made each of them.

    Args:
        targets: From `cell_targets`.
        cells: (rows, columns) of the cells of a final token, both even.

    Returns:
        (L', 4, rows * columns / 4): the four tokens of a window row-major, as a stage reads them.
    """
    down, across = cells
    quarters = targets.view(-1, 2, down // 2, 2, across // 2).transpose(2, 3)
    return quarters.reshape(-1, 4, down * across // 4)


def page_targets(characters: Sequence[Character] | None) -> np.ndarray:
    """(classes - 1,): 1 for every printable character in the image, else 0; all -1 if unknown."""
    if characters is None:
        return np.full(NUM_CLASSES - 1, -1, dtype=np.int64)
    classes = {character_class(character.char) for character in characters} - {UNKNOWN}
    targets = np.zeros(NUM_CLASSES - 1, dtype=np.int64)
    targets[[number - 1 for number in classes]] = 1
    return targets


def colour_targets(picture: Image.Image, tokens: tuple[int, int]) -> np.ndarray:
    """Mean colours of the quarters of all tokens of one image.

    Args:
        picture: The image, before the processor resized it.
        tokens: (rows, columns) of final tokens.

    Returns:
        float32 array (rows * columns, 12), tokens row-major: red, green and blue of the quarters of a token, row-major,
        from -1 (none) to 1.
    """
    rows, columns = tokens
    small = picture.convert("RGB").resize((2 * columns, 2 * rows), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32) / 127.5 - 1
    return values.reshape(rows, 2, columns, 2, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, 12)


@dataclass
class CellScore:
    """Sums over the labelled cells of a batch, so that batches and processes can be added up."""

    loss: torch.Tensor  #: weighted sum of the cross entropies
    weight: torch.Tensor  #: sum of the weights; loss / weight is the mean
    correct: torch.Tensor  #: cells with a character that was predicted correctly
    characters: torch.Tensor  #: cells with a character


def cell_weight(targets: torch.Tensor, blank_weight: float) -> torch.Tensor:
    """Sum of the weights of targets (...): 1 for a character, `blank_weight` for blank, 0 for `UNKNOWN`."""
    return (targets > BLANK).sum() + blank_weight * (targets == BLANK).sum()


class CellHead(nn.Module):
    """Predicts the characters of the cells of a token: a norm and a linear layer.

    Args:
        hidden_size: Width D of a token.
        num_cells: Cells per token.
    """

    def __init__(self, hidden_size: int, num_cells: int) -> None:
        super().__init__()
        self.num_cells = num_cells
        self.norm = nn.LayerNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, num_cells * CELL_CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (..., D) to logits (..., cells, classes)."""
        return self.linear(self.norm(tokens)).unflatten(-1, (self.num_cells, CELL_CLASSES))

    def score(self, tokens: torch.Tensor, targets: torch.Tensor, blank_weight: float) -> CellScore:
        """Cross entropy and accuracy of tokens (..., D) against targets (..., cells)."""
        logits = self(tokens).flatten(0, -2)
        targets = targets.flatten()
        weights = torch.ones(CELL_CLASSES, dtype=torch.float32, device=logits.device)
        weights[BLANK] = blank_weight
        loss = F.cross_entropy(logits.float(), targets, weights, ignore_index=UNKNOWN, reduction="sum")
        has_character = targets > BLANK
        with torch.no_grad():
            correct = (logits[has_character].argmax(-1) == targets[has_character]).sum()
        return CellScore(loss, cell_weight(targets, blank_weight), correct, has_character.sum())


class CellReader(nn.Module):
    """Cell heads of a vision tower: `final` on its output, `before` on the tokens that enter its last stage.

    Args:
        hidden_size: Width of the tower's tokens.
        cells: (rows, columns) of the cells of a final token; both even where there is a head `before`.
        before: Whether there is a head `before`.
    """

    def __init__(self, hidden_size: int, cells: tuple[int, int], before: bool) -> None:
        super().__init__()
        self.cells = cells
        self.final = CellHead(hidden_size, cells[0] * cells[1])
        self.before = CellHead(hidden_size, cells[0] * cells[1] // 4) if before else None


class ColourReader(nn.Sequential):
    """Predicts the colours of the quarters of tokens: (..., D) to (..., 12); see `colour_targets`.

    Characters read alike in every colour, so that a tower which learns from them alone forgets colours, and a language
    model behind it cannot name one.

    Args:
        hidden_size: Width D of a token.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, 12))

"""Tokens chosen by hand: the method that keeps exactly these, and the picture on which they are chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from foveate.answering import Answer
from foveate.app.views import MAX_SIZE
from foveate.core.errors import FoveateError
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import Selection, VisualTokens
from foveate.visualization.selection import draw_tokens, token_map

#: A plan that keeps every token, and says in its report where each of them lies in the image.
ALL_TOKENS = "random:100%"

#: Part of the brightness that the lines of the grid take, as 1 / GRID.
GRID = 5


@dataclass(frozen=True)
class ByHand(PreLLMMethod):
    """Keeps the tokens of one image that were chosen by hand.

    It fits only the image for which they were chosen, so it is not registered: pass the object as the plan, as in
    ``foveate.ask(image, question, plan=ByHand(kept=(3, 7), of=49))``.

    Args:
        kept: Indices of the kept tokens, ascending.
        of: Number of tokens of the image.
    """

    kept: tuple[int, ...]
    of: int

    name: ClassVar[str] = "by-hand"
    title: ClassVar[str] = "Tokens chosen by hand"
    mechanism: ClassVar = ("control",)
    budget: ClassVar = "none"
    handles_tiles: ClassVar[bool] = True
    sees_separators: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.kept:
            raise FoveateError("no token is chosen; keep at least one.")
        if sorted(set(self.kept)) != list(self.kept) or not 0 <= self.kept[0] <= self.kept[-1] < self.of:
            raise FoveateError(f"tokens chosen by hand are ascending, different, and between 0 and {self.of - 1}.")

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`; `count` is 0, for the choice is made.

        Raises:
            FoveateError: the image has another number of tokens.
        """
        if len(tokens) != self.of:
            raise FoveateError(
                f"the tokens were chosen by hand in an image of {self.of} tokens, and this one has {len(tokens)}; "
                "choose them anew."
            )
        return Selection(torch.tensor(self.kept, device=tokens.device))


@dataclass(frozen=True)
class Board:
    """The tokens of one image with those that are kept, to be drawn and clicked.

    Attributes:
        document: token selection in which nothing is dropped (`foveate.answering.selections.selected`).
        image: the image, upright.
        path: file of the image.
        kept: indices of the kept tokens.
    """

    document: dict[str, Any]
    image: Image.Image
    path: str
    kept: frozenset[int]

    @classmethod
    def of(cls, answer: Answer, image: Image.Image, path: str) -> Board:
        """The board of an image, on which all tokens are kept.

        Args:
            answer: to any question about the image, under `ALL_TOKENS`.
            image: the image, upright.
            path: its file.

        Raises:
            FoveateError: the model does not read the image as one grid of tokens.
        """
        documents = answer.selection
        tokens = range(documents[0]["tokens_in"]) if len(documents) == 1 else ()
        if not tokens or [list(tokens)] != [sorted(crop["index"]) for crop in documents[0]["crops"]]:
            raise FoveateError(
                "tokens can be chosen by hand only where a model reads the image as one grid; this one divides it "
                "into tiles. Use a plan."
            )
        return cls(documents[0], image, path, frozenset(tokens))

    @property
    def count(self) -> int:
        """Number of tokens of the image."""
        return self.document["tokens_in"]

    @property
    def method(self) -> ByHand:
        """The method that keeps what is kept here.

        Raises:
            FoveateError: nothing is.
        """
        return ByHand(tuple(sorted(self.kept)), self.count)

    @cached_property
    def picture(self) -> Image.Image:
        """The image, with dropped tokens pale and a grid over all."""
        dropped = [token for token in range(self.count) if token not in self.kept]
        states = {"kept": sorted(self.kept), "dropped": dropped, "merged": [], "layers": []}
        picture = draw_tokens(self.document | states, self.image, MAX_SIZE)
        pixels, tokens = np.array(picture), token_map(self.document, picture.size)
        for axis, inner in ((0, pixels[1:]), (1, pixels[:, 1:])):
            inner[np.diff(tokens, axis=axis) != 0] -= inner[np.diff(tokens, axis=axis) != 0] // GRID
        return Image.fromarray(pixels)

    def keeping(self, tokens: Any) -> Board:
        """The same board with other tokens kept."""
        return replace(self, kept=frozenset(tokens))

    def clicked(self, x: float, y: float) -> Board:
        """The board after a click on a point of its picture in pixels: the token there is dropped, or kept again."""
        width, height = self.picture.size
        if not (0 <= x < width and 0 <= y < height):
            return self
        token = int(token_map(self.document, (width, height))[int(y), int(x)])
        return self if token < 0 else self.keeping(self.kept ^ {token})

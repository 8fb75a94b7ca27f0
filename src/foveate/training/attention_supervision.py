"""Dense supervision of the language model: where to look for the next character of an answer.

A language model that starts from random weights must find out by itself that the answer stands in the image
tokens, in which of them, and how to go on from one character to the next. Until it has, the loss of the answers
stays where it would be without an image, for a hundred thousand samples and more. Where the renderer knows the
place of every character, one attention head of chosen layers can be told: while predicting a character, look at
the image token that holds it. What those heads see is then worth decoding, and answers follow soon.

Before the answer can be found the question must be: the label it names stands in the image too. A head of an earlier
layer can be told to look, at every character of a word that is written once in the image, at the image token that holds
it (`question_places`).

The teacher reads queries and keys of the layers by hooks and recomputes one head; nothing of the model changes,
and nothing is left of the teacher in an exported model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from foveate.core.errors import FoveateError
from foveate.training.dense_labels import Character, height_of

#: Marks a position that points nowhere.
NOWHERE = -100


def answer_places(
    answer: str,
    characters: Sequence[Character],
    image_size: tuple[int, int],
    grid: tuple[int, int],
) -> list[int] | None:
    """The image token that holds each character of an answer.

    Args:
        answer: What is answered; spaces are not drawn and have no place.
        characters: What was drawn, in drawing order, with centres in pixels of the image.
        image_size: (width, height) of the image in pixels.
        grid: (rows, columns) of the tokens that the language model reads.

    Returns:
        For every character of the answer the row-major number of its token, `NOWHERE` for a space. None if the
        answer was not drawn as one run of characters, or in more than one place.
    """
    wanted = answer.replace(" ", "")
    drawn = "".join(character.char for character in characters)
    first = drawn.find(wanted)
    if not wanted or first < 0 or drawn.find(wanted, first + 1) >= 0 or len(drawn) != len(characters):
        return None
    run = iter(characters[first : first + len(wanted)])
    places = []
    for char in answer:
        if char == " ":
            places.append(NOWHERE)
            continue
        places.append(_place(next(run), image_size, grid))
    return places


#: Words of a question: what may be written in an image as well.
_WORD = re.compile(r"[A-Za-z0-9]{3,}")


def question_places(
    question: str,
    characters: Sequence[Character],
    image_size: tuple[int, int],
    grid: tuple[int, int],
) -> list[int]:
    """The image token that holds each character of a question's words.

    Args:
        question: What is asked.
        characters: What was drawn, in drawing order, with centres in pixels of the image.
        image_size: (width, height) of the image in pixels.
        grid: (rows, columns) of the tokens that the language model reads.

    Returns:
        For every character of the question the row-major number of its token; `NOWHERE` where it belongs to no word of
        three characters or more that is written exactly once, in whatever case.
    """
    places = [NOWHERE] * len(question)
    drawn = "".join(character.char for character in characters).lower()
    if len(drawn) != len(characters):
        return places
    for word in _WORD.finditer(question):
        first = drawn.find(word.group().lower())
        if first < 0 or drawn.find(word.group().lower(), first + 1) >= 0:
            continue
        for offset in range(len(word.group())):
            places[word.start() + offset] = _place(characters[first + offset], image_size, grid)
    return places


def _place(character: Character, image_size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Row-major number of the token that holds a character."""
    (width, height), (rows, columns) = image_size, grid
    row = min(max(int(height_of(character) * rows / height), 0), rows - 1)
    column = min(max(int(character.x * columns / width), 0), columns - 1)
    return row * columns + column


class AttentionSupervision:
    """Recomputes the first attention head of some layers and compares where it looks with where it should.

    Args:
        language_model: A model with the attention of Llama: `layers[i].self_attn` with `q_proj` and `k_proj`, no norm
            of queries and keys, rotary positions over the whole head by `rotary_emb`.
        layers: Numbers of the layers.

    Raises:
        FoveateError: the model has another attention, or not that many layers.
    """

    def __init__(self, language_model: PreTrainedModel, layers: Sequence[int]) -> None:
        blocks: Any = language_model.layers
        if any(not 0 <= layer < len(blocks) for layer in layers):
            raise FoveateError(f"pointing layers {list(layers)} are not all between 0 and {len(blocks) - 1}.")
        attentions = [blocks[layer].self_attn for layer in layers]
        if any(not hasattr(a, "q_proj") or hasattr(a, "q_norm") for a in attentions):
            raise FoveateError(
                f"pointing needs the attention of Llama; {type(language_model).__name__} has another. Leave the "
                "loss `pointing` out."
            )
        self.layers = list(layers)
        self._scaling = attentions[0].scaling
        self._head_dim = attentions[0].head_dim
        self._seen: dict[Any, torch.Tensor] = {}
        rotary: Any = language_model.rotary_emb
        self._hooks = [rotary.register_forward_hook(self._keep_rotation)]
        for layer, attention in zip(layers, attentions, strict=True):
            for name in ("q_proj", "k_proj"):
                self._hooks.append(getattr(attention, name).register_forward_hook(self._keeper((layer, name))))

    def score(
        self, pointers: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compare the last forward pass with where it should have looked.

        Args:
            pointers: (B, T), for every position the position it should look at, or `NOWHERE`.
            attention_mask: (B, T), 0 for padding.

        Returns:
            Sum of the cross entropies, number of comparisons, and how many of them looked at the right place most.
        """
        rows, queries = (pointers != NOWHERE).nonzero(as_tuple=True)
        targets = pointers[rows, queries]
        length = pointers.shape[1]
        positions = torch.arange(length, device=pointers.device)
        hidden = (positions > queries[:, None]) | (attention_mask[rows] == 0)
        loss, right = torch.zeros((), device=pointers.device), torch.zeros((), device=pointers.device)
        for layer in self.layers:
            query = self._turned(self._seen[layer, "q_proj"])[rows, queries]
            key = self._turned(self._seen[layer, "k_proj"])[rows]
            scores = torch.einsum("nd,ntd->nt", query, key) * self._scaling
            scores = scores.masked_fill(hidden, float("-inf"))
            loss = loss + F.cross_entropy(scores, targets, reduction="sum")
            right = right + (scores.detach().argmax(-1) == targets).sum()
        return loss, torch.tensor(len(targets) * len(self.layers), device=pointers.device), right

    def forget(self) -> None:
        """Drop what the hooks have kept of the last pass."""
        self._seen.clear()

    def remove(self) -> None:
        """Take the hooks off the model."""
        self.forget()
        for hook in self._hooks:
            hook.remove()

    def _turned(self, projected: torch.Tensor) -> torch.Tensor:
        """The first head of projected queries or keys (B, T, heads * head_dim), with its rotary positions."""
        cos, sin = self._seen["rotation"]
        head = projected[..., : self._head_dim].float()
        first, second = head.chunk(2, dim=-1)
        return head * cos + torch.cat((-second, first), dim=-1) * sin

    def _keeper(self, name: Any) -> Any:
        def keep(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            self._seen[name] = output

        return keep

    def _keep_rotation(self, module: nn.Module, args: Any, output: Any) -> None:
        self._seen["rotation"] = output

"""Attention supervision: train attention heads to attend to the image token of the next character.

A language model that starts from random weights must discover by itself that the answer is in the image
tokens, in which of them, and how to proceed from one character to the next. Until it has, the loss of the answers
stays at its value without an image, for a hundred thousand samples and more. Where the renderer knows the
position of every character, one attention head of some layers can be supervised: while predicting a character,
attend to the image token that contains it. The values of these heads are then useful, and answers follow soon.

Before the answer, the question must be located: the label that it names is in the image too. A head of an earlier
layer can be supervised to attend, at every character of a word that occurs once in the image, to the image token of
that character (`question_token_indices`). Shapes have no characters: at the end of a shape's name, and while its colour
or kind is the answer, the target is the token of its centre.

Hooks read queries and keys of the layers, and one head is recomputed; the model is unchanged,
and an exported model contains nothing of the supervision.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from foveate.core.errors import FoveateError
from foveate.synthetic.sample import height_of
from foveate.synthetic.shapes import COLOURS, KINDS
from foveate.training.dense_labels import Character

#: Marks a position without an attention target.
NO_TARGET = -100


def answer_token_indices(
    answer: str,
    characters: Sequence[Character],
    image_size: tuple[int, int],
    grid: tuple[int, int],
) -> list[int] | None:
    """Index of the image token that contains each character of an answer.

    Args:
        answer: The answer; spaces are not drawn and have no token.
        characters: What was drawn, in drawing order, with centres in pixels of the image.
        image_size: (width, height) of the image in pixels.
        grid: (rows, columns) of the tokens that the language model reads.

    Returns:
        For every character of the answer the row-major number of its token, `NO_TARGET` for a space. None if the
        answer was not drawn as one run of characters, or in more than one place.
    """
    text = answer.replace(" ", "")
    drawn = "".join(character.char for character in characters)
    first = drawn.find(text)
    if not text or first < 0 or drawn.find(text, first + 1) >= 0 or len(drawn) != len(characters):
        return None
    run = iter(characters[first : first + len(text)])
    indices = []
    for char in answer:
        if char == " ":
            indices.append(NO_TARGET)
            continue
        indices.append(_token_index(next(run), image_size, grid))
    return indices


#: Words of a question, which may occur in the image too.
_WORD = re.compile(r"[A-Za-z0-9]{3,}")


def question_token_indices(
    question: str,
    characters: Sequence[Character],
    image_size: tuple[int, int],
    grid: tuple[int, int],
) -> list[int]:
    """Index of the image token that contains each character of a question's words.

    Args:
        question: The question.
        characters: What was drawn, in drawing order, with centres in pixels of the image.
        image_size: (width, height) of the image in pixels.
        grid: (rows, columns) of the tokens that the language model reads.

    Returns:
        For every character of the question the row-major number of its token; `NO_TARGET` where it belongs to no word
        of three characters or more that is written exactly once, in whatever case.
    """
    indices = [NO_TARGET] * len(question)
    drawn = "".join(character.char for character in characters).lower()
    if len(drawn) != len(characters):
        return indices
    for word in _WORD.finditer(question):
        first = drawn.find(word.group().lower())
        if first < 0 or drawn.find(word.group().lower(), first + 1) >= 0:
            continue
        for offset in range(len(word.group())):
            indices[word.start() + offset] = _token_index(characters[first + offset], image_size, grid)
    return indices


def thing_token_indices(
    question: str, things: Sequence[Character], image_size: tuple[int, int], grid: tuple[int, int]
) -> dict[int, int]:
    """Index of the image token of each drawn thing that a question names, where there is one of its kind.

    Args:
        question: The question.
        things: What was drawn in addition to characters, each with its kind in place of a character.
        image_size: (width, height) of the image in pixels.
        grid: (rows, columns) of the tokens that the language model reads.

    Returns:
        By the place of the last character of the name in the question: tokens attend to what is before them, and this
        is the first that knows all of it.
    """
    kinds = Counter(thing.char for thing in things)
    return {
        word.end() - 1: _token_index(thing, image_size, grid)
        for thing in things
        if kinds[thing.char] == 1
        for word in re.finditer(rf"\b{re.escape(thing.char)}\b", question, re.IGNORECASE)
    }


def answer_thing_index(
    question: str, answer: str, things: Sequence[Character], image_size: tuple[int, int], grid: tuple[int, int]
) -> int | None:
    """Index of the image token of the thing that an answer is about: whose colour or kind it states.

    Arguments as in `thing_token_indices`. None where that is not one thing.
    """
    if answer in KINDS:
        about = [thing for thing in things if thing.char == answer]
        return _token_index(about[0], image_size, grid) if len(about) == 1 else None
    if answer not in COLOURS:
        return None
    if len(things) == 1:
        return _token_index(things[0], image_size, grid)
    named = set(thing_token_indices(question, things, image_size, grid).values())
    return named.pop() if len(named) == 1 else None


def _token_index(character: Character, image_size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Row-major index of the token that contains a character."""
    (width, height), (rows, columns) = image_size, grid
    row = min(max(int(height_of(character) * rows / height), 0), rows - 1)
    column = min(max(int(character.x * columns / width), 0), columns - 1)
    return row * columns + column


class AttentionSupervision:
    """Supervises the first attention head of some layers: recomputes its attention and compares it with targets.

    Args:
        language_model: A model with the attention of Llama: `layers[i].self_attn` with `q_proj` and `k_proj`, no norm
            of queries and keys, rotary positions over the whole head by `rotary_emb`.
        layers: Indices of the layers.

    Raises:
        FoveateError: the model has another attention, or not that many layers.
    """

    def __init__(self, language_model: PreTrainedModel, layers: Sequence[int]) -> None:
        blocks: Any = language_model.layers
        if any(not 0 <= layer < len(blocks) for layer in layers):
            raise FoveateError(f"attention supervision needs layers from 0 to {len(blocks) - 1}, not {list(layers)}.")
        attentions = [blocks[layer].self_attn for layer in layers]
        if any(not hasattr(a, "q_proj") or hasattr(a, "q_norm") for a in attentions):
            raise FoveateError(
                f"attention supervision needs the attention of Llama, which {type(language_model).__name__} lacks; "
                "leave the losses answer_attention and question_attention out."
            )
        self.layers = list(layers)
        self._scaling = attentions[0].scaling
        self._head_dim = attentions[0].head_dim
        self._captured: dict[Any, torch.Tensor] = {}
        rotary: Any = language_model.rotary_emb
        self._hooks = [rotary.register_forward_hook(self._capture_rotation)]
        for layer, attention in zip(layers, attentions, strict=True):
            for name in ("q_proj", "k_proj"):
                self._hooks.append(getattr(attention, name).register_forward_hook(self._capture_hook((layer, name))))

    def score(
        self, targets_by_position: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the loss of the last forward pass.

        Args:
            targets_by_position: (B, T), for every position the position to attend to, or `NO_TARGET`.
            attention_mask: (B, T), 0 for padding.

        Returns:
            Sum of the cross entropies, number of comparisons, and how many of them attend most to their target.
        """
        rows, queries = (targets_by_position != NO_TARGET).nonzero(as_tuple=True)
        targets = targets_by_position[rows, queries]
        length = targets_by_position.shape[1]
        positions = torch.arange(length, device=targets_by_position.device)
        hidden = (positions > queries[:, None]) | (attention_mask[rows] == 0)
        loss, correct = (
            torch.zeros((), device=targets_by_position.device),
            torch.zeros((), device=targets_by_position.device),
        )
        for layer in self.layers:
            query = self._rotated_head(self._captured[layer, "q_proj"])[rows, queries]
            key = self._rotated_head(self._captured[layer, "k_proj"])[rows]
            scores = torch.einsum("nd,ntd->nt", query, key) * self._scaling
            scores = scores.masked_fill(hidden, float("-inf"))
            loss = loss + F.cross_entropy(scores, targets, reduction="sum")
            correct = correct + (scores.detach().argmax(-1) == targets).sum()
        return loss, torch.tensor(len(targets) * len(self.layers), device=targets_by_position.device), correct

    def clear(self) -> None:
        """Drop the tensors captured in the last pass."""
        self._captured.clear()

    def remove(self) -> None:
        """Remove the hooks from the model."""
        self.clear()
        for hook in self._hooks:
            hook.remove()

    def _rotated_head(self, projected: torch.Tensor) -> torch.Tensor:
        """Rotated first head of projected queries or keys (B, T, heads * head_dim)."""
        cos, sin = self._captured["rotation"]
        head = projected[..., : self._head_dim].float()
        first, second = head.chunk(2, dim=-1)
        return head * cos + torch.cat((-second, first), dim=-1) * sin

    def _capture_hook(self, name: Any) -> Any:
        def keep(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            self._captured[name] = output

        return keep

    def _capture_rotation(self, module: nn.Module, args: Any, output: Any) -> None:
        self._captured["rotation"] = output

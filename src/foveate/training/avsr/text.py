"""Tokens of the small language model, and the text that it is trained on."""

from __future__ import annotations

import random
import string
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from foveate.synthetic.spoken_words import WORDS

#: In the order of their ids; markers as in `AVSRConfig`.
_SPECIAL = ("<pad>", "<audio>", "</audio>", "<video>", "</video>", "<s>", "</s>", "<unk>")
PROMPT = "transcribe:"
_BLANK = "-"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of words, letters and the markers of sound and video."""
    names = (*_SPECIAL, PROMPT, _BLANK, *string.ascii_lowercase, *WORDS)
    model = models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(_SPECIAL[1:5]),
    )


def transcripts(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """BOS, prompt, words and EOS of each text `(B, L)`, padded on the right; mask and labels."""
    rows = [tokenizer.convert_tokens_to_ids(["<s>", PROMPT, *text.split(), "</s>"]) for text in texts]
    return _padded(tokenizer, rows, [2] * len(rows))


def _padded(tokenizer: PreTrainedTokenizerFast, rows: list[Any], starts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[place, : len(row)] = torch.tensor(row)
        labels[place, start : len(row)] = ids[place, start : len(row)]
    return ids, (ids != tokenizer.pad_token_id).long(), labels


def stretched_spelling(words: list[str], chance: random.Random) -> list[str]:
    """Letters of words as a slow or fast signal would have them: repeated or missing, with blanks, some wrong."""
    speed = chance.uniform(0.5, 2.5)
    wrong = chance.choice((0.0, 0.1, 0.3))
    written = []
    for word in words:
        for letter in word:
            count = int(speed + chance.random())
            shown = chance.choice(string.ascii_lowercase) if chance.random() < wrong else letter
            written += [shown] * count
        written += [_BLANK] * chance.randint(0, 2)
    return written or [_BLANK]


def text_batch(tokenizer: PreTrainedTokenizerFast, size: int, chance: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Texts that a language model learns to transcribe from.

    Words are spelled between the markers of sound, of video or of both; prompt and words follow.
    """
    rows, starts = [], []
    for _ in range(size):
        words = [chance.choice(WORDS) for _ in range(chance.randint(1, 5))]
        names = chance.choice((("audio",), ("video",), ("audio", "video")))
        media = [token for name in names for token in (f"<{name}>", *stretched_spelling(words, chance), f"</{name}>")]
        rows.append(tokenizer.convert_tokens_to_ids(["<s>", *media, PROMPT, *words, "</s>"]))
        starts.append(2 + len(media))
    return _padded(tokenizer, rows, starts)

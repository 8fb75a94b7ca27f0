"""Locate the user's question in the token ids of a prompt.

Question-aware methods need the question alone: not the system prompt, not the roles and ends of turns
that a chat template writes, not the text that it writes around an image. A model only gets ids. Where its tokenizer
is available (passed, or next to the model's local weights), the chat template is rendered once with known words,
which shows the text before and after a user's words; then the last turn of the user is found in a prompt.
Without a tokenizer only the special ids of the configuration are known, among them the ends of turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.files import stamp
from foveate.core.text_files import read_json
from foveate.core.weights import DATA_ONLY, file_of

#: Characters for whitespace in the tokens of byte-level and SentencePiece vocabularies.
_BLANK = " \n\t\r▁ĠĊĉč"
_BLANK_BYTES = ("<0x0A>", "<0x0D>", "<0x09>", "<0x20>")
#: Timestamp of a video frame, as processors write it before the frame's tokens.
TIME_BEFORE = re.compile(r"(<(?P<seconds>\d+(\.\d+)?)[ ▁Ġ]seconds>|(?P<clock>\d{2,5}:\d\d(:\d\d)?(\.\d+)?))[ ▁ĠĊ\n]*$")
#: Words that no template contains, to find the text around them.
_FIRST_WORD, _ANSWER_WORD, _SECOND_WORD = "zebra", "heron", "otter"


@dataclass(frozen=True)
class TemplateText:
    """Text that a chat template adds, as joined tokens of a vocabulary.

    Args:
        opener: Text before the words of a user; "" where turns cannot be separated.
        closer: Text between them and an answer.
        around_images: Texts for an image between two special tokens, each with the token before it.
    """

    opener: str = ""
    closer: str = ""
    around_images: frozenset[tuple[int, str]] = frozenset()


class QuestionFinder:
    """Locates the user's question in the ids of prompts.

    Args:
        config: The model's configuration.
        generation: Its generation configuration, where there is one.
        source: Its tokenizer or processor, a folder or Hub id with one, or None.
    """

    def __init__(self, config: Any, generation: Any, source: Any) -> None:
        self._known = frozenset(_ids_of(config) | (set() if generation is None else _ids_of(generation)))
        ends = [getattr(c, "eos_token_id", None) for c in (generation, config, config.get_text_config())]
        self._ends = frozenset(n for end in ends for n in (end if isinstance(end, list | tuple) else [end]) if n)
        self._source = source

    @cached_property
    def reader(self) -> PromptReader | None:
        """Reader with the model's tokenizer; None where none is available."""
        if isinstance(self._source, str | Path):
            location = str(self._source)
            return _from_folder(location, stamp(location) if location else ())
        return (
            None if self._source is None else PromptReader(self._source, getattr(self._source, "chat_template", None))
        )

    def find(self, ids: Sequence[int], text: Sequence[bool], answers: Sequence[bool] | None) -> tuple[list[int], str]:
        """Find the positions of the user's words in one prompt.

        Args:
            ids: Ids of the prompt.
            text: True for text tokens, False for image tokens and padding.
            answers: In training, True for answer tokens: then the words of all turns count. None: those of the
                last user turn do.

        Returns:
            Ascending positions, and a note where they are not exact, else "".
        """
        reader = self.reader
        places = [place for place, there in enumerate(text) if there and not (answers and answers[place])]
        if reader is not None:
            question = reader.words(ids, places, answers is not None)
            if question:
                return question, ""
            return places, "no words of the user in the prompt: all of its text is used as the question"
        plain = [place for place in places if ids[place] not in self._known]
        ends = [place for place in places if ids[place] in self._ends]
        if ends and not answers:  # an answer begins after the last end
            plain = [p for p in plain if p < ends[-1] and (len(ends) < 2 or p > ends[-2])] or plain
        first = next((place for place, there in enumerate(text) if not there and plain and place > plain[0]), None)
        after = plain if first is None else [place for place in plain if place > first]
        note = (
            "no tokenizer next to the model: the question was located by special ids, and words of a chat template "
            "may be included; pass compress(..., processor=...) for an exact question"
        )
        return after or plain or places, note

    def find_text(self, ids: Sequence[int], wanted: str) -> list[int]:
        """Find the positions of a text in one prompt; the last occurrence counts.

        Raises:
            FoveateError: the prompt does not contain it, or there is no tokenizer.
        """
        if self.reader is None:
            raise FoveateError(
                "a question given as text is located with the model's tokenizer, and its folder has none: pass "
                "compress(..., processor=...), or give the question as a mask over the prompt."
            )
        return self.reader.find(ids, wanted)


class PromptReader:
    """Reads prompts with a tokenizer and its chat template.

    Args:
        processor: A tokenizer, or a processor with one.
        template: The chat template; None: that of the tokenizer.
    """

    def __init__(self, processor: Any, template: str | None = None) -> None:
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(self.tokenizer, "convert_ids_to_tokens"):
            raise FoveateError(
                f"prompts are read with a tokenizer or a processor, not with a {type(processor).__name__}."
            )
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        marks = {n for n, token in added.items() if token.special or token.content[:1] + token.content[-1:] == "<>"}
        self.special = {*self.tokenizer.all_special_ids, *marks}
        self._edges = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}
        template = template or getattr(self.tokenizer, "chat_template", None)
        self.template = self._read_template(template) if template else TemplateText()

    def words(self, ids: Sequence[int], places: Sequence[int], all_turns: bool) -> list[int]:
        """Select the positions in `places` that hold the user's words, of the last turn or of all."""
        pieces = self.pieces(ids)
        text, starts = "".join(pieces), _starts(pieces)
        turns = self._turns(text)
        turns = turns if all_turns else turns[-1:]
        # A token may span the whitespace at an end of a turn and the text beyond it.
        turns = [
            (stop - len(text[start:stop].lstrip(_BLANK)), start + len(text[start:stop].rstrip(_BLANK)))
            for start, stop in turns
        ]
        candidates = [
            place
            for place in places
            if ids[place] not in self.special
            and any(starts[place] < stop and starts[place] + len(pieces[place]) > start for start, stop in turns)
        ]
        question = []
        for run in _runs(candidates):
            timed = TIME_BEFORE.search("".join(pieces[p] for p in run))
            if timed and run[-1] + 1 < len(ids) and ids[run[-1] + 1] in self.special:  # timestamp of the next frame
                run = [p for p in run if starts[p] - starts[run[0]] < timed.start()]
            trimmed = _trimmed(run, pieces)
            before = ids[run[0] - 1] if run and run[0] else -1
            if trimmed and not self._is_image_markup(before, "".join(pieces[p] for p in trimmed), ids, run[-1] + 1):
                question += trimmed
        return question

    def find(self, ids: Sequence[int], question: str) -> list[int]:
        """See `QuestionFinder.find_text`."""
        pieces = self.pieces(ids)
        prompt, starts = "".join(pieces), _starts(pieces)
        text = "".join(self.pieces(self.tokenizer(question, add_special_tokens=False)["input_ids"])).strip(_BLANK)
        start = prompt.rfind(text) if text else -1
        if start < 0:
            raise FoveateError(
                f"the prompt does not contain the question {question[:100]!r}; give a text that is in it."
            )
        stop = start + len(text)
        return [n for n, piece in enumerate(pieces) if starts[n] < stop and starts[n] + len(piece) > start]

    def _turns(self, prompt: str) -> list[tuple[int, int]]:
        """Spans of the user's turns; the whole text where turns cannot be separated."""
        opener, closer = self.template.opener, self.template.closer
        if not opener:
            end = prompt.rfind(closer) if closer else -1
            return [(0, end if end >= 0 else len(prompt))]
        turns, place = [], prompt.find(opener)
        while place >= 0:
            start = place + len(opener)
            stop = prompt.find(closer, start) if closer else -1
            turns.append((start, stop if stop >= 0 else len(prompt)))
            place = -1 if stop < 0 else prompt.find(opener, stop)
        return turns or [(0, len(prompt))]

    def _is_image_markup(self, before: int, text: str, ids: Sequence[int], after: int) -> bool:
        """Whether a run of text after a special token belongs to an image: its number, type or timestamp."""
        if before not in self.special:
            return False
        if (before, text) in self.template.around_images:
            return True
        if before in self._edges or after >= len(ids) or ids[after] not in self.special:
            return False
        opening, closing = self.pieces([before, ids[after]])
        return opening.startswith("<") and closing == f"</{opening[1:]}"

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Tokens as text, with the vocabulary's characters for whitespace."""
        return [piece or "" for piece in self.tokenizer.convert_ids_to_tokens([int(n) for n in ids])]

    def _read_template(self, template: str) -> TemplateText:
        """Find the text that a template writes around user words, by rendering known ones."""

        def written(parts: bool, image: bool = False, turns: int = 3) -> list[int] | None:
            def content(text: str) -> Any:
                image_part = [{"type": "image"}] if image and text == _FIRST_WORD else []
                return [*image_part, {"type": "text", "text": text}] if parts else text

            said = [("user", _FIRST_WORD), ("assistant", _ANSWER_WORD), ("user", _SECOND_WORD)][:turns]
            messages = [{"role": role, "content": content(text)} for role, text in said]
            try:
                text = self.tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=turns == 3
                )
            except Exception:  # templates raise any error for content in the other form
                return None
            if not isinstance(text, str) or any(text.count(word) != 1 for _, word in said):
                return None
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

        parts = written(True) is not None
        ids = written(parts)
        if ids is None:
            return TemplateText()
        conversation = "".join(self.pieces(ids))
        places = [conversation.find(word) for word in (_FIRST_WORD, _ANSWER_WORD, _SECOND_WORD)]
        if min(places) < 0:
            return TemplateText()
        first, answer, second = places
        between = conversation[answer + len(_ANSWER_WORD) : second]
        answered = "".join(self.pieces(written(parts, turns=2) or []))
        ended = answered[answered.find(_ANSWER_WORD) + len(_ANSWER_WORD) :] if _ANSWER_WORD in answered else ""
        # The text that ends an answer is not part of the text that opens a turn.
        before = _common_end(conversation[:first], between[len(_common_start(between, ended)) :])
        after = _common_start(
            conversation[first + len(_FIRST_WORD) : answer], conversation[second + len(_SECOND_WORD) :]
        )
        with_image = written(True, image=True) if parts else None
        around = self._between(with_image) - self._between(ids) if with_image else frozenset()
        return TemplateText(before.strip(_BLANK), after.strip(_BLANK), around)

    def _between(self, ids: Sequence[int]) -> frozenset[tuple[int, str]]:
        """Runs of text between special tokens, each with the token before it."""
        pieces = self.pieces(ids)
        runs = _runs([place for place, token in enumerate(ids) if token not in self.special])
        trimmed_runs = [(run, _trimmed(run, pieces)) for run in runs if run[0]]
        return frozenset(
            (ids[run[0] - 1], "".join(pieces[p] for p in trimmed)) for run, trimmed in trimmed_runs if trimmed
        )


@lru_cache(maxsize=8)
def _from_folder(location: str, changed: tuple[Any, ...]) -> PromptReader | None:
    """Reader with the tokenizer next to a model's local weights; None where there is none."""
    from transformers import AutoTokenizer  # slow to import

    if not location:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, local_files_only=True, **DATA_ONLY)
        template = getattr(tokenizer, "chat_template", None)
        older = None if template else file_of(location, "chat_template.json", local_files_only=True)
        if older is not None:
            template = read_json(older).get("chat_template")
        return PromptReader(tokenizer, template if isinstance(template, str) else None)
    except Exception:  # transformers raises many types of errors for a folder without a tokenizer
        return None


def _ids_of(config: Any) -> set[int]:
    """Special ids of a configuration and of its sub-configurations."""
    ids: set[int] = set()
    for name, value in vars(config).items():
        if name.endswith(("token_id", "token_ids", "token_index")):
            ids |= {n for n in (value if isinstance(value, list | tuple) else [value]) if isinstance(n, int)}
        elif hasattr(value, "to_dict"):
            ids |= _ids_of(value)
    return ids


def _starts(pieces: Sequence[str]) -> list[int]:
    """Start of each token in the joined text."""
    starts, place = [], 0
    for piece in pieces:
        starts.append(place)
        place += len(piece)
    return starts


def _runs(places: Sequence[int]) -> list[list[int]]:
    """Split ascending positions into runs without gaps."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _trimmed(run: Sequence[int], pieces: Sequence[str]) -> list[int]:
    """Strip whitespace tokens from the ends of a run."""
    filled = [p for p in run if pieces[p].strip(_BLANK) and pieces[p] not in _BLANK_BYTES]
    return [p for p in run if filled and filled[0] <= p <= filled[-1]]


def _common_start(first: str, second: str) -> str:
    size = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return first[:size]


def _common_end(first: str, second: str) -> str:
    return _common_start(first[::-1], second[::-1])[::-1]


def as_mask(places: Sequence[int], length: int, device: torch.device) -> Tensor:
    """(L,) bool mask, True at the given positions."""
    mask = torch.zeros(length, dtype=torch.bool)
    mask[list(places)] = True
    return mask.to(device)

"""Text of answers, token by token, without a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from foveate.models.llava_uhd import byte_tokenizer
from foveate.serving.generation import GenerationState, LogprobRecorder, Penalties, Piece, Sampler, Sampling

END = 258


def written(ids: list[int], limit: int = 99, stops: tuple[str, ...] = ()) -> tuple[GenerationState, str]:
    """State of an answer of these tokens, and what was delivered of it."""
    pieces: list[Piece] = []
    state = GenerationState(byte_tokenizer(), {END}, limit, stops, pieces.append, lambda: False)
    for token in ids:
        state.add(token)
    return state, "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("text", ["A\u00e9", "\u65e5\u672c", " a ", "\U0001f600!"])
@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("ended", [True, False])
def test_text_is_that_of_all_tokens_however_it_ends(text: str, missing: int, ended: bool) -> None:
    """Also where the answer ends within a character."""
    data = list(text.encode())
    ids = data[: len(data) - missing]
    state, delivered = written([*ids, END], stops=("never",)) if ended else written(ids, limit=len(ids))
    assert state.text == delivered == byte_tokenizer().decode(ids, skip_special_tokens=True).strip()
    assert state.reason == ("stop" if ended else "length")


def test_a_stop_text_at_the_very_end_is_found() -> None:
    state, delivered = written([*b"ab", 0xC3], limit=3, stops=("b\ufffd",))
    assert (state.text, delivered, state.reason) == ("a", "a", "stop")


def test_tokens_with_probabilities_keep_their_first_space() -> None:
    """Decoders of Llama leave out a space at the beginning of what they decode, as of a token alone."""
    words = ["<unk>", "</s>", "\u2581The", "\u2581total", "s", "<0xC3>", "<0xA9>", "\u2581"]
    made = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, [], byte_fallback=True))
    made.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")
    recorder = LogprobRecorder([Sampling(top_logprobs=len(words))], tokenizer)
    state = GenerationState(tokenizer, {1}, 99, (), lambda piece: None, lambda: False)
    for token in (2, 3, 4, 7, 4, 1):
        recorder(None, torch.zeros(1, len(words)))
        state.add(token, recorder.of(0, token))
    texts = [logprob.text for _, logprob in state.logprobs]
    assert texts == [" The", " total", "s", " ", "s"] and "".join(texts).strip() == state.text == "The totals s"
    top = {text for _, logprob in state.logprobs for text, _ in logprob.top}
    assert top == {"<unk>", "</s>", " The", " total", "s", "\ufffd", " "}


def test_rows_are_drawn_by_their_own_settings() -> None:
    """As often as the chances after temperature, top_k, top_p and min_p say, row by row."""
    chances = torch.tensor([0.4, 0.3, 0.2, 0.1])
    settings = [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=1.0, top_k=2),
        Sampling(temperature=1.0, top_p=0.65),
        Sampling(temperature=1.0, min_p=0.6),
        Sampling(temperature=1.0, top_k=9),
    ]
    squared = chances.square() / chances.square().sum()
    two = torch.tensor([4 / 7, 3 / 7, 0, 0])
    expected = torch.stack([torch.tensor([1.0, 0, 0, 0]), chances, squared, two, two, two, chances])
    sampler, scores = Sampler(settings, torch.device("cpu")), chances.log().repeat(len(settings), 1)
    ids = torch.zeros(len(settings), 1, dtype=torch.long)
    drawn = torch.zeros(len(settings), 4)
    for _ in range(3000):
        drawn.scatter_add_(1, sampler(ids, scores).argmax(dim=1, keepdim=True), torch.ones(len(settings), 1))
    assert (drawn / 3000 - expected).abs().max() < 0.05
    assert (drawn[expected == 0] == 0).all()


def test_penalties_are_of_a_rows_own_tokens() -> None:
    """Padding is no repetition, and prompts count for the repetition penalty alone."""
    scores = torch.tensor([[2.0, -2.0, 4.0]])
    repeated = Sampling(repetition_penalty=2.0)
    alone = Penalties([repeated], [0], 2)(torch.tensor([[1, 2]]), scores)
    assert alone.tolist() == [[2.0, -4.0, 2.0]]
    rows = [repeated, Sampling(repetition_penalty=1.0), Sampling(frequency_penalty=0.5, presence_penalty=-1.0)]
    ids = torch.tensor([[0, 0, 1, 2, 2], [0, 1, 2, 2, 1], [0, 0, 1, 2, 2]])
    found = Penalties(rows, [2, 0, 1], 3)(ids, scores.repeat(3, 1))
    assert found.tolist() == [alone[0].tolist(), scores[0].tolist(), [2.0, -2.0, 4.0 - 2 * 0.5 + 1.0]]

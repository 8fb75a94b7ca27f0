"""Rollouts of two turns as token ids, and GRPO on them with TRL."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import foveate
from foveate import FoveateError
from foveate.answering.conversations import inputs_of_batch
from foveate.methods.acquisition.visionthink import VisionThink
from foveate.models.llava_uhd import byte_tokenizer
from foveate.training.grpo.rollouts import Conversation, Question, log_probabilities, supervised_loss
from foveate.training.methods.shared.acquisition import SHORT
from tests import asking_model
from tests.asking_model import FULL, picture
from tests.tiny_model import save_qwen

pytestmark = pytest.mark.xdist_group("asking model")


@pytest.fixture(scope="module")
def conversation() -> Conversation:
    model, processor = foveate.load(asking_model.folder(), device="cpu")
    return Conversation(model, processor, VisionThink(), SHORT, (120, 60))


def question(text: str, answer: str = "", **about: object) -> Question:
    return Question(picture(), text, answer, {"small": text == "B", **about})


def test_a_rollout_has_the_ids_of_its_conversation(conversation: Conversation) -> None:
    rollout = conversation.scripted(question("B"), [FULL, asking_model.answer("42")])
    model, processor = conversation.model, conversation.processor
    ids = [*rollout.prompt, *rollout.completion]
    last = max(place for place, turn in enumerate(rollout.turns) if turn == 0) + 1
    # What the second turn reads is what the processor makes of the messages of both turns.
    expected = inputs_of_batch(model, processor, [rollout.messages])["input_ids"][0].tolist()
    assert ids[: len(rollout.prompt) + last] == expected
    assert len(rollout.turns) == len(rollout.completion) and set(rollout.turns) == {0, 1, 2}
    end = min(conversation.ends)
    for number, text in enumerate(rollout.texts, 1):
        written = [token for token, turn in zip(rollout.completion, rollout.turns, strict=True) if turn == number]
        assert conversation.tokenizer.decode(written[:-1]) == text and written[-1] == end
    image_tokens = [token for token, turn in zip(rollout.completion, rollout.turns, strict=True) if turn == 0]
    assert image_tokens.count(conversation.image_token) + rollout.prompt.count(conversation.image_token) == (
        rollout.image_tokens
    )
    with pytest.raises(FoveateError, match="the first is no valid call"):
        conversation.scripted(question("A"), [asking_model.answer("7"), "more"])


def test_what_rollouts_cannot_write_is_not_taught(conversation: Conversation) -> None:
    """A warm-up on longer calls than rollouts may have would teach a model that never asks."""
    answer = asking_model.answer("42")
    longest = [len(conversation.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in (FULL, answer)]
    for short, option in ((0, "--first-tokens"), (1, "--second-tokens")):
        conversation.limits = (longest[0] - (short == 0), longest[1] - (short == 1))
        with pytest.raises(FoveateError, match=f"has {longest[short]} tokens, which rollouts of at most .* {option}"):
            conversation.scripted(question("B"), [FULL, answer])
    conversation.limits = (longest[0], longest[1])
    conversation.scripted(question("B"), [FULL, answer])


def test_sampled_rollouts_are_what_ask_answers(conversation: Conversation) -> None:
    # At a low temperature sampling is greedy; groups are neighbours.
    rollouts = conversation.sample([question("A"), question("B")], 2, temperature=0.01)
    written = [[asking_model.answer("7")], [FULL, asking_model.answer("42")]]
    assert [rollout.texts for rollout in rollouts] == [written[0]] * 2 + [written[1]] * 2
    scripted = conversation.scripted(question("B"), written[1])
    assert (rollouts[2].completion, rollouts[2].turns) == (scripted.completion, scripted.turns)
    assert conversation.sample([question("B")], temperature=0.0)[0].completion == scripted.completion
    with pytest.raises(FoveateError, match="differ by chance"):
        conversation.sample([question("A")], 2, temperature=0.0)
    answer = foveate.ask(
        picture(), "B", (conversation.model, conversation.processor), "visionthink", max_new_tokens=120
    )
    assert rollouts[2].image_tokens == answer.tokens.read
    (begun,) = conversation.sample([question("B")], prefix="<think></think><answer>", temperature=0.0)
    assert begun.texts[0].startswith("<think></think><answer>") and begun.call is None
    (bad,) = conversation.sample([question("F")], temperature=0.0)
    assert "has no end" in str(bad.problem)


def test_the_loss_is_that_of_what_the_model_wrote(conversation: Conversation) -> None:
    """Against every rollout alone, token by token, in the model's own call on the whole sequence."""
    rollouts = [
        conversation.scripted(question("A"), [asking_model.answer("7")]),
        conversation.scripted(question("B"), [FULL, asking_model.answer("42")]),
    ]
    total, count = 0.0, 0
    model = conversation.model
    for rollout in rollouts:
        row = [*rollout.prompt, *rollout.completion]
        inputs = conversation.inputs([row], [rollout])
        with torch.no_grad():
            logits = model(**inputs).logits[0].float().log_softmax(-1)
        for place, turn in enumerate(rollout.turns, len(rollout.prompt)):
            if turn:
                total -= float(logits[place - 1, row[place]])
                count += 1
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        loss = supervised_loss(conversation, rollouts)
    assert float(loss) == pytest.approx(total / count, rel=0.05, abs=2e-3)  # bfloat16 where the CPU has it


def test_log_probabilities_and_entropies(conversation: Conversation) -> None:
    rollout = conversation.scripted(question("A"), [asking_model.answer("7")])
    inputs = conversation.inputs([[*rollout.prompt, *rollout.completion]], [rollout])
    with torch.no_grad():
        chosen, entropy = log_probabilities(conversation.model, inputs, 3, temperature=2.0)
        logits = (conversation.model(**inputs).logits[0, -4:-1].float() / 2).log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(logits, rollout.completion[-3:], strict=True)]
    assert chosen[0].tolist() == pytest.approx(expected, abs=1e-4)
    assert entropy[0].tolist() == pytest.approx((-(logits.exp() * logits).sum(-1)).tolist(), abs=1e-4)


def test_models_with_positions_of_their_own(tmp_path: Path) -> None:
    """Qwen2.5-VL: image grids and kinds of tokens follow the sequence of both turns."""
    model, processor = foveate.load(save_qwen(tmp_path), device="cpu")
    conversation = Conversation(model, processor, VisionThink(), SHORT, (120, 8))
    with pytest.raises(FoveateError, match="rewrites earlier turns"):  # its template has no beginning of an answer
        conversation.scripted(question("B"), [FULL, "x"])
    processor.chat_template = byte_tokenizer().chat_template
    rollout = conversation.scripted(question("B"), [FULL, "x"])
    row = [*rollout.prompt, *rollout.completion]
    inputs = conversation.inputs([row], [rollout])
    whole = inputs_of_batch(model, processor, [rollout.messages])
    length = whole["input_ids"].shape[1]
    assert row[:length] == whole["input_ids"][0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits[0, length - 1], model(**whole).logits[0, -1])
    assert math.isfinite(float(supervised_loss(conversation, [rollout]).detach()))

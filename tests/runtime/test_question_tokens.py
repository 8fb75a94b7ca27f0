"""Which tokens of a prompt are the user's own words, with the chat templates of the families."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import foveate
from foveate import FoveateError
from foveate.runtime.question_tokens import QuestionFinder
from tests.runtime.chat_templates import CHATS, IMAGE, tokenizer_of

QUESTION = "What is the total?"
TEXT = {"type": "text", "text": QUESTION}
PICTURE = {"type": "image"}


def user(*content: dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def said(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


TALKS: dict[str, list[dict[str, Any]]] = {
    "image first": [user(PICTURE, TEXT)],
    "image last": [user(TEXT, PICTURE)],
    "two images": [user(PICTURE, PICTURE, TEXT)],
    "no image": [said("Look at this."), said("I do.", "assistant"), user(TEXT)],
    "three turns": [
        user(PICTURE, {"type": "text", "text": "Which shop?"}),
        said("The green one.", "assistant"),
        said("And where?"),
        said("In town.", "assistant"),
        user(TEXT),
    ],
    "image in the last turn": [
        user(PICTURE, {"type": "text", "text": "Which shop?"}),
        said("The green one.", "assistant"),
        user(PICTURE, TEXT),
    ],
}


def config(**fields: Any) -> Any:
    return SimpleNamespace(get_text_config=lambda: SimpleNamespace(), **fields)


def prompt(tokenizer: Any, chat: Any, messages: list[dict[str, Any]], **options: Any) -> tuple[list[int], list[bool]]:
    """Ids as a processor writes them, with three tokens for an image, and which of them are text."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, **{"add_generation_prompt": True, **options})
    text = text.replace(IMAGE, chat.expands.replace("{}", 3 * IMAGE))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    return ids, [token != image for token in ids]


def shown(tokenizer: Any, ids: list[int], places: list[int]) -> str:
    text = "".join(tokenizer.convert_ids_to_tokens([ids[place] for place in places]))
    return text.replace("Ġ", " ").replace("▁", " ").strip()


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", CHATS)
def test_the_words_are_those_of_the_last_turn(name: str, talk: str):
    tokenizer = tokenizer_of(CHATS[name])
    ids, text = prompt(tokenizer, CHATS[name], TALKS[talk])
    places, note = QuestionFinder(config(), None, tokenizer).find(ids, text, None)
    assert shown(tokenizer, ids, places) == QUESTION
    assert note == ""


@pytest.mark.parametrize("name", CHATS)
def test_text_on_both_sides_of_an_image_is_the_users(name: str):
    tokenizer = tokenizer_of(CHATS[name])
    ids, text = prompt(tokenizer, CHATS[name], [user({"type": "text", "text": "This bill:"}, PICTURE, TEXT)])
    places, _ = QuestionFinder(config(), None, tokenizer).find(ids, text, None)
    assert shown(tokenizer, ids, places).replace(" ", "") == ("This bill:" + QUESTION).replace(" ", "")


@pytest.mark.parametrize("name", ["qwen", "internvl", "llama 3"])
def test_a_system_prompt_is_not_the_users(name: str):
    tokenizer = tokenizer_of(CHATS[name])
    talk = [said("Answer shortly.", "system"), user(PICTURE, TEXT)]
    ids, text = prompt(tokenizer, CHATS[name], talk)
    places, _ = QuestionFinder(config(), None, tokenizer).find(ids, text, None)
    assert shown(tokenizer, ids, places) == QUESTION


@pytest.mark.parametrize("name", CHATS)
def test_in_training_the_words_of_all_turns_count_and_answers_do_not(name: str):
    tokenizer = tokenizer_of(CHATS[name])
    talk = [user(PICTURE, TEXT), said("Ten.", "assistant"), said("And why?"), said("So it says.", "assistant")]
    ids, text = prompt(tokenizer, CHATS[name], talk, add_generation_prompt=False)
    pieces = [piece.replace("Ġ", " ").replace("▁", " ") for piece in tokenizer.convert_ids_to_tokens(ids)]
    whole, starts = "".join(pieces), [sum(map(len, pieces[:n])) for n in range(len(pieces))]
    answers = [
        any(whole.find(own) <= start < whole.find(own) + len(own) for own in ("Ten.", "So it says."))
        for start in starts
    ]
    places, _ = QuestionFinder(config(), None, tokenizer).find(ids, text, answers)
    assert shown(tokenizer, ids, places).replace(" ", "") == (QUESTION + "And why?").replace(" ", "")


def test_times_of_frames_are_not_the_users():
    chat = CHATS["qwen"]
    tokenizer = tokenizer_of(chat)
    ids, text = prompt(tokenizer, chat, [user({"type": "text", "text": "<0.3 seconds>"}, PICTURE, TEXT)])
    places, _ = QuestionFinder(config(), None, tokenizer).find(ids, text, None)
    assert shown(tokenizer, ids, places) == QUESTION


def test_without_a_template_all_plain_text_counts():
    tokenizer = tokenizer_of(CHATS["qwen"])
    tokenizer.chat_template = None
    ids = tokenizer(f"<s>{IMAGE}\n{QUESTION}\n")["input_ids"]
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    places, note = QuestionFinder(config(), None, tokenizer).find(ids, [token != image for token in ids], None)
    assert shown(tokenizer, ids, places) == QUESTION and note == ""


def test_a_prompt_without_words_says_so():
    tokenizer = tokenizer_of(CHATS["qwen"])
    ids, text = prompt(tokenizer, CHATS["qwen"], [user(PICTURE)])
    places, note = QuestionFinder(config(), None, tokenizer).find(ids, text, None)
    assert places == [n for n, there in enumerate(text) if there]
    assert "no words of the user" in note


def test_ids_alone_tell_ends_of_turns_and_special_tokens():
    """Without a tokenizer: what stands between the last two ends of turns, after the image."""
    chat = CHATS["qwen"]
    tokenizer = tokenizer_of(chat)
    edges = ("vision_start", "vision_end")
    special = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in edges}
    generation = SimpleNamespace(eos_token_id=[tokenizer.convert_tokens_to_ids("<|im_end|>")])
    words = QuestionFinder(config(**special), generation, None)
    for talk in ("image first", "two images", "image in the last turn"):
        ids, text = prompt(tokenizer, chat, TALKS[talk])
        places, note = words.find(ids, text, None)
        assert shown(tokenizer, ids, places) == QUESTION
        assert "no tokenizer" in note


# On live models


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    return foveate.load()


def inputs(processor: Any, *questions: str) -> Any:
    from PIL import Image

    talks = [[{"role": "user", "content": [PICTURE, {"type": "text", "text": text}]}] for text in questions]
    texts = [processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) for talk in talks]
    pictures = [Image.new("RGB", (64, 96), colour) for colour in ("red", "blue")][: len(texts)]
    return processor(text=texts, images=pictures, return_tensors="pt", padding=True)


def instruction(handle: Any, model: Any, seen: dict[int, Any]) -> None:
    """Let `seen` hold the question that methods are given, by image."""
    chooser = handle._selector
    own = chooser._question

    def watched(frame: Any, row: int, columns: Any, length: int) -> Any:
        found = own(frame, row, columns, length)
        seen[row] = frame.arguments["input_ids"][row, found[0]].tolist()
        return found

    object.__setattr__(chooser, "_question", watched)


@pytest.mark.parametrize("questions", [(QUESTION,), (QUESTION, "Who?")])
def test_a_live_model_compares_with_the_question_alone(embedded: Any, questions: tuple[str, ...]):
    """Each token is a vector, in a batch padded on the left too."""
    model, processor = embedded
    seen: dict[int, list[int]] = {}
    with foveate.compress(model, "cdpruner:25%") as handle:
        instruction(handle, model, seen)
        model.generate(**inputs(processor, *questions), max_new_tokens=1)
        assert handle.report().images[0].notes == ()
    assert [seen[row] for row in range(len(questions))] == [
        processor.tokenizer(text)["input_ids"] for text in questions
    ]
    assert [processor.tokenizer.decode(seen[row]) for row in range(len(questions))] == list(questions)


def test_the_choice_does_not_depend_on_the_system_prompt(embedded: Any):
    model, processor = embedded
    plain, more = inputs(processor, QUESTION), None
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [PICTURE, {"type": "text", "text": QUESTION}]},
    ]
    from PIL import Image

    text = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    more = processor(text=[text], images=[Image.new("RGB", (64, 96), "red")], return_tensors="pt")
    kept = []
    for given in (plain, more):
        with foveate.compress(model, "cdpruner:25%") as handle, torch.no_grad():
            model(**given)
            kept.append(handle.report().images[0].selection.indices.tolist())
    assert kept[0] == kept[1]


def test_a_question_can_be_given(embedded: Any):
    model, processor = embedded
    given = inputs(processor, QUESTION, "Who?")
    seen: dict[int, list[int]] = {}
    with foveate.compress(model, "cdpruner:25%", processor=processor) as handle, torch.no_grad():
        instruction(handle, model, seen)
        with handle.with_question(["total", "Who"]):
            model(**given)
        assert [processor.tokenizer.decode(seen[row]) for row in (0, 1)] == ["total", "Who"]
        mask = torch.zeros_like(given["input_ids"])
        mask[:, -3:] = 1
        with handle.with_question(mask):
            model(**given)
        assert [len(seen[row]) for row in (0, 1)] == [3, 3]
        model(**given)
        assert seen[0] == processor.tokenizer(QUESTION)["input_ids"]
        with handle.with_question("Where?"), pytest.raises(FoveateError, match="does not contain the question 'Where"):
            model(**given)
        with handle.with_question(mask[:, 1:]), pytest.raises(FoveateError, match="the mask of the question is"):
            model(**given)
        for nothing in ([], None, 3, ["Who", 3], mask[0], mask[:0]):
            with pytest.raises(FoveateError, match="a text for each prompt or a mask"), handle.with_question(nothing):
                model(**given)
    wrong = pytest.raises(FoveateError, match="a tokenizer or a processor, not with a int")
    with foveate.compress(model, "cdpruner:25%", processor=3), wrong:
        model(**given)


def test_without_a_tokenizer_the_report_says_how_the_question_was_found(embedded: Any):
    model, processor = embedded
    before = model.name_or_path
    model.name_or_path = ""
    try:
        with foveate.compress(model, "cdpruner:25%") as handle, torch.no_grad():
            model(**inputs(processor, QUESTION))
            assert any("no tokenizer" in note for note in handle.report().images[0].notes)
    finally:
        model.name_or_path = before

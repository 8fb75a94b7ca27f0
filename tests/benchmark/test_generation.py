"""Batches say what single questions say, and a chat goes on over one cache with what was chosen at its beginning."""

from __future__ import annotations

import base64
from contextlib import nullcontext
from typing import Any

import pytest
import torch

import foveate
from foveate import FoveateError
from foveate.answering import answer_batch
from foveate.answering.conversations import inputs_of_batch
from foveate.benchmark.generation import SPARE, Prepared, ask, batches, messages_of, prepare
from foveate.benchmark.tasks import Item
from foveate.loading import load
from foveate.models.llava_uhd import byte_tokenizer
from tests.families.zoo import zoo
from tests.tiny_model import noise, save_internvl, save_llava, save_llava_uhd

MAKERS = {"llava-uhd": save_llava_uhd, "llava": save_llava, "internvl": save_internvl}


@pytest.fixture(scope="module", params=MAKERS)
def pair(request, tmp_path_factory) -> tuple[Any, Any]:
    return load(MAKERS[request.param](tmp_path_factory.mktemp(request.param)))


def item(index: int = 0, turns: int = 1, size: tuple[int, int] = (48, 64), images: int = 1) -> Item:
    asked = tuple((f"Question {index}.{turn}?", "abcdefgh"[: 3 + turn]) for turn in range(turns))
    return Item("own", index, tuple(noise(*size, seed=index + place) for place in range(images)), asked)


@pytest.mark.parametrize("plan", [None, "divprune:3"])
def test_a_batch_says_what_each_conversation_says_alone(pair, plan):
    model, processor = pair
    asked = [item(0), item(1, size=(64, 32)), item(2, images=2), item(3, size=(32, 32))]
    conversations = [messages_of(one) for one in asked]
    with nullcontext() if plan is None else foveate.compress(model, plan):
        alone = [answer_batch(model, processor, [one], 6)[0] for one in conversations]
        assert answer_batch(model, processor, conversations, 6) == alone
        shorter = answer_batch(model, processor, conversations, [6, 2, 6, 1])
        assert shorter[::2] == alone[::2]
        assert shorter[1] == answer_batch(model, processor, conversations[1:2], 2)[0]
    assert len(set(alone)) > 1


def test_earlier_turns_and_plain_contents_are_part_of_the_prompt(pair):
    model, processor = pair
    content = [{"type": "image", "image": noise(32, 32)}, {"type": "text", "text": "Which?"}]
    first = [{"role": "user", "content": content}, {"role": "assistant", "content": "This."}]
    chat = [*first, {"role": "user", "content": "And now?"}]
    parts = [*first, {"role": "user", "content": [{"type": "text", "text": "And now?"}]}]
    assert answer_batch(model, processor, [chat], 8) == answer_batch(model, processor, [parts], 8)
    assert answer_batch(model, processor, [chat], 8) != answer_batch(model, processor, [first[:1]], 8)


def test_control_tokens_are_asked_as_text(pair):
    model, processor = pair
    token = processor.image_token
    said = answer_batch(model, processor, [messages_of(Item("", 0, (noise(32, 32),), ((f"{token}?", ""),)))], 4)
    spaced = Item("", 0, (noise(32, 32),), ((f"{token[0]} {token[1:]}?", ""),))
    assert said == answer_batch(model, processor, [messages_of(spaced)], 4)


def test_what_cannot_be_asked(pair):
    model, processor = pair
    with pytest.raises(FoveateError, match="no conversation"):
        answer_batch(model, processor, [], 4)
    with pytest.raises(FoveateError, match="512 positions"):
        answer_batch(model, processor, [messages_of(Item("", 0, (noise(32, 32),), (("why " * 200, ""),)))], 4)


def test_what_follows_an_answer_is_what_the_whole_conversation_has_there(pair):
    """Byte tokens are the same wherever a text is cut, so the parts of a chat are those of the whole."""
    model, processor = pair
    chat = item(5, turns=3)
    tokenizer = processor.tokenizer
    prepared = prepare(model, processor, [chat])
    ids = prepared.inputs["input_ids"][0].tolist()
    for turn, following in enumerate(prepared.following, 1):
        ids += tokenizer(f"said {turn}", add_special_tokens=False)["input_ids"] + following.tolist()
        messages = messages_of(chat, [f"said {number + 1}" for number in range(turn)])
        assert inputs_of_batch(model, processor, [messages])["input_ids"][0].tolist() == ids
    assert len(prepared.following) == 2
    assert prepared.limits == ((3 + SPARE, 4 + SPARE, 5 + SPARE),)


# PaliGemma reads a prompt both ways, so a whole conversation read anew is another one.
CHATTING = [name for name in sorted(zoo()) if not name.startswith("paligemma")]
QUICK = ("llava", "qwen2.5-vl", "gemma3", "llava-uhd")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CHATTING]
)
@pytest.mark.parametrize("plan", [None, "divprune:3"])
def test_every_family_goes_on_over_its_cache(name: str, plan: str | None):
    specimen = zoo()[name]
    model = specimen.model()
    first = specimen.prompts(model, [((3, 4),)])
    following = torch.tensor([5, 6, 7])
    prepared = Prepared((item(0, turns=2),), first, ((4, 4),), (following,))
    said: list[list[int]] = []
    with nullcontext() if plan is None else foveate.compress(model, plan):
        (reply,) = ask(model, _Recording(said), prepared)
        ids = torch.cat([first["input_ids"], torch.tensor([said[0]]), following[None]], dim=1)
        whole = {**first, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for kinds in ("token_type_ids", "mm_token_type_ids"):
            if kinds in first:
                whole[kinds] = torch.nn.functional.pad(first[kinds], (0, ids.shape[1] - first[kinds].shape[1]))
        with torch.no_grad():
            anew = model.generate(**whole, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :].tolist()
    assert said[1] == anew
    assert len(reply.texts) == 2


class _Recording:
    """A tokenizer that keeps the tokens it is given: two different ones may read alike."""

    def __init__(self, said: list[list[int]]) -> None:
        self._said = said
        self._tokenizer = byte_tokenizer()

    def batch_decode(self, rows: list[list[int]], **options: Any) -> list[str]:
        self._said += rows
        return self._tokenizer.batch_decode(rows, **options)


def test_a_chat_encodes_its_image_once_and_keeps_the_first_choice(pair):
    model, processor = pair
    chat = item(7, turns=3, size=(64, 64))
    calls = []
    tower = model.get_encoder(modality="image")
    hook = tower.register_forward_hook(lambda *_: calls.append(1))
    try:
        prepared = prepare(model, processor, [chat])
        with foveate.compress(model, "cdpruner:3") as handle:
            (reply,) = ask(model, processor, prepared)
            images = handle.report().images
    finally:
        hook.remove()
    assert len(calls) == 1
    assert reply.tokens_kept == sum(image.tokens_kept for image in images) == 3 * len(images)
    assert reply.tokens_in == sum(image.tokens_in for image in images)


def test_tokens_are_counted_without_a_plan_and_inside_the_language_model(pair):
    model, processor = pair
    prepared = prepare(model, processor, [item(0, size=(64, 64)), item(1, size=(32, 64))])
    plain = ask(model, processor, prepared)
    with foveate.compress(model, "uniform:50%"):
        half = ask(model, processor, prepared)
    with foveate.compress(model, "random-decoder:50%@1"):  # one of the two layers
        inside = ask(model, processor, prepared)
    for before, early, later in zip(plain, half, inside, strict=True):
        assert before.tokens_in == before.tokens_kept == early.tokens_in == later.tokens_in > 0
        assert early.tokens_kept == before.tokens_in / 2
        assert later.tokens_kept == before.tokens_in * 3 / 4


def test_batches_hold_every_item_once_and_chats_alone():
    stream = [item(index, turns=1 + (index % 7 == 3), size=(8 * (index % 5 + 1), 8)) for index in range(75)]
    cut = list(batches(iter(stream), 4))
    assert sorted(one.index for batch in cut for one in batch) == list(range(75))
    assert all(len(batch) <= (1 if len(batch[0].turns) > 1 else 4) for batch in cut)
    areas = [one.pixels for batch in cut for one in batch if len(one.turns) == 1 and one.index < 64]
    assert areas == sorted(areas)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("messages if message.role == 'user'", "drops earlier answers"),
        ("messages[-1:]", "leaves out messages of the user"),
        ("messages if message.role != 'assistant' or raise_exception('one turn only')", "one turn only"),
    ],
)
def test_a_template_that_drops_turns_is_refused(pair, messages, says):
    model, processor = pair
    before = processor.chat_template
    processor.chat_template = (
        f"{{% for message in {messages} %}}{{% for part in message.content %}}"
        "{{ part.text if part.type == 'text' else '' }}{% endfor %}{% endfor %}"
    )
    try:
        with pytest.raises(FoveateError, match=says):
            prepare(model, processor, [Item("own", 0, (), (("One?", "1"), ("Two?", "2")))])
    finally:
        processor.chat_template = before


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}], "no chat template"),
        ([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}], "does not accept video"),
        ([{"role": "user", "content": [{"type": "image", "url": "http://example.org/a.png"}]}], "is an address"),
        ([{"role": "user", "content": [{"type": "image"}]}], "holds no image"),
    ],
)
def test_what_would_be_dropped_is_refused(pair, messages, says):
    model, processor = pair
    before, processor.chat_template = processor.chat_template, None
    try:
        with pytest.raises(FoveateError, match=says):
            inputs_of_batch(model, processor, [messages])
    finally:
        processor.chat_template = before


def test_images_of_messages_may_be_paths_addresses_with_data_or_base64(pair, tmp_path):
    model, processor = pair
    picture = noise(32, 32)
    picture.save(tmp_path / "a.png")
    data = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    parts = [
        {"image": picture}, {"image": str(tmp_path / "a.png")}, {"path": str(tmp_path / "a.png")}, {"base64": data},
        {"base64": f"data:image/png;base64,{data}"}, {"url": f"data:image/png;base64,{data}"},
    ]  # fmt: skip
    found = []
    for part in parts:
        content = [{"type": "image", **part}, {"type": "text", "text": "What?"}]
        found.append(inputs_of_batch(model, processor, [[{"role": "user", "content": content}]]))
    for other in found[1:]:
        assert all(torch.equal(other[name], value) for name, value in found[0].items())

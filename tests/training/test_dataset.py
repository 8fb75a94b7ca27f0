"""Bad training data is named with file and line before anything is trained."""

import json

import pytest
from PIL import Image

from foveate import FoveateError
from foveate.training.dataset import MOST_PROBLEMS, read_conversations

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image", encoding="utf-8")
    return tmp_path


def row(**changes) -> dict:
    return {"id": "1", "image": "good.png", "conversations": TURNS} | changes


def turns(*values: tuple[str, str]) -> list[dict]:
    return [{"from": who, "value": value} for who, value in values]


def write(folder, rows, name="data.jsonl"):
    path = folder / name
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"a": ' + "[" * 100_000, "recursion"),
        ("[" * 100_000, "recursion"),
        ('{"id": ' + "9" * 5000 + "}", "5000 digits"),
        ('[{"id": ' + "9" * 5000 + "}]", "5000 digits"),
        (json.dumps({"image": "a" * 5000, "conversations": TURNS}), "cannot be read"),
        (json.dumps({"image": "a\0b", "conversations": TURNS}), "does not exist"),
        (json.dumps({"image": "../" * 40 + "etc/passwd", "conversations": TURNS}), "cannot be read"),
        (json.dumps({"conversations": [{"from": ["human"], "value": "?"}]}), "turn 1 is from"),
        ('{"conversations": [{"from": "human", "value": "\\ud800"}, {"from": "gpt", "value": "!"}]}', "half of a char"),
    ],
)
def test_hostile_lines_are_problems_like_others(folder, line, words):
    with pytest.raises(FoveateError, match=words) as caught:
        read_conversations(write(folder, [line]))
    assert len(str(caught.value)) < 2000


def test_devices_are_not_read():
    with pytest.raises(FoveateError, match="is no file"):
        read_conversations("/dev/zero")


def test_images_are_held_against_the_limits_of_open_image(folder):
    Image.new("1", (14_000, 13_000)).save(folder / "large.png")
    (folder / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    for name, words in (("large.png", "decompression bomb"), ("drawing.eps", "cannot be read")):
        with pytest.raises(FoveateError, match=words):
            read_conversations(write(folder, [row(image=name)]))


def test_good_files_are_read(folder):
    rows = [
        row(),
        row(image=["good.png", "good.png"], conversations=turns(("human", "<image><image> Same?"), ("gpt", "Yes."))),
        {
            "conversations": turns(
                ("system", "Be brief."), ("human", "Hello"), ("gpt", "Hi."), ("human", "?"), ("gpt", "!")
            )
        },
    ]
    lines = read_conversations(write(folder, rows))
    array = folder / "data.json"
    array.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for examples in (lines, read_conversations(array)):
        assert [len(example.images) for example in examples] == [1, 2, 0]
        assert examples[0].images == [folder / "good.png"]
        assert examples[2].conversations[-1]["value"] == "!"
        assert examples[0].characters is None


SPOKEN = [{"from": "system", "value": "Be brief."}, *TURNS]


@pytest.mark.parametrize(
    "changes",
    [
        {"conversations": SPOKEN},
        {"system": "Be brief."},
        {"system": "Be brief.", "video": None, "audio": "", "tools": [], "source": {}},
        {"image": None, "images": ["good.png"], "system": "Be brief."},
    ],
)
def test_what_stands_beside_the_turns_is_read(folder, changes, recwarn):
    (example,) = read_conversations(write(folder, [row(task="cats", **changes)]))
    assert (example.conversations, example.images, example.task) == (SPOKEN, [folder / "good.png"], "cats")
    (without,) = read_conversations(write(folder, [row(system=None)]))
    (empty,) = read_conversations(write(folder, [row(system="")]))
    assert without.conversations == empty.conversations == TURNS and not recwarn.list


def test_what_is_not_learned_from_is_said_once_a_file(folder):
    weighted = [TURNS[0], {**TURNS[1], "weight": 0}]
    text = turns(("human", "What does <video> mean?"), ("gpt", "A clip."))
    rows = [row(source="web", width=8), row(source="web", conversations=weighted), {"conversations": text}]
    with pytest.warns(UserWarning, match="not learned from") as caught:
        read_conversations(write(folder, rows))
    (said,) = [str(one.message) for one in caught]
    for words in ("'source' (2 rows)", "'width' (1 row)", "'weight' of turns (1 row)", "<video>, which is text here"):
        assert words in said
    assert "'id'" not in said and "data.jsonl" in said


def test_images_may_lie_in_another_folder(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("rows")
    (example,) = read_conversations(write(elsewhere, [row()]), folder)
    assert example.images == [folder / "good.png"]


BAD = [
    ("{broken", ["broken JSON"]),
    ('{"conversations": [}', ["broken JSON", "column"]),
    (row(image="missing.png"), ["missing.png", "does not exist"]),
    (row(image="cut.png"), ["cut.png", "cannot be read"]),
    (row(image="text.png"), ["text.png", "cannot be read"]),
    (row(image=7), ["`image`"]),
    (row(image=["good.png", "good.png"]), ["1 <image>", "2 images"]),
    ({"conversations": TURNS}, ["1 <image>", "0 images"]),
    (row(conversations=turns(("human", "no placeholder"), ("gpt", "A."))), ["0 <image>", "1 images"]),
    (row(conversations=turns(("human", "<image>"), ("gpt", " \n"))), ["turn 2", "empty answer"]),
    (row(conversations=turns(("gpt", "A."), ("human", "<image>"))), ["turn 1 is from gpt", "expected human"]),
    (row(conversations=turns(("human", "<image>"), ("human", "?"))), ["turn 2 is from human", "expected gpt"]),
    (row(conversations=turns(("human", "<image>"))), ["last turn"]),
    ({"conversations": turns(("system", "x"))}, ["no question"]),
    (row(conversations=turns(("user", "<image>"), ("gpt", "A."))), ["turn 1", "'user'", "human"]),
    (row(conversations=turns(("human", "what"), ("gpt", "<image>"))), ["turn 2", "only human"]),
    (row(conversations=[{"from": "human"}]), ["turn 1", "`value`"]),
    (row(conversations=[]), ["`conversations`"]),
    ({"image": "good.png"}, ["`conversations`"]),
    (row(video="a.mp4"), ["`video`", "possible are `image` and text"]),
    ({"video": "a.mp4", "conversations": turns(("human", "<video>\nWhat?"), ("gpt", "A dog."))}, ["`video`"]),
    (row(audio=["a.wav"]), ["`audio`"]),
    (row(tools="[]"), ["`tools`"]),
    (row(system=7), ["`system` must be a text"]),
    (row(system="Be brief.", conversations=turns(("system", "x"), ("human", "<image>"), ("gpt", "A."))), ["next to"]),
    (row(system="<image>"), ["only human"]),
    (row(images=["good.png"]), ["`image` and `images`"]),
    (row(image=None, images=[7]), ["`images` must be"]),
    ([1, 2], ["expected an object"]),
    ('"text"', ["expected an object"]),
]


@pytest.mark.parametrize(("bad", "words"), BAD)
def test_a_bad_row_is_named_with_file_and_line(folder, bad, words):
    path = write(folder, [row(), "", bad, row()])
    with pytest.raises(FoveateError) as error:
        read_conversations(path)
    assert f"{path}, line 3: " in str(error.value)
    assert "1 problem:" in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("bad", "words"), [case for case in BAD if not isinstance(case[0], str)])
def test_a_bad_element_of_an_array_is_named_with_its_line(folder, bad, words):
    path = folder / "data.json"
    path.write_text("[\n" + json.dumps(row()) + ",\n\n" + json.dumps(bad) + "\n]\n", encoding="utf-8")
    with pytest.raises(FoveateError) as error:
        read_conversations(path)
    assert f"{path}, line 4 (element 2): " in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[\n{}x", "line 2 (after element 1): broken JSON"),
        ('[\n{"a": 1},\n{"b" 2}]', "line 3 (element 2): broken JSON"),
        ('[\n{"a": 1}', "line 2 (after element 1): broken JSON"),
        ("[{}]\nmore", "line 2: broken JSON: text after the end"),
    ],
)
def test_a_broken_array_is_named_with_its_line(folder, text, place):
    path = folder / "data.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FoveateError) as error:
        read_conversations(path)
    assert f"{path}, {place}" in str(error.value)


def test_all_problems_are_listed_up_to_a_limit(folder):
    path = write(folder, [row(image="missing.png"), row(), "{", row(conversations=[])])
    with pytest.raises(FoveateError) as error:
        read_conversations(path)
    assert "3 problems" in str(error.value)
    for line in (1, 3, 4):
        assert f"line {line}: " in str(error.value)

    path = write(folder, ["{"] * (MOST_PROBLEMS + 5))
    with pytest.raises(FoveateError, match="and 5 more") as error:
        read_conversations(path)
    assert str(error.value).count("broken JSON") == MOST_PROBLEMS


@pytest.mark.parametrize("text", ["", "[]", "\n\n"])
def test_an_empty_file_is_refused(folder, text):
    path = folder / "empty.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FoveateError, match=r"empty\.json holds no conversations"):
        read_conversations(path)


def test_a_missing_file_is_named(folder):
    with pytest.raises(FoveateError, match=r"absent\.jsonl cannot be read"):
        read_conversations(folder / "absent.jsonl")

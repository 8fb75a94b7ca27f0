"""A byte-order mark, as editors on Windows and some exports write it, changes nothing in any file that is read."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foveate.batch import Output, read_questions
from foveate.benchmark.results import earlier
from foveate.commands.info import _record
from foveate.core.plan import PLAN_FILE, Plan
from foveate.core.text_files import decoded, lines_of, read_json, read_text
from foveate.report.results import _document
from foveate.serving.protocol import parse
from foveate.training.dataset import read_conversations
from foveate.training.next_scale import read_recipe as read_next_scale
from foveate.training.recipe_file import read_recipe

ROOT = Path(__file__).parents[2]
MARKED: dict[str, Callable[[str], bytes]] = {
    "utf-8": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16-le": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16-be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-32-le": lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"),
    "utf-32-be": lambda text: codecs.BOM_UTF32_BE + text.encode("utf-32-be"),
}
TURNS = [{"from": "human", "value": "Größe?"}, {"from": "gpt", "value": "日本 🙂"}]
QUESTIONS = "".join(json.dumps({"question": text}, ensure_ascii=False) + "\r\n" for text in ("Wie groß?", "日本 🙂?"))


def _examples(path: Path) -> Any:
    return [example.conversations for example in read_conversations(path)]


#: What reads a file that people write or edit, the file's name, and its text.
READERS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "questions": (read_questions, "q.jsonl", QUESTIONS),
    "conversations in lines": (_examples, "a.jsonl", json.dumps({"conversations": TURNS}, ensure_ascii=False) + "\n"),
    "conversations in a list": (_examples, "a.json", json.dumps([{"conversations": TURNS}], ensure_ascii=False)),
    "recipe": (read_recipe, "r.yaml", (ROOT / "recipes/voco.yaml").read_text(encoding="utf-8")),
    "next-scale recipe": (read_next_scale, "n.json", json.dumps({"model": {}, "training": {"steps": 3}})),
    "plan": (lambda path: Plan.read(path.parent), PLAN_FILE, json.dumps({"plan": "divprune:25%"})),
    "results": (_document, "x.json", json.dumps({"kind": "speed", "rows": [{"plan": "ö"}]}, ensure_ascii=False)),
    "results to go on with": (
        lambda path: earlier(path, {"a": 1}, ("rows",)),
        "x.json",
        json.dumps({"settings": {"a": 1}, "rows": [1]}),
    ),
    "training record": (_record, "training.json", json.dumps({"a": "ö"}, ensure_ascii=False)),
}


@pytest.mark.parametrize("mark", MARKED)
@pytest.mark.parametrize("name", READERS)
def test_a_mark_changes_nothing(tmp_path: Path, name: str, mark: str) -> None:
    read, file, text = READERS[name]
    path = tmp_path / file
    path.write_bytes(text.encode())
    expected = read(path)
    path.write_bytes(MARKED[mark](text))
    assert expected and read(path) == expected


@pytest.mark.parametrize("mark", MARKED)
def test_text_and_json(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(MARKED[mark]('{"a":\r\n"ö\ufeff"}\r'))
    assert read_text(path) == '{"a":\n"ö\ufeff"}\n' and read_json(path) == {"a": "ö\ufeff"}
    assert decoded(MARKED[mark]("")) == ""


def test_files_put_together_from_marked_ones(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(2 * MARKED["utf-8"](QUESTIONS.partition("\r\n")[0] + "\n"))
    assert [one.question for one in read_questions(path)] == ["Wie groß?"] * 2
    path.write_bytes(2 * MARKED["utf-8"](READERS["conversations in lines"][2]))
    assert _examples(path) == [TURNS, TURNS]
    assert lines_of("a\u2028\n\ufeffb") == ["a\u2028", "b"]


def test_answers_that_an_editor_has_saved_are_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(QUESTIONS, encoding="utf-8")
    questions = read_questions(path)
    row = json.dumps({**questions[0].shown, "plan": None, "text": "1 m"}, ensure_ascii=False) + "\n"
    (tmp_path / "out.jsonl").write_bytes(MARKED["utf-8"](row))
    with Output(tmp_path / "out.jsonl", questions, resume=True) as output:
        assert output.done == {0}


@pytest.mark.parametrize("mark", MARKED)
def test_bodies_of_requests(mark: str) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Größe?"}]}, ensure_ascii=False)
    assert parse(MARKED[mark](body)) == parse(body.encode())


def test_no_reader_goes_past_the_helper() -> None:
    """Files of the package itself, of the system and of the report's own pages have no mark."""
    allowed = {"text_files.py", "questions.py", "words.py", "building.py", "html.py", "profiling.py"}
    allowed |= {"espeak_worker.py"}  # reads what its own parent process writes
    own = re.compile(r"\.read_text\(|json\.load\(|encoding=\"utf-8-sig\"")
    found = [path.name for path in (ROOT / "src").rglob("*.py") if own.search(path.read_text(encoding="utf-8"))]
    assert set(found) <= allowed

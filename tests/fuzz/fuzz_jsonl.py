"""Files of conversations to learn from and of questions to answer: what they hold, or one sentence."""

import json
import tempfile
from pathlib import Path

from PIL import Image

from foveate.batch import read_questions
from foveate.core.errors import FoveateError
from foveate.training.dataset import read_conversations
from tests.fuzz.targets import is_sentence
from tests.fuzz.traps import bad_data

_HELD = tempfile.TemporaryDirectory(prefix="foveate-fuzz-")
_FILE = Path(_HELD.name) / "data.jsonl"
Image.new("RGB", (8, 8)).save(_FILE.with_name("good.png"))

_TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
_ROW = {"id": "1", "image": "good.png", "conversations": _TURNS}
SEEDS = [
    *(text.encode("utf-8", "surrogatepass") for _, text in bad_data() if len(text) < 2**14),
    json.dumps(_ROW).encode() + b"\n" + json.dumps(_ROW).encode(),
    json.dumps([_ROW, _ROW], indent=1).encode(),
    json.dumps(
        {"image": "good.png", "question": "What?", "plan": "divprune:64", "max_new_tokens": 3, "id": "a"}
    ).encode(),
    json.dumps({"images": ["good.png"] * 2, "question": "a\u2028b"}, ensure_ascii=False).encode(),
]
WORDS = [
    b'"conversations":', b'"from":', b'"human"', b'"gpt"', b'"system"', b'"value":', b'"image":', b'"images":',
    b'"video":', b'"videos":', b"<video>",
    b'"question":',
    b'"plan":', b'"max_new_tokens":', b'"id":', b'"good.png"', b"<image>", b"\\ud800", b"\\u0000", b"\n", b"NaN",
    b"Infinity",
    b"1e999", b"[", b"]", b"{", b"}", b",", b"null", b"../", b"/dev/zero", b"\xe2\x80\xa8", b"\xef\xbb\xbf",
]  # fmt: skip


def check(data: bytes) -> None:
    """See the module."""
    _FILE.write_bytes(data)
    try:
        for example in read_conversations(_FILE):
            assert len(example.images) == sum(turn["value"].count("<image>") for turn in example.conversations)
            json.dumps(example.conversations, ensure_ascii=False).encode()
    except FoveateError as error:
        is_sentence(error)
    try:
        for example in read_conversations(_FILE, no_clips=None):
            assert len(example.clips) == sum(turn["value"].count("<video>") for turn in example.conversations)
    except FoveateError as error:
        is_sentence(error)
    try:
        for number, question in enumerate(read_questions(_FILE)):
            assert question.number == number and question.question.strip()
            json.dumps(question.shown, ensure_ascii=False).encode()
    except FoveateError as error:
        is_sentence(error)

"""The byte-level tokenizer."""

import pytest
from transformers import AutoTokenizer

from foveate.models.llava_uhd import byte_tokenizer

TEXTS = [
    "plain words, 1234.50 %",
    "  spaces  \t tabs\n\n and newlines \r\n",
    "Grüße, façade, 漢字かな, ไทย, العربية, हिन्दी",
    "emoji 👩‍👩‍👧 and flags 🇪🇺, combining e\u0301, zero width \u200b, BOM \ufeff",
    "".join(chr(code) for code in range(1, 0x250)),
    "\x00 is a byte as well",
    "don't clean up , this ! spacing 's ?",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_its_utf8_bytes_and_comes_back(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_special_tokens_follow_the_bytes():
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 260
    ids = tokenizer("<|im_start|>a<image><|im_end|><|endoftext|>")["input_ids"]
    assert ids == [257, 97, 259, 258, 256]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.image_token_id) == (256, 258, 259)


def test_pads_on_the_left():
    padded = byte_tokenizer()(["ab", "a"], padding=True)
    assert padded["input_ids"] == [[97, 98], [256, 97]]
    assert padded["attention_mask"] == [[1, 1], [0, 1]]


def test_saved_and_loaded_by_the_auto_class(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "é <image> 漢 <|im_end|>"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.padding_side == "left"
    assert loaded.image_token_id == 259

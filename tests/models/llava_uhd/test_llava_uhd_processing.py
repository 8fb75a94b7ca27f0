"""The processor: placeholders, images of any kind, chats."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, ProcessorMixin

from foveate.core.errors import FoveateError
from foveate.models.llava_uhd import LlavaUHDProcessor, byte_tokenizer
from foveate.models.llava_uhd.chat_template import CHAT_TEMPLATE

IMAGE = 259


def placeholders(inputs) -> list[int]:
    ids = inputs["input_ids"]
    return [list(row).count(IMAGE) for row in (ids.tolist() if isinstance(ids, torch.Tensor) else ids)]


# ---------------------------------------------------------------- placeholders


def test_one_placeholder_for_each_merged_token(processor, pictures):
    inputs = processor(images=pictures, text=["<image>" * 4], return_tensors="pt")
    assert inputs["grid_hws"].tolist() == [[8, 12], [8, 8], [12, 4], [12, 16]]
    assert inputs["pixel_values"].shape == (96 + 64 + 48 + 192, 3, 4, 4)
    assert placeholders(inputs) == [6 + 4 + 3 + 12]


def test_flat_and_grouped_images_are_the_same(processor, pictures):
    texts = ["<image> then <image>", "none", "<image>"]
    flat = processor(images=pictures[:3], text=texts, return_tensors="pt", padding=True)
    grouped = processor(images=[pictures[:2], [], pictures[2:3]], text=texts, return_tensors="pt", padding=True)
    assert flat.keys() == grouped.keys()
    assert all(torch.equal(flat[name], grouped[name]) for name in flat)
    assert placeholders(flat) == [10, 0, 3]


def test_lists_without_tensors(processor, pictures):
    inputs = processor(
        images=pictures[:1],
        text=[
            "<image>?",
        ],
        padding=True,
    )
    assert placeholders(inputs) == [6]


def test_counts_are_known_from_sizes_alone(processor, pictures):
    sizes = [[picture.height, picture.width] for picture in pictures] + [[500, 3], [1000, 2000]]
    images = [*pictures, Image.new("RGB", (3, 500)), Image.new("RGB", (2000, 1000))]
    for options in ({}, {"scale_resolution": 32}, {"upscale_factor": 2.0}, {"num_stages": 1}, {"num_stages": 0}):
        known = processor._get_num_multimodal_tokens(image_sizes=sizes, **options)
        inputs = processor(images=images, text="<image>" * len(images), return_tensors="pt", images_kwargs=options)
        assert known.num_image_patches == inputs["grid_hws"].prod(-1).tolist()
        assert sum(known.num_image_tokens) == placeholders(inputs)[0]
    assert processor._get_num_multimodal_tokens().num_image_tokens is None


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("no placeholder", 1, "the text has 0 <image> placeholders, but 1 images came with it"),
        ("<image><image>", 1, "the text has 2 <image> placeholders, but 1 images"),
        ("<image>", 0, "the text has 1 <image> placeholders, but 0 images"),
        (["<image>", "<image>"], 3, "the text has 2 <image> placeholders, but 3 images"),
    ],
)
def test_counts_that_differ(processor, pictures, text, count, message):
    with pytest.raises(FoveateError, match=message):
        processor(images=pictures[:count] or None, text=text)


def test_images_with_the_wrong_prompt(processor, pictures):
    with pytest.raises(FoveateError, match="prompt 1 has 2 <image> placeholders, but 1 images came with it"):
        processor(images=[pictures[:2], pictures[2:3]], text=["<image><image>", "<image><image>"])


def test_truncation_never_cuts_an_image(processor, pictures):
    own = LlavaUHDProcessor(processor.image_processor, byte_tokenizer())  # tokenizers save how they last truncated
    with pytest.raises(ValueError, match="[Mm]ismatch"):
        own(images=pictures[0], text="<image>?", truncation=True, max_length=4)


def test_nothing_to_process(processor):
    with pytest.raises(ValueError, match="at least one"):
        processor()


# ---------------------------------------------------------------- images


def test_images_of_any_kind(processor, pictures, tmp_path):
    picture = pictures[0]
    picture.save(tmp_path / "a.png")
    data = io.BytesIO()
    picture.save(data, "PNG")
    array = np.asarray(picture)
    kinds = [picture, tmp_path / "a.png", str(tmp_path / "a.png"), data.getvalue(), array, array.transpose(2, 0, 1)]
    expected = processor(images=picture, text="<image>", return_tensors="pt")["pixel_values"]
    for kind in kinds:
        assert torch.equal(processor(images=kind, text="<image>", return_tensors="pt")["pixel_values"], expected)
        assert torch.equal(processor(images=[[kind]], text="<image>", return_tensors="pt")["pixel_values"], expected)
    several = processor(images=np.stack([array, array]), text="<image><image>", return_tensors="pt")
    assert torch.equal(several["pixel_values"], expected.repeat(2, 1, 1, 1))
    grey = processor(images=array[..., 0], text="<image>", return_tensors="pt")
    assert grey["grid_hws"].tolist() == [[8, 12]]


def test_chat_in_the_format_of_openai(processor, pictures):
    data = io.BytesIO()
    pictures[0].save(data, "PNG")
    address = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    part = {"type": "image_url", "image_url": {"url": address}}
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": [part, text_part("?")]}], **options)
    ours = [{"role": "user", "content": [image_part(pictures[0]), text_part("?")]}]
    expected = processor.apply_chat_template(ours, **options)
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    for broken, message in (
        (address.replace("base64,", "base64,?"), "holds no base64"),
        ("data:image/png,abc", "not an image"),  # percent-encoded
        ("data:image/png;base64", "not a data URI"),
    ):
        with pytest.raises(FoveateError, match=message):
            processor(images=broken, text="<image>")


@pytest.mark.parametrize("wrap", [lambda chat: chat, lambda chat: [chat, chat]], ids=["one chat", "two chats"])
def test_chat_with_base64_as_processors_of_transformers_take_it(processor, pictures, tmp_path, wrap):
    pictures[0].save(tmp_path / "a.png")
    data = base64.encodebytes((tmp_path / "a.png").read_bytes()).decode()  # in lines, as mail has it
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}

    def read(**part):
        chat = [{"role": "user", "content": [{"type": "image", **part}, text_part("?")]}]
        inputs = processor.apply_chat_template(wrap(chat), **options)
        assert chat[0]["content"][0] == {"type": "image", **part}  # the caller's own
        return inputs

    expected = read(image=pictures[0])
    address = f"data:image/png;base64,{data}"
    for part in ({"base64": data}, {"base64": address}, {"image": data}, {"url": address}, {"image": address}):
        found = read(**part)
        assert all(torch.equal(found[name], expected[name]) for name in expected), part
    for broken, says in (("iVBOR!", "not the base64"), (data[:40], "truncated or damaged|not an image"), ("", "empty")):
        with pytest.raises(FoveateError, match=says):
            read(base64=broken)
    folder = tmp_path / "a" / "folder" / "of" / "pictures"  # letters and slashes, as in base64
    with pytest.raises(FoveateError, match="no image file at"):
        read(image=str(folder).replace("-", "").replace("_", ""))


def test_images_alone_and_text_alone(processor, pictures):
    alone = processor(images=pictures[0], return_tensors="pt")
    assert set(alone) == {"pixel_values", "grid_hws"}
    assert set(processor(text="words")) == {"input_ids", "attention_mask"}


def test_unreadable_images(processor, tmp_path):
    (tmp_path / "page.html").write_text("<html>not found</html>")
    with pytest.raises(FoveateError, match=r"page\.html.*web page"):
        processor(images=str(tmp_path / "page.html"), text="<image>")
    with pytest.raises(FoveateError, match="no image file"):
        processor(images=str(tmp_path / "missing.png"), text="<image>")


# ---------------------------------------------------------------- chats


def image_part(picture):
    return {"type": "image", "image": picture}


def text_part(text):
    return {"type": "text", "text": text}


def test_chat_of_several_turns_and_images(processor, pictures):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image_part(pictures[0]), text_part("What is it?")]},
        {"role": "assistant", "content": [text_part("A cat.")]},
        {"role": "user", "content": [text_part("And "), image_part(pictures[1]), image_part(pictures[2])]},
    ]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nAnd <image>\n<image><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    by_hand = processor(images=pictures[:3], text=prompt.removesuffix("<|im_start|>assistant\n"), return_tensors="pt")
    assert all(torch.equal(inputs[name], by_hand[name]) for name in by_hand)


def test_llava_strings_give_the_same_prompt_as_parts(processor, pictures):
    parts = [{"role": "user", "content": [image_part(pictures[0]), text_part("Why?")]}]
    strings = [{"role": "user", "content": "<image>\nWhy?"}]
    assert processor.apply_chat_template(parts) == processor.apply_chat_template(strings)
    assert processor.tokenizer.apply_chat_template(strings, tokenize=False) == processor.apply_chat_template(strings)


def test_chats_of_a_batch_with_and_without_images(processor, pictures):
    chats = [
        [{"role": "user", "content": [text_part("no image")]}],
        [{"role": "user", "content": [image_part(pictures[1]), text_part("?")]}],
    ]
    inputs = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
    )
    assert placeholders(inputs) == [0, 4]
    alone = processor.apply_chat_template(chats[0], tokenize=True, return_dict=True, return_tensors="pt")
    assert "pixel_values" not in alone


@pytest.mark.skipif(
    not hasattr(ProcessorMixin, "_adjust_assistant_masks_indices"),
    reason="this transformers release marks positions of the prompt before placeholders are expanded",
)
def test_answers_are_marked_for_training(processor, pictures):
    messages = [
        {"role": "user", "content": [image_part(pictures[0]), text_part("Which?")]},
        {"role": "assistant", "content": "This."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": [text_part("Yes.")]},
    ]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    marked = inputs["input_ids"][0][torch.as_tensor(inputs["assistant_masks"])[0].bool()]
    assert processor.decode(marked) == "This.<|im_end|>Yes.<|im_end|>"


def test_a_started_answer_is_continued(processor):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]
    prompt = processor.apply_chat_template(messages, continue_final_message=True)
    assert prompt.endswith("<|im_start|>assistant\nHel")


def test_content_that_cannot_be_read(processor):
    messages = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]
    with pytest.raises(Exception, match="'image' and 'text', got 'video'"):
        processor.apply_chat_template(messages)


# ---------------------------------------------------------------- saving, building


def test_saved_and_loaded(processor, pictures, tmp_path):
    processor.save_pretrained(tmp_path)
    for loaded in (LlavaUHDProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is LlavaUHDProcessor
        assert loaded.chat_template == CHAT_TEMPLATE
        assert loaded.image_token_id == IMAGE
        assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
        ours, theirs = (p(images=pictures, text="<image>" * 4, return_tensors="pt") for p in (processor, loaded))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert set(loaded.model_input_names) == {"input_ids", "attention_mask", "pixel_values", "grid_hws"}


def test_own_template_and_placeholder(processor, pictures, tmp_path):
    own = LlavaUHDProcessor(
        processor.image_processor,
        byte_tokenizer(),
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
        image_token="<picture>",
    )
    assert own.image_token_id == 260  # added to the tokenizer
    inputs = own(images=pictures[1], text="<picture>!", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[260] * 4 + [33]]
    own.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert (loaded.image_token, loaded.image_token_id) == ("<picture>", 260)
    assert loaded.apply_chat_template([{"role": "user", "content": "x"}]) == "x"

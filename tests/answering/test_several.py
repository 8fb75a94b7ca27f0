"""`ask` with several images, addresses, data URIs and system prompts: everything is read, or refused in a sentence."""

import base64
import copy
import io

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import foveate
from foveate import FoveateError
from foveate.answering import ask
from foveate.answering.conversations import inputs_of
from foveate.loading import load
from foveate.visualization.answer import draw_answer
from tests.picture_server import serving
from tests.tiny_model import noise, save_internvl


def png(width: int, height: int, seed: int = 0) -> bytes:
    data = io.BytesIO()
    noise(width, height, seed).save(data, "PNG")
    return data.getvalue()


def generated(pair, messages, tokens):
    """What `generate` writes after the messages."""
    model, processor = pair
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(messages, **options)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_several_images_are_read_in_their_order(pair):
    first, second = noise(64, 48, 1), noise(32, 64, 2)
    content = [
        {"type": "image", "image": first},
        {"type": "image", "image": second},
        {"type": "text", "text": "Which?"},
    ]
    expected = generated(pair, [{"role": "user", "content": content}], 12)
    answer = ask([first, second], "Which?", pair, max_new_tokens=12)
    assert answer.text == expected
    assert ask((first, second), "Which?", pair, max_new_tokens=12).text == expected
    assert answer.image_sizes == [(64, 48), (32, 64)] and answer.image_size is None and answer.processed_size is None
    assert [(stage.tokens, stage.grid) for stage in answer.stages] == [(320, None), (80, None), (20, None)]
    assert (answer.tokens.read, answer.tokens.unmerged) == (20, 320)
    swapped = inputs_of(*pair, [second, first], "Which?")
    assert swapped["grid_hws"].tolist() == [[16, 8], [12, 16]]


def test_one_image_in_a_list_is_that_image(pair):
    alone, listed = (ask(image, "?", pair, max_new_tokens=5) for image in (noise(32, 32), [noise(32, 32)]))
    assert alone.text == listed.text and alone.stages == listed.stages and listed.image_size == (32, 32)


def test_a_plan_reports_every_image(pair):
    answer = ask([noise(64, 48, 1), noise(32, 64, 2)], "?", pair, "divprune:50%", max_new_tokens=2)
    assert [(image["tokens_in"], image["tokens_kept"]) for image in answer.selection] == [(12, 6), (8, 4)]
    assert answer.tokens.read == 10 and answer.stages[-1].tokens == 10


def test_tiles_of_several_images(tmp_path):
    pair = load(save_internvl(tmp_path))
    answer = ask([noise(64, 32, 1), noise(32, 32, 2)], "?", pair, "random:50%", max_new_tokens=2)
    assert len(answer.selection) > 2 and {image["tokens_kept"] for image in answer.selection} == {8}


def test_a_system_prompt_comes_first(pair):
    image = noise(48, 48)
    user = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Which date?"}]}
    system = {"role": "system", "content": [{"type": "text", "text": "Answer in one word."}]}
    answer = ask(image, "Which date?", pair, max_new_tokens=12, system="Answer in one word.")
    assert answer.text == generated(pair, [system, user], 12)
    longer = answer.tokens.text - ask(image, "Which date?", pair, max_new_tokens=2).tokens.text
    turn = "<|im_start|>system\nAnswer in one word.<|im_end|>\n"
    assert longer == len(pair[1].tokenizer(turn).input_ids)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages if m.role == 'user' %}<image>{{ m.content[-1].text }}{% endfor %}",
            "leaves out messages",
        ),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('No system role.') }}{% endif %}",
            "refuses these messages: No system role",
        ),
        ("", "no chat template"),
    ],
)
def test_a_template_without_a_system_role(pair, monkeypatch, template, message):
    monkeypatch.setattr(pair[1], "chat_template", template)
    with pytest.raises(FoveateError, match=message):
        ask(noise(32, 32), "?", pair, max_new_tokens=2, system="Be brief.")


def test_a_template_that_leaves_out_images(pair, monkeypatch):
    monkeypatch.setattr(pair[1], "chat_template", "{% for m in messages %}<image>{{ m.content[-1].text }}{% endfor %}")
    with pytest.raises(FoveateError, match="leaves out images of the user"):
        ask([noise(32, 32), noise(32, 32, 1)], "?", pair, max_new_tokens=2)


def test_a_template_that_begins_with_bos_gives_one(llava):
    model, processor = llava[0], copy.deepcopy(llava[1])
    processor.tokenizer.bos_token = bos = "<|endoftext|>"
    adding = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, processor.tokenizer.bos_token_id)])
    processor.tokenizer.backend_tokenizer.post_processor = adding
    for template in (
        f"{bos}<image>{{{{ messages[0].content[-1].text }}}}",
        "<image>{{ messages[0].content[-1].text }}",
    ):
        processor.chat_template = template
        ids = inputs_of(model, processor, noise(32, 32), "hello")["input_ids"][0].tolist()
        assert ids.count(processor.tokenizer.bos_token_id) == 1


def test_addresses_and_data_uris(pair, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    data = png(40, 32)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    expected = ask(data, "?", pair, max_new_tokens=5).text
    with serving(data) as address:
        assert ask(f"{address}/a.png", "?", pair, max_new_tokens=5).text == expected
        assert ask([f"{address}/a.png", uri], "?", pair, max_new_tokens=2).image_sizes == [(40, 32)] * 2
        with pytest.raises(FoveateError, match="status 404"):
            ask([uri, f"{address}/none.png"], "?", pair)
    assert ask(uri, "?", pair, max_new_tokens=5).text == expected
    for source, message in [
        ("data:image/png;base64,@@@@", "holds no base64"),
        ("data:text/plain,hello", "not an image"),
        ("ftp://example.org/a.png", "is an address"),
    ]:
        with pytest.raises(FoveateError, match=message):
            ask([data, source], "?", pair)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": []}, "no image to ask about"),
        ({"image": [noise(32, 32), "missing.png"]}, "no image file at 'missing.png'"),
        ({"image": [noise(32, 32)] * 2, "keep_pooling": True}, "a figure shows one image"),
        ({"system": " "}, "system prompt is empty"),
        ({"system": 3}, "system prompt is empty"),
        ({"system": "a \ud800 b"}, "half of a character"),
        ({"dtype": "bfloat16", "revision": "main"}, "loaded already: give dtype, revision to foveate.load"),
    ],
)
def test_bad_input_is_named(pair, options, message):
    arguments = {"image": noise(32, 32), "question": "?", "model": pair} | options
    with pytest.raises(FoveateError, match=message):
        ask(**arguments)


def test_options_of_load_are_passed_on(tmp_path, pair):
    pair[0].save_pretrained(tmp_path)
    pair[1].save_pretrained(tmp_path)
    image = noise(32, 32)
    assert (
        foveate.ask(image, "?", tmp_path, max_new_tokens=2, dtype=torch.float64).text
        == ask(image, "?", load(tmp_path, dtype=torch.float64), max_new_tokens=2).text
    )
    with pytest.raises(FoveateError, match="is a folder"):
        ask(image, "?", tmp_path, revision="main")
    with pytest.raises(FoveateError, match="unexpected keyword argument 'nonsense'"):
        ask(image, "?", tmp_path, nonsense=1)


def test_a_figure_of_several_images_is_refused(pair):
    images = [noise(32, 32), noise(32, 32, 1)]
    with pytest.raises(FoveateError, match="a figure shows one image"):
        draw_answer(ask(images, "?", pair, max_new_tokens=2), images[0])

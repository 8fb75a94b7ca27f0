"""`ask` about a clip: models with video read its frames, others refuse it, and nothing is left out silently."""

import pytest
import torch
from transformers.video_utils import VideoMetadata

from foveate import FoveateError
from foveate.answering import ask
from foveate.clips import open_clip
from foveate.loading import load
from foveate.processors import NoClips
from tests.tiny_model import noise, save_qwen
from tests.video_files import save_clip

pytest.importorskip("av")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return load(save_qwen(tmp_path_factory.mktemp("qwen")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip") / "a.mkv", frames=8, fps=4)


def test_the_answer_is_what_generate_writes_about_its_frames(qwen, clip):
    model, processor = qwen
    frames = open_clip(clip)
    inputs = processor(
        text="user: [<video>]What happens?. ",
        videos=[frames.frames],
        video_metadata=[VideoMetadata(**frames.metadata)],
        do_sample_frames=False,
        return_tensors="pt",
    )
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    expected = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    answer = ask(clip, "What happens?", qwen, max_new_tokens=8)
    assert answer.text == expected
    # Four frames of 32 x 16 pixels: two tokens in time, each of 4 x 2 windows of 8 x 8 pixels.
    assert (answer.frames, answer.image_sizes, answer.image_size) == (4, [(32, 16)], None)
    assert (answer.tokens.read, answer.tokens.unmerged) == (16, 64)
    assert answer.tokens.text == len("user: []What happens?. ")


def test_a_plan_compresses_a_clip(qwen, clip):
    answer = ask(clip, "What happens?", qwen, "random:25%", max_new_tokens=2)
    (report,) = answer.selection
    assert report["modality"] == "video" and (report["tokens_in"], report["tokens_kept"]) == (16, 4)
    assert answer.tokens.read == 4


def test_images_of_that_model(qwen):
    answer = ask([noise(32, 16), noise(16, 32, 1)], "?", qwen, max_new_tokens=2)
    assert answer.frames is None and answer.tokens.read == 16


def test_what_cannot_be_done_is_one_sentence(qwen, pair, llava, clip, monkeypatch):
    for model in (pair, llava):
        with pytest.raises(FoveateError, match=r"take no clips here: give frames as images, or use a model with video"):
            ask(clip, "?", model)
    with pytest.raises(FoveateError, match="a clip is asked about alone"):
        ask([clip, noise(32, 32)], "?", qwen)
    with pytest.raises(FoveateError, match="a figure shows one image"):
        ask(clip, "?", qwen, keep_pooling=True)
    with pytest.raises(FoveateError, match="no video file at 'none.mp4'"):
        ask("none.mp4", "?", qwen)
    with monkeypatch.context() as patch:
        patch.setattr(qwen[1], "chat_template", "{% for m in messages %}{{ m.content[-1].text }}{% endfor %}")
        with pytest.raises(FoveateError, match="leaves out clips of the user"):
            ask(clip, "?", qwen)
    monkeypatch.setattr(qwen[1], "video_processor", NoClips({}))  # as it is loaded without torchvision
    with pytest.raises(FoveateError, match=r"clips need torchvision, .*pip install 'foveate\[video\]'"):
        ask(clip, "?", qwen)

"""`ask` about a clip: models with video read its frames, others refuse it, and nothing is left out silently."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
)
from transformers.video_utils import VideoMetadata

from foveate import FoveateError, compress
from foveate.answering import ask
from foveate.answering.conversations import inputs_of_batch, messages_of
from foveate.clips import VideoFile, clip_of_frames, open_clip
from foveate.loading import load
from foveate.methods.frames.uniform_frames import UniformFrames
from foveate.processors import NoClips
from foveate.visualization.answer import draw_answer
from tests.docs.hub import _template, _text, _tokenizer
from tests.families.zoo import glm4v
from tests.models.llava_video.small_llava_video import small_llava_video, small_processor
from tests.streaming.small_streams import clip as stream_clip
from tests.streaming.small_streams import small
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


def test_a_thumbnail_is_read_after_the_frames(qwen, clip):
    plan = "thumbnails(tiles=4, copies=2):4 + ts-llava(thumbnails=1):50%"
    answer = ask(clip, "What happens?", qwen, plan, max_new_tokens=2)
    (report,) = answer.selection
    # Six frames of 32 x 16 pixels, the last two of them the thumbnail: three of 8 tokens, of which its own all stay.
    assert answer.frames == 6 and answer.timestamps[3:] == answer.timestamps[3:4] * 3
    assert [(crop["tokens"], crop["kept"]) for crop in report["crops"]] == [(8, 2), (8, 2), (8, 8)]
    assert draw_answer(answer, clip).size[0] == 1600


def test_a_plan_chooses_frames(qwen, clip):
    """The answer is that about the frames that the sampler names, and the figure shows them."""
    plan = "uniform-frames:6 + random:25%"
    answer = ask(clip, "What happens?", qwen, plan, max_new_tokens=4)
    chosen = open_clip(clip, sampler=UniformFrames(), times=answer.timestamps)
    frames = [Image.fromarray(frame) for frame in chosen.frames]
    assert answer.plan == plan and answer.frames == 6 and answer.tokens.full == 24 and answer.tokens.read == 6
    assert answer.timestamps == pytest.approx([0, 0.25, 0.75, 1, 1.25, 1.75], abs=0.26)
    given = ask(frames=frames, timestamps=answer.timestamps, question="What happens?", model=qwen, plan="random:25%",
                max_new_tokens=4)  # fmt: skip
    assert (given.text, given.timestamps, given.tokens) == (answer.text, answer.timestamps, answer.tokens)
    only = ask(VideoFile(clip.read_bytes()), "What happens?", qwen, "scene", max_new_tokens=4)
    assert (only.plan, only.frames, only.selection) == ("scene", 1, [])
    sampled = ask(frames=frames, question="?", model=qwen, plan="uniform-frames:2", max_new_tokens=1)
    assert sampled.timestamps == [0.5, 2.0] and sampled.to_dict()["timestamps"] == [0.5, 2.0]
    strip = draw_answer(answer, clip)
    assert np.array_equal(np.asarray(strip), np.asarray(draw_answer(answer, chosen))) and strip.width == 1600
    with pytest.raises(FoveateError, match="about 6 frames, and this clip has 1"):
        draw_answer(answer, clip_of_frames([np.asarray(frames[0])]))


def test_a_single_frame_is_read_by_models_that_read_pairs():
    """Processors of Qwen3-VL refuse fewer frames than a temporal patch has: `scene` often chooses one."""
    pair, frames = small("qwen3-vl"), stream_clip(1)
    answer = ask(frames=frames, question="What?", model=pair, plan="scene + evs:50%", max_new_tokens=4)
    twice = ask(frames=[*frames, *frames], question="What?", model=pair, plan="evs:50%", max_new_tokens=4)
    assert answer.frames == 1 and (answer.tokens.full, answer.tokens.read) == (6, 3)
    one, two = (
        inputs_of_batch(*pair, [messages_of([clip_of_frames([*shown], times)], "What?")])
        for shown, times in ((frames, [0]), ([*frames, *frames], [0, 1e-3]))
    )
    assert all(torch.equal(one[name], two[name]) for name in one) and answer.text == twice.text


def test_a_clip_stays_as_it_was():
    """The processor of Qwen3-VL appends to the indices that it is given where their number is odd."""
    clip = clip_of_frames([*stream_clip(3)])
    ask(clip, "What?", small("qwen3-vl"), max_new_tokens=1)
    assert clip.metadata["frames_indices"] == [0, 1, 2] and clip.frames.shape[0] == len(clip.timestamps) == 3


def test_clips_that_a_processor_cannot_take_together():
    """Those of LLaVA-OneVision are stacked; in a file of questions each is then asked about alone."""
    pair = small("llava-onevision")
    asked = [messages_of([clip_of_frames([*stream_clip(count)])], "What?") for count in (2, 3)]
    with pytest.raises(FoveateError, match=r"not of 2 frames of 24 x 16, 3 frames of 24 x 16; ask about one at a time"):
        inputs_of_batch(*pair, asked)
    assert len(inputs_of_batch(*pair, asked[:1] * 2)["pixel_values_videos"]) == 2
    assert len(inputs_of_batch(*small("qwen2-vl"), asked)["video_grid_thw"]) == 2


def test_glm_reads_single_frames_and_no_images_next_to_clips():
    pair, frames = glm(), stream_clip(3)
    answer = ask(frames=frames[:1], question="What?", model=pair, max_new_tokens=1)
    assert (answer.frames, answer.timestamps) == (1, [0.0])
    clip, image = clip_of_frames([*frames]), Image.fromarray(frames[0])
    together = [messages_of([clip, image], "What?")]
    for asked in (together, [messages_of([clip], "What?"), messages_of([image], "What?")]):
        with pytest.raises(FoveateError, match="takes images or clips in one call; ask about one at a time"):
            inputs_of_batch(*pair, asked)


def glm() -> tuple[Any, Any]:
    """A small random GLM-4V with its processor."""
    names = {"image": "<|image|>", "video": "<|video|>", "image_start": "<|begin_of_image|>"}
    names |= {"image_end": "<|end_of_image|>", "video_start": "<|begin_of_video|>", "video_end": "<|end_of_video|>"}
    tokenizer = _tokenizer(names)
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    text = {**_text(tokenizer), "head_dim": 8, "rope_parameters": glm4v.ROPE}
    model = Glm4vForConditionalGeneration(Glm4vConfig(text_config=text, vision_config=glm4v.TOWER, **ids))
    sizes = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 16384}}
    start, end = "<|begin_of_{}|><|{}|>", "<|end_of_{}|>"
    template = _template(*(start.format(kind, kind) + end.format(kind) for kind in ("image", "video")))
    processor = Glm4vProcessor(
        Glm4vImageProcessor(**sizes), tokenizer, Glm4vVideoProcessor(**sizes), chat_template=template
    )
    return model.eval(), processor


def test_a_model_for_clips_without_a_chat_template():
    pair = small_llava_video(), small_processor()
    frames = [np.full((56, 56, 3), 40 * number, np.uint8) for number in range(4)]
    times = [1000.0 + 0.37 * number for number in range(4)]
    clip = clip_of_frames(frames, times)
    answer = ask(clip, "What?", pair, "evs:50%", max_new_tokens=1)
    assert answer.tokens.read == answer.tokens.full // 2
    other = small_processor("temporal_pvc", scale=4)
    with pytest.raises(FoveateError, match="needs rows and columns that are multiples of 4"):
        inputs_of_batch(pair[0], other, [messages_of([clip, clip_of_frames(frames[:3])], "What?")])
    half = inputs_of_batch(copy.deepcopy(pair[0]).bfloat16(), pair[1], [messages_of([clip], "What?")])
    assert half["video_timestamps"][0].tolist() == pytest.approx(clip.timestamps)


def test_times_keep_their_precision_in_half_precision():
    """Positions of Qwen2.5-VL are products of seconds, which bfloat16 rounds to 8 bits."""
    model, processor = small("qwen2.5-vl")
    conversation = messages_of([clip_of_frames([*stream_clip(12)], [37.3 * number for number in range(12)])], "What?")
    half = inputs_of_batch(copy.deepcopy(model).bfloat16(), processor, [conversation])
    full = inputs_of_batch(model, processor, [conversation])
    assert half["pixel_values_videos"].dtype == torch.bfloat16
    assert torch.equal(half["second_per_grid_ts"], full["second_per_grid_ts"])


def test_images_of_that_model(qwen):
    answer = ask([noise(32, 16), noise(16, 32, 1)], "?", qwen, max_new_tokens=2)
    assert answer.frames is None and answer.tokens.read == 16


def test_what_cannot_be_done_is_one_sentence(qwen, pair, llava, clip, monkeypatch):
    for model in (pair, llava):
        with pytest.raises(FoveateError, match=r"take no clips here: give frames as images, or use a model with video"):
            ask(clip, "?", model)
    with pytest.raises(FoveateError, match="a clip is asked about alone"):
        ask([clip, noise(32, 32)], "?", qwen)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"image": noise(8, 8), "plan": "scene:4"}, "scene:4 chooses frames of a clip, and these are images"),
        (
            {"image": open_clip(clip), "plan": "scene:4 + pool:4"},
            "frames of this clip are chosen already; leave",
        ),
        ({"image": clip, "frames": [noise(8, 8)]}, "give an image or a clip, or frames"),
        ({"timestamps": [1.0]}, "timestamps are those of frames"),
        ({"frames": str(clip)}, "frames are a list of images; give the path of a video file as the image"),
        ({"frames": []}, "there are no frames to ask about"),
        ({"frames": 3}, "frames are a list of images, not int"),
        ({"frames": [noise(8, 8)], "timestamps": ["now"]}, "1 ascending numbers of seconds"),
        ({"frames": [noise(8, 8), noise(8, 16)]}, "frames of a clip have one size"),
        ({"frames": [noise(8, 8)] * 2, "timestamps": [1.0]}, "2 ascending numbers of seconds"),
        ({}, "there is no image to ask about"),
        ({"image": clip, "plan": "query-frames(encoder=nowhere):2"}, "the encoder 'nowhere' cannot be loaded"),
    ]
    for wrong, message in cases:
        with pytest.raises(FoveateError, match=message):
            ask(**wrong, question="?", model=qwen)
    with compress(qwen[0], "pool:4"), pytest.raises(FoveateError, match="'pool:4' is attached to this model already"):
        ask(clip, "?", qwen, "scene:4")
    with pytest.raises(FoveateError, match="no video file at 'none.mp4'"):
        ask("none.mp4", "?", qwen)
    with monkeypatch.context() as patch:
        patch.setattr(qwen[1], "chat_template", "{% for m in messages %}{{ m.content[-1].text }}{% endfor %}")
        with pytest.raises(FoveateError, match="leaves out clips of the user"):
            ask(clip, "?", qwen)
    monkeypatch.setattr(qwen[1], "video_processor", NoClips({}))  # as it is loaded without torchvision
    with pytest.raises(FoveateError, match=r"clips need torchvision, .*pip install 'foveate\[video\]'"):
        ask(clip, "?", qwen)

"""LLaVA for clips: images and clips, plans, clips with their own numbers of tokens, and bad input."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel, StaticCache

import foveate
from foveate import compat
from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.llava_video import FoveateLlavaVideoConfig
from foveate.models.llava_video.placeholders import kept_columns, kept_placeholders
from foveate.models.llava_video.processing import pair
from foveate.models.video_connectors import (
    ClipShape,
    all_video_connectors,
    register_video_connector,
    unregister_video_connector,
)
from foveate.models.video_connectors.average import Average
from tests.models.llava.small_llava import pictures
from tests.models.llava_video.small_llava_video import (
    VIDEO_ID,
    clips,
    open_gates,
    small_batch,
    small_config,
    small_llava_video,
    small_processor,
)
from tests.models.video_connectors.small_options import options_of


class Brightest(Average):
    """Average pooling that keeps only tokens whose first value is positive, and at least one."""

    name = "brightest"

    @property
    def static_count(self) -> bool:
        return False

    def connect(self, features: Tensor, grid: Grid, shape: ClipShape, timestamps, text) -> Tensor:
        tokens = super().connect(features, grid, shape, timestamps, text)
        kept = tokens[:, 0] > 0
        return tokens[kept] if bool(kept.any()) else tokens[:1]


@pytest.fixture
def brightest():
    register_video_connector(Brightest)
    yield small_llava_video("brightest"), small_processor("brightest")
    unregister_video_connector("brightest")


@pytest.mark.parametrize("name", sorted(all_video_connectors()))
def test_every_model_inside_has_the_attention_that_is_asked_for(name, tmp_path):
    small_llava_video(name).save_pretrained(tmp_path)
    for attention in ("eager", "sdpa"):
        model = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation=attention)
        others = {
            place: part.config._attn_implementation
            for place, part in model.named_modules()
            if isinstance(part, PreTrainedModel) and part.config._attn_implementation != attention
        }
        assert not others


def test_an_image_is_a_clip_of_one_frame():
    model = small_llava_video()
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        images = model.get_image_features(pixels).pooler_output
        frames = model.get_video_features(pixels[:, None]).pooler_output
    assert all(torch.equal(image, frame) for image, frame in zip(images, frames, strict=True))


def test_frames_that_are_padding_are_not_read():
    model = small_llava_video(frames_per_token=2)
    pixels = torch.randn(2, 5, 3, 48, 48)
    counts = torch.tensor([3, 5])
    with torch.no_grad():
        tokens = model.get_video_features(pixels, frame_counts=counts).pooler_output
        pixels[0, 3:] = 100
        again = model.get_video_features(pixels, frame_counts=counts).pooler_output
    assert [len(clip) for clip in tokens] == [18, 27] and torch.equal(tokens[0], again[0])


def test_plans_act_after_the_connector():
    model, processor = small_llava_video(), small_processor()
    batch = small_batch(processor)
    with torch.no_grad():
        full = model(**batch).logits
        with foveate.compress(model, "divprune:100%"):
            assert torch.equal(model(**batch).logits, full)
        with foveate.compress(model, "divprune:25%") as handle:
            answer = model.generate(**batch, max_new_tokens=3, do_sample=False)
            report = handle.report()
    assert sorted((image.modality, image.tokens_in, image.tokens_kept) for image in report.images) == [
        ("image", 9, 2),
        ("video", 27, 7),
        ("video", 36, 9),
        ("video", 36, 9),
    ]
    assert answer.shape[1] == batch["input_ids"].shape[1] + 3
    with torch.no_grad(), foveate.compress(model, "evs:50%") as handle:
        model(**batch)
        layouts = [image.layout for image in handle.report().images if image.modality == "video"]
    assert [layout.timestamps.tolist() for layout in layouts] == [[0, 0.5, 1, 1.5], [0, 0.5, 1], [0, 0.5, 1, 1.5]]
    for plan, message in (
        ("tome:4", "merges inside the encoder"),
        ("fastervlm:4", "acts on or measures the encoder"),
        ("nested:4", "needs a model with a connector of foveate"),
    ):
        with pytest.raises(FoveateError, match=message), foveate.compress(model, plan):
            pass


def test_clips_with_their_own_number_of_tokens_shorten_the_sequence(brightest, monkeypatch):
    model, processor = brightest
    batch = small_batch(processor)
    lengths = []
    original = model.model.language_model.forward

    def counting(*args, **kwargs):
        lengths.append(kwargs["inputs_embeds"].shape[1])
        return original(*args, **kwargs)

    monkeypatch.setattr(model.model.language_model, "forward", counting)
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, use_cache=False)
    counts = [len(clip) for clip in model.get_video_features(
        batch["pixel_values_videos"], batch["frame_counts"]).pooler_output]  # fmt: skip
    text = ((batch["input_ids"] != VIDEO_ID) & batch["attention_mask"].bool()).sum(-1)
    image = len(model.get_image_features(batch["pixel_values"]).pooler_output[0])
    assert lengths == [max(int(text[0]) - 9 + image + counts[0] + counts[1], int(text[1]) + counts[2])]
    assert output.logits.shape[1] == batch["input_ids"].shape[1]
    assert output.hidden_states[0].shape == output.hidden_states[-1].shape
    # The same prompts with exactly as many placeholders give the same logits where something was read.
    single = processor(videos=clips(4), text="a <video>?", return_tensors="pt")
    tokens = model.get_video_features(single["pixel_values_videos"]).pooler_output
    ids = single["input_ids"][0]
    first = int((ids == VIDEO_ID).nonzero()[0])
    exact = torch.cat([ids[:first], torch.full((len(tokens[0]),), VIDEO_ID), ids[first:][ids[first:] != VIDEO_ID]])
    with torch.no_grad():
        ours = model(**single, use_cache=False).logits[0]
        theirs = model(input_ids=exact[None], pixel_values_videos=single["pixel_values_videos"]).logits[0]
    removed = len(ids) - len(exact)
    assert removed > 0 and bool((ours[first : first + removed] == 0).all())
    torch.testing.assert_close(torch.cat([ours[:first], ours[first + removed :]]), theirs, atol=1e-5, rtol=1e-5)


def test_beams_and_dictionaries_of_shortened_prompts(brightest):
    model, processor = brightest
    batch = small_batch(processor)
    options = {"max_new_tokens": 3, "num_beams": 2, "num_return_sequences": 2, "do_sample": False}
    together = model.generate(**batch, **options, return_dict_in_generate=True).sequences
    assert torch.equal(together[:, : batch["input_ids"].shape[1]], batch["input_ids"].repeat_interleave(2, 0))
    alone = processor(videos=clips(4, 3, 4)[2:], text="<video>?", return_tensors="pt")
    single = model.generate(**alone, **options)
    assert torch.equal(single[:, alone["input_ids"].shape[1] :], together[2:, batch["input_ids"].shape[1] :])


def test_shortened_prompts_have_no_cache_of_the_caller_and_no_plan(brightest):
    model, processor = brightest
    batch = small_batch(processor)
    with pytest.raises(FoveateError, match="use_cache=False, or generate"):
        model(**batch, use_cache=True)
    with pytest.raises(FoveateError, match="leave out position_ids"):
        model(**batch, position_ids=batch["attention_mask"].cumsum(-1))
    with pytest.raises(FoveateError, match="own number of tokens"), foveate.compress(model, "divprune:25%"):
        pass


def test_limits_count_with_the_prompt_as_it_was_given(brightest):
    model, processor = brightest
    batch = processor(videos=clips(4), text="a <video>?", return_tensors="pt")
    length = batch["input_ids"].shape[1]
    model.generation_config.eos_token_id = None
    for options in ({"max_length": length + 3}, {"generation_config": GenerationConfig(max_length=length + 3)}):
        assert model.generate(**batch, **options, do_sample=False).shape[1] == length + 3
    assert model.generate(**batch, max_new_tokens=2, do_sample=False).shape[1] == length + 2
    embeds = {name: value for name, value in batch.items() if name != "input_ids"}
    embeds["inputs_embeds"] = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(FoveateError, match="generate from input_ids"):
        model.generate(**embeds, max_new_tokens=2)


READERS = ("slow_fast", "crosslmm")


def reading(name: str) -> tuple[Any, Any]:
    """A model whose decoder layers read clips, and its processor."""
    return open_gates(small_llava_video(name, **options_of(name))), small_processor(name, **options_of(name))


@pytest.mark.parametrize("name", READERS)
def test_a_cache_that_was_emptied_holds_no_clip(name):
    model, processor = reading(name)
    clip = processor(videos=clips(4), text="<video>?", return_tensors="pt")
    words = processor(text="plain text", return_tensors="pt")
    with torch.no_grad():
        expected = model(**words, use_cache=False).logits
        cache = StaticCache(config=model.config.text_config, max_cache_len=64)
        model(**clip, use_cache=True, **compat.cache_argument(cache))
        copied = copy.deepcopy(cache)
        cache.reset()
        for _ in range(2):
            again = model(**words, use_cache=True, **compat.cache_argument(cache)).logits
            torch.testing.assert_close(again, expected, atol=1e-5, rtol=1e-4)
            cache.reset()
        # The copy still holds the clip, for text that follows.
        more = {"input_ids": torch.tensor([[65, 66]]), "use_cache": True}
        followed = model(**more, **compat.cache_argument(copied)).logits
        ids = torch.cat([clip["input_ids"], more["input_ids"]], dim=1)
        whole = model(**{**clip, "input_ids": ids, "attention_mask": torch.ones_like(ids)}, use_cache=False).logits
    torch.testing.assert_close(followed, whole[:, -2:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", READERS)
def test_adapters_on_projections_that_are_hooked_act_as_when_they_are_merged(name):
    model, processor = reading(name)
    batch = small_batch(processor)
    torch.manual_seed(0)
    adapters = LoraConfig(r=2, target_modules=r".*language_model.*\.[qo]_proj", init_lora_weights=False)
    adapted = get_peft_model(model, adapters).eval()
    with torch.no_grad():
        before = adapted(**batch).logits
        after = adapted.merge_and_unload()(**batch).logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)


def test_a_call_that_fails_leaves_no_hook(monkeypatch):
    model, processor = reading("slow_fast")
    batch = small_batch(processor)
    attention = model.model.language_model.layers[0].self_attn
    with torch.no_grad():
        expected = model(**batch).logits
        with monkeypatch.context() as patch:
            patch.setattr(attention.k_proj, "forward", lambda x: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(**batch)
        assert not attention.o_proj._forward_pre_hooks and not attention.q_proj._forward_hooks
        assert torch.equal(model(**batch).logits, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"image_mean": [0.0, 0.0, 0.0]},
        {"rescale_factor": 0.5},
        {"resample": 0},
        {"images_kwargs": {"do_normalize": False}},
    ],
)
def test_options_of_images_act_on_clips(options):
    processor, picture = small_processor(), pictures()[0]
    plain, changed = (
        processor(images=[picture], videos=[[picture]], text="<image><video>", return_tensors="pt", **some)
        for some in ({}, options)
    )
    for batch in (plain, changed):
        assert torch.equal(batch["pixel_values_videos"][0], batch["pixel_values"])
    assert not torch.equal(plain["pixel_values"], changed["pixel_values"])
    arrays = processor(videos=[[picture]], text="<video>", return_tensors="np", **options)
    assert type(arrays["pixel_values_videos"]) is type(arrays["input_ids"])


def test_the_last_placeholders_of_every_clip_stay():
    places = torch.tensor([[0, 1, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 1, 0]]).bool()
    stays = kept_placeholders(places, [3, 2, 4], [1, 2, 3], "video")
    assert stays.int().tolist() == [[1, 0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1, 1]]
    mask = torch.tensor([[1] * 7, [0, *[1] * 6]])
    kept = kept_columns(stays, mask)
    assert kept.columns.tolist() == [[0, 3, 4, 5, 6], [1, 3, 4, 5, 6]] and bool(kept.mask.all())
    values = torch.randn(2, 7, 3)
    assert torch.equal(kept.scatter(kept.gather(values), 7), values * (stays & mask.bool())[..., None])
    assert bool(kept_placeholders(places, [3, 2, 4], [3, 2, 4], "video").all())
    with pytest.raises(FoveateError, match="9 video placeholders, and the video inputs need 8"):
        kept_placeholders(places, [3, 2, 3], [1, 2, 3], "video")


def test_bad_input_ends_in_one_sentence():
    model, processor = small_llava_video(), small_processor()
    clip = clips(4)[0]
    for arguments, message in (
        ({"videos": [clip], "text": "<video> <video>"}, "2 placeholders of clips, and there are 1 clips"),
        ({"videos": [clip], "text": "<video>", "video_timestamps": [[0.0]]}, r"one number for every frame, \[4\]"),
        ({"videos": [clip[..., :1]], "text": "<video>"}, "clip 0 must be"),
        ({"videos": [[]], "text": "<video>"}, "clip 0 must be"),
        ({"videos": "clip.mp4", "text": "<video>"}, "clip 0 must be its frames, and 'clip.mp4' is a path"),
        ({"videos": ["clip.mp4"], "text": "<video>"}, "clip 0 must be its frames, and 'clip.mp4' is a path"),
    ):
        with pytest.raises(FoveateError, match=message):
            processor(**arguments, return_tensors="pt")
    batch = processor(videos=[clip], text="<video>", return_tensors="pt")
    pixels = batch["pixel_values_videos"]
    for arguments, message in (
        ({"pixel_values_videos": pixels[0]}, "must be .clips, frames"),
        ({"pixel_values_videos": pixels, "frame_counts": torch.tensor([5])}, "a number from 1 to 4"),
        ({"pixel_values_videos": pixels, "video_timestamps": torch.zeros(1, 3)}, "one for every frame"),
        ({"pixel_values_videos": pixels, "vision_feature_layer": 7}, "hidden states 0 to 4, and 7 was chosen"),
    ):
        with pytest.raises(FoveateError, match=message):
            model.get_video_features(**arguments)
    with pytest.raises(FoveateError, match="36 video placeholders, and the video inputs need 27"):
        model(input_ids=batch["input_ids"], pixel_values_videos=pixels[:, :3])
    encoded = model.model.encode(batch)
    for arguments, message in (
        ({"mm_encoder_outputs": encoded}, "as pixel_values_videos or as mm_encoder_outputs, not both"),
        ({"inputs_embeds": model.get_input_embeddings()(batch["input_ids"])}, "exactly one of input_ids and"),
    ):
        with pytest.raises(FoveateError, match=message):
            model(**batch, **arguments)
    with pytest.raises(FoveateError, match="no option spokes"):
        small_config(spokes=1)
    with pytest.raises(FoveateError, match="different placeholders"):
        FoveateLlavaVideoConfig(**small_config().to_dict() | {"video_token_id": 259})
    with pytest.raises(FoveateError, match="instruction_config is of one of clip_text_model"):
        FoveateLlavaVideoConfig(**small_config().to_dict() | {"instruction_config": {"model_type": "bert"}})


def test_pair():
    model, processor = small_llava_video(), small_processor()
    model.config.video_token_id = 3
    pair(model, processor)
    assert model.config.video_token_id == VIDEO_ID
    with pytest.raises(FoveateError, match="connector average with .*scale=3"):
        pair(model, small_processor(scale=3))
    assert replace(processor.connector.options, scale=3).scale == 3

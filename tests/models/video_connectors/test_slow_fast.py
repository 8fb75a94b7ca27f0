"""Slow-Fast: the authors' decoder layer and pooling, the model before training, and what the memory reaches."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.video_connectors import ClipShape, build_video_connector, video_connector_of_sizes
from foveate.models.video_connectors.slow_fast import SlowFast, SlowFastReader
from foveate.models.visual_memory import VisualMemory, insert
from tests.models.llava_video.small_llava_video import small_batch, small_llava_video, small_processor
from tests.models.video_connectors import released_slow_fast as released
from tests.models.video_connectors.small_options import options_of

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "slow_fast.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", released.TYPES)
def test_a_decoder_layer_equals_that_of_the_authors(case):
    model = Qwen2Model(Qwen2Config(**released.CONFIG)).eval()
    layer, reader = model.layers[0], SlowFastReader(model.config)
    insert(model, torch.nn.ModuleDict({"0": reader}))
    own, theirs = {}, {}
    for name, weight in released.weights({k: torch.Size(v) for k, v in GOLDEN["shapes"].items()}).items():
        rest = name.removeprefix("self_attn.")
        found = [rest.replace(one, ours) for one, ours in SlowFast.released_reader_keys.items() if rest.startswith(one)]
        (own if found else theirs)[found[0] if found else name] = weight
    reader.load_state_dict(own)
    layer.load_state_dict(theirs)
    types, counts = (torch.tensor(values) for values in released.TYPES[case])
    mask = torch.arange(released.SLOW) < counts[:, None]
    memory = VisualMemory(released.slow(case), mask, types <= 2, types == 3)
    with torch.no_grad():
        output = layer(
            released.hidden(case),
            attention_mask=released.causal(case),
            position_embeddings=released.rotation(),
            visual_memory=memory,
        )
    output = output[0] if isinstance(output, tuple) else output
    torch.testing.assert_close(output[types != 4], torch.tensor(GOLDEN["layers"][case]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("place", range(len(released.POOLED)))
def test_fast_tokens_equal_those_of_the_authors(place):
    frames, side, sampling, temporal, spatial, least = released.POOLED[place]
    options = {"clip_pooling": 1, "sampling_stride": sampling, "temporal_stride": temporal, "spatial_stride": spatial}
    connector = build_video_connector("slow_fast", 3, 3, least_frames=least, **options)
    connector.projector = torch.nn.Identity()
    clip = released.clip(frames, side)
    fast, slow = connector.encode(clip, Grid(side, side))
    torch.testing.assert_close(fast, torch.tensor(GOLDEN["pooled"][place]), atol=1e-5, rtol=1e-5)
    assert torch.equal(slow, clip.flatten(0, 1)) and len(fast) == connector.output_shape(frames, Grid(side, side)).size


@pytest.fixture
def trained():
    """A model whose gates are open."""
    model = small_llava_video("slow_fast", **options_of("slow_fast"))
    for reader in model.model.memory_readers.values():
        torch.nn.init.constant_(reader.gate, 1.0)
    return model, small_batch(small_processor("slow_fast", **options_of("slow_fast")))


def test_a_new_model_is_its_language_model_alone(trained):
    model, batch = trained
    with torch.no_grad():
        read = model(**batch).logits
        for reader in model.model.memory_readers.values():
            torch.nn.init.zeros_(reader.gate)
        new = model(**batch).logits
        for reader in model.model.memory_readers.values():
            torch.nn.init.normal_(reader.kv_proj.weight)
        assert torch.equal(model(**batch).logits, new)
    assert not torch.allclose(read, new, atol=1e-3)
    fresh = small_llava_video("slow_fast", **options_of("slow_fast"))
    assert all(float(reader.gate.detach()) == 0 for reader in fresh.model.memory_readers.values())


def test_visual_rows_and_prompts_without_clips_read_nothing(trained):
    model, batch = trained
    visual = batch["input_ids"] >= 259
    calls = []
    model.model.memory_readers["0"].register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    with torch.no_grad():
        model(**batch)
        before, after = calls[0]
        assert torch.equal(before[visual], after[visual])
        text = ~visual & batch["attention_mask"].bool()
        assert bool((before[text] != after[text]).any(-1).all())
        words = torch.tensor([[1, 2, 3, 4]])
        assert torch.isfinite(model(input_ids=words).logits).all() and len(calls) == 1


def test_the_order_of_slow_tokens_changes_nothing(trained):
    model, batch = trained
    with torch.no_grad():
        encoded = model.model.encode(batch)
        rest = {key: value for key, value in batch.items() if not key.startswith(("pixel", "frame", "video"))}
        first = model(**rest, mm_encoder_outputs=dict(encoded)).logits
        memories = encoded["video"].deepstack_features[0]
        encoded["video"].deepstack_features = [[memory.flip(0) for memory in memories]]
        torch.testing.assert_close(model(**rest, mm_encoder_outputs=encoded).logits, first, atol=1e-5, rtol=1e-4)


def test_text_that_is_written_reads_slow_tokens_with_beams_too(trained):
    model, batch = trained
    options = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False}
    cached = model.generate(**batch, **options)
    assert torch.equal(cached, model.generate(**batch, **options, use_cache=False))


def test_the_paper_has_a_reader_in_every_eighth_layer():
    connector = video_connector_of_sizes("slow_fast")
    assert connector.decoder_layers(28) == (0, 8, 16, 24)
    assert connector.output_shape(64, Grid(18, 18)) == ClipShape(16, 9, 9)
    assert video_connector_of_sizes("slow_fast", {"temporal_stride": 6}).output_shape(96, Grid(18, 18)).frames == 16
    assert video_connector_of_sizes("slow_fast", {"first": 4, "last": 13}).decoder_layers(28) == (4, 12)


def test_released_options():
    config = {
        "cross_attn_gating_type": "whole-dynamic-tanh-warmup",
        "cross_attn_implementation": "text-only-vanilla-flashattn",
        "cross_attn_every_n_layers": 8,
        "mm_video_pooling_stride": 2,
        "fast_token_temporal_stride": 4,
        "min_fast_frames": None,
    }
    options = SlowFast.released_options(config)
    assert (
        video_connector_of_sizes("slow_fast", options).options
        == video_connector_of_sizes("slow_fast", {"least_frames": 1}).options
    )
    with pytest.raises(FoveateError, match="cross_attn_gating_type whole-dynamic-tanh-warmup"):
        SlowFast.released_options(config | {"cross_attn_gating_type": "channel-wise"})


def test_bad_options():
    for options, message in (
        ({"every": 0}, "every must be a whole number from 1 on"),
        ({"first": -1}, "first must be a whole number from 0 on"),
        ({"first": 4, "last": 4}, "last must be a whole number from 5 on"),
    ):
        with pytest.raises(FoveateError, match=message):
            build_video_connector("slow_fast", 8, 6, **options)
    with pytest.raises(FoveateError, match="averages squares of 2 x 2 patches, and these frames have 1 x 6"):
        video_connector_of_sizes("slow_fast").output_shape(2, Grid(1, 6))

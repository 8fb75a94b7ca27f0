"""PVC's encoder: a loop over places and frames, causality, equal frames, and the vision transformer it is made of."""

from __future__ import annotations

import pytest
import torch
from transformers import InternVLVisionConfig, InternVLVisionModel, SiglipVisionConfig, SiglipVisionModel

from foveate.core.errors import FoveateError
from foveate.models.encoders.temporal_pvc import TemporalPVCConfig, with_temporal_blocks
from foveate.models.encoders.temporal_pvc.timesteps import relative_times
from tests.models.encoders.small_encoders import SIDE, images, small_encoder


def test_temporal_attention_equals_a_loop_over_places_and_frames():
    attention = small_encoder("temporal_pvc").blocks[-1].temporal_attention
    x, counts = torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(0)), [2, 3]
    with torch.no_grad():
        mixed = attention(x, counts)
        for clip, start in ((0, 0), (1, 2)):
            for frame in range(counts[clip]):
                for place in range(7):
                    earlier = x[start : start + frame + 1, place]
                    heads = []
                    for head in range(2):
                        part = slice(12 * head, 12 * (head + 1))
                        query = attention.q_proj(x[start + frame, place])[part]
                        share = (attention.k_proj(earlier)[:, part] @ query / 12**0.5).softmax(0)
                        heads.append(share @ attention.v_proj(earlier)[:, part])
                    expected = attention.out_proj(torch.cat(heads))
                    torch.testing.assert_close(mixed[start + frame, place], expected, atol=1e-5, rtol=1e-4)


def test_a_frame_changes_no_earlier_frame_and_no_other_clip():
    model, pixels = small_encoder("temporal_pvc"), images(6)
    changed = pixels.clone()
    changed[2] += 1
    with torch.no_grad():
        before, after = (model(x, frame_counts=[4, 2]).last_hidden_state for x in (pixels, changed))
    same = [torch.equal(first, second) for first, second in zip(before, after, strict=True)]
    assert same == [True, True, False, False, True, True]


def test_equal_frames_differ_by_their_time_alone():
    model = small_encoder("temporal_pvc")
    still = images(1).expand(4, -1, -1, -1)
    with torch.no_grad():
        frames = model(still, frame_counts=[4]).last_hidden_state
        assert not torch.allclose(frames[0], frames[1], atol=1e-3)
        for block in model.blocks[1:]:
            block.temporal_attention.out_proj.weight.zero_()
            block.temporal_attention.out_proj.bias.zero_()
        model.timesteps.fc2.weight.zero_()
        frames = model(still, frame_counts=[4]).last_hidden_state
    torch.testing.assert_close(frames, frames[:1].expand(4, -1, -1))


def test_times_are_relative_to_the_clip():
    seconds = torch.tensor([10.0, 11.0, 14.0, 3.0, 7.0, 9.0])
    assert relative_times([3, 2, 1], seconds, torch.device("cpu")).tolist() == [0.0, 0.25, 1.0, 0.0, 1.0, 0.0]
    assert relative_times([3, 1], None, torch.device("cpu")).tolist() == [0.0, 0.5, 1.0, 0.0]
    model, pixels = small_encoder("temporal_pvc"), images(3)
    with torch.no_grad():
        even = model(pixels, frame_counts=[3], timestamps=torch.tensor([5.0, 6.0, 7.0])).last_hidden_state
        assert torch.equal(even, model(pixels, frame_counts=[3]).last_hidden_state)
        other = model(pixels, frame_counts=[3], timestamps=torch.tensor([5.0, 5.2, 7.0])).last_hidden_state
    assert torch.equal(other[0], even[0]) and not torch.allclose(other[1], even[1], atol=1e-4)


def test_a_new_encoder_is_the_vision_transformer_that_it_is_made_of():
    torch.manual_seed(0)
    tower = InternVLVisionModel(
        InternVLVisionConfig(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=40,
            image_size=[SIDE, SIDE],
            patch_size=[8, 8],
            attention_bias=True,
            initializer_range=0.2,
            layer_scale_init_value=0.5,
        )
    ).eval()
    torch.nn.init.normal_(tower.embeddings.position_embeddings)
    model = with_temporal_blocks(tower, temporal_layers=2).eval()
    with torch.no_grad():
        ours = model(images(4), frame_counts=[3, 1])
        theirs = tower(images(4)).last_hidden_state
    torch.testing.assert_close(torch.cat([ours.prefix_tokens, ours.last_hidden_state], dim=1), theirs)
    tower.config.use_qk_norm = True
    with pytest.raises(FoveateError, match="no norm of queries and keys"):
        with_temporal_blocks(tower)


def test_a_new_encoder_can_be_made_of_a_siglip():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
    tower = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=SIDE, patch_size=8)).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = with_temporal_blocks(tower, temporal_layers=2).eval()
    with torch.no_grad():
        ours = model(images(4), frame_counts=[3, 1])
        theirs = tower(images(4)).last_hidden_state
    torch.testing.assert_close(ours.last_hidden_state, theirs, atol=1e-5, rtol=1e-4)
    assert ours.prefix_tokens is None
    assert len(model(images(2), output_hidden_states=True).hidden_states) == 4
    assert model.config.hidden_act == "gelu_pytorch_tanh"


def test_bad_values():
    model = small_encoder("temporal_pvc")
    with pytest.raises(FoveateError, match="whose sum is 2, not"):
        model(images(2), frame_counts=[3])
    with pytest.raises(FoveateError, match="timestamps must be 2 numbers"):
        model(images(2), timestamps=torch.zeros(3))
    for times in ([1.0, 0.0], [0.0, float("nan")], [0.0, float("inf")]):
        with pytest.raises(FoveateError, match="seconds that do not descend"):
            model(images(2), frame_counts=[2], timestamps=torch.tensor(times))
    model(images(2), timestamps=torch.tensor([1.0, 0.0]))  # of two images
    for fields, message in (
        ({"temporal_layers": 25}, "at most its 24 blocks"),
        ({"num_attention_heads": 7}, "do not divide"),
        ({"hidden_act": "step"}, "no hidden_act 'step'"),
        ({"time_scale": 0.0}, "time_scale of temporal_pvc must be above 0"),
    ):
        with pytest.raises(FoveateError, match=message):
            TemporalPVCConfig(**fields)

"""B-VLLM: the authors' merging, a loop over mixtures, equal frames, the budget, noise and chains."""

import json
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.video_connectors import Instruction, build_video_connector, video_connector_of_sizes
from foveate.models.video_connectors.b_vllm import merge_similar, reduce_tokens
from tests.models.video_connectors import released_b_vllm as released
from tests.models.video_connectors.small_options import options_of

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "b_vllm.json").read_text(encoding="utf-8"))
WORDS = Instruction(torch.tensor([5, 9, 200]))


@pytest.mark.parametrize("place", range(len(released.MIXED)))
def test_merged_mixtures_equal_those_of_the_authors(place):
    frames, threshold = released.MIXED[place]
    merged = merge_similar(released.mixtures(frames), released.shares(frames), threshold)
    torch.testing.assert_close(merged.flatten(1), torch.tensor(GOLDEN["mixed"][place]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("place", range(len(released.REDUCED)))
def test_reduced_tokens_equal_those_of_the_authors(place):
    count, kept = released.REDUCED[place]
    reduced = reduce_tokens(released.tokens(count), kept)
    torch.testing.assert_close(reduced, torch.tensor(GOLDEN["reduced"][place]), atol=1e-5, rtol=1e-4)


def small(**options):
    torch.manual_seed(0)
    connector = build_video_connector("b_vllm", 12, 10, **options_of("b_vllm") | options).eval()
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.normal_(std=0.3)
    return connector


def test_equals_a_loop_over_mixtures_and_frames():
    connector, clip = small(threshold=1.0), torch.randn(4, 9, 12)
    with torch.no_grad():
        tokens = connector(clip, Grid(3, 3), text=WORDS)
        frames = torch.stack([frame.mean(0) for frame in clip])
        read = connector.temporal_qformer(
            input_ids=WORDS.ids[None],
            query_embeds=connector.frame_queries[:, :3],
            attention_mask=torch.ones(1, 6),
            encoder_hidden_states=frames[None],
        ).last_hidden_state[0, :3]
        for number in range(3):
            query = connector.frame_projection(read[number])
            share = torch.stack([query @ frame / 12**0.5 / 0.5 for frame in frames]).softmax(0)
            mixture = sum(weight * connector.patch_norm(frame) for weight, frame in zip(share, clip, strict=True))
            own = connector.spatial_qformer(
                input_ids=WORDS.ids[None],
                query_embeds=connector.patch_queries,
                attention_mask=torch.ones(1, 7),
                encoder_hidden_states=mixture[None],
            ).last_hidden_state[0, :4]
            expected = connector.projector(connector.patch_projection(own))
            torch.testing.assert_close(tokens[4 * number : 4 * number + 4], expected, atol=1e-4, rtol=1e-4)


def test_equal_frames_are_one_mixture_and_shares_sum_to_one():
    connector, clip = small(), torch.randn(1, 9, 12).expand(5, -1, -1)
    with torch.no_grad():
        assert len(connector(clip, Grid(3, 3), text=WORDS)) == 4
        shares = connector.shares(torch.randn(5, 9, 12), WORDS.ids)
    torch.testing.assert_close(shares.sum(-1), torch.ones(3))


def test_the_budget_holds_for_every_number_of_mixtures():
    options = video_connector_of_sizes("b_vllm").options
    assert [count * options.tokens_of_mixture(count) for count in (1, 2, 16)] == [32, 64, 512]
    few = video_connector_of_sizes("b_vllm", {"tokens": 64})
    assert [few.options.tokens_of_mixture(count) for count in (1, 2, 3, 16)] == [32, 32, 21, 4]
    assert few.output_shape(8, Grid(16, 16)).size == 64 and few.output_shape(1, Grid(16, 16)).size == 32
    connector = small(tokens=4, threshold=1.0)
    with torch.no_grad():
        assert len(connector(torch.randn(4, 9, 12), Grid(3, 3), text=WORDS)) == 3 * 1


def test_noise_is_off_at_inference_and_seeded_on_request():
    clip = torch.randn(4, 9, 12)
    with torch.no_grad():
        quiet = small().shares(clip, WORDS.ids)
        noisy = [small(noise="always", seed=seed).shares(clip, WORDS.ids) for seed in (0, 0, 1)]
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.allclose(noisy[0], quiet) and not torch.allclose(noisy[0], noisy[2])


def test_chains_lose_nothing_on_request():
    """Row 1 is like 0, and 2 is like 1 alone: theirs drops 2 with 1."""
    shares = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.28, 0.96]])
    mixtures = torch.eye(3)[:, None]
    lost = merge_similar(mixtures, shares, threshold=0.88)
    torch.testing.assert_close(lost[:, 0], torch.tensor([[0.5, 0.5, 0.0]]))
    whole = merge_similar(mixtures, shares, threshold=0.88, follow_chains=True)
    torch.testing.assert_close(whole[:, 0], torch.full((1, 3), 1 / 3))


def test_bad_options():
    for options, message in (
        ({"threshold": 0.0}, "threshold must be above 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"noise": "loud"}, "noise must be training, always or never"),
        ({"tokens": 3}, "tokens must be at least the 4 of one mixture"),
        ({"heads": 3}, "3 heads of b_vllm do not divide"),
        ({"follow_chains": 1}, "follow_chains must be true or false"),
    ):
        with pytest.raises(FoveateError, match=message):
            small(**options)
    with pytest.raises(FoveateError, match="has 264 words, and the instruction has word 264"):
        small()(torch.randn(2, 9, 12), Grid(3, 3), text=Instruction(torch.tensor([264])))

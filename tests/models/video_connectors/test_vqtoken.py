"""VQToken: the authors' numbers, loops over clusters, exact recovery, and the choice of the number of clusters."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.video_connectors import ClipShape, build_video_connector, clustering, video_connector_of_sizes
from foveate.models.video_connectors.vqtoken import VQToken
from tests.models.video_connectors.released_vqtoken import (
    CLUSTERS,
    HEADS,
    PLACES,
    TEXT_WIDTH,
    WIDTH,
    features,
    weights,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "vqtoken.json").read_text(encoding="utf-8"))


def from_released(cls, released: dict) -> dict:
    """Weights under our names, by the patterns of full names that the class states."""
    return {
        next(name for pattern, ours in cls.released_keys.items() if (name := re.sub(pattern, ours, key)) != key): value
        for key, value in released.items()
    }


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['frames']}-frames")
def test_equals_the_authors_code(case):
    options = {"module": "released", "clusters": CLUSTERS, "num_heads": HEADS, "places": PLACES, "iterations": 50}
    connector = build_video_connector("vqtoken", WIDTH, TEXT_WIDTH, **options, seed=case["seed"]).eval()
    connector.load_state_dict(from_released(VQToken, weights()))
    clip = features(case["frames"])
    with torch.no_grad():
        labels, count = connector.cluster(connector.projector(clip), connector.generator(clip.device))
        tokens = connector(clip, Grid(3, 3))
    assert labels.tolist() == case["labels"] and count == CLUSTERS
    assert len(tokens) == max(case["frames"], CLUSTERS)
    torch.testing.assert_close(tokens, torch.tensor(case["output"]), atol=1e-4, rtol=1e-4)


@pytest.fixture
def small():
    torch.manual_seed(0)
    connector = build_video_connector("vqtoken", 12, 16, clusters=4, num_heads=2, map_size=[2, 3, 3]).eval()
    for parameter in connector.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return connector


def test_equals_a_loop_over_clusters(small):
    clip = torch.randn(4, 36, 12)
    with torch.no_grad():
        tokens = small(clip, Grid(6, 6))
        x = small.projector(clip).flatten(0, 1)
        labels = clustering.by_first_token(small.cluster(x[None], small.generator(x.device))[0].flatten())
        codebook, values = [], []
        for number in range(4):
            members = (labels == number).nonzero().flatten()
            codebook.append(torch.stack([x[i] for i in members]).mean(0))
            where = (labels == number).float().view(2, 2, 3, 2, 3, 2).mean((1, 3, 5))
            values.append(small.maps(where.flatten()))
        attention, codebook, values = small.attention, torch.stack(codebook), torch.stack(values)
        for number in range(4):
            heads = []
            for head in range(2):
                part = slice(8 * head, 8 * (head + 1))
                share = attention.k_proj(codebook)[:, part] @ attention.q_proj(codebook[number])[part] / 8**0.5
                heads.append(share.softmax(0) @ attention.v_proj(values)[:, part])
            torch.testing.assert_close(tokens[number], attention.out_proj(torch.cat(heads)), atol=1e-4, rtol=1e-4)


def test_equal_groups_are_found_exactly_whatever_the_seed(small):
    base = F.normalize(torch.randn(4, 16), dim=-1) * torch.tensor([1.0, 2.0, 3.0, 0.5])[:, None]
    labels = torch.arange(4).repeat(18)
    groups = base[labels].view(2, 36, 16)
    found = []
    for seed in range(3):
        own, count = small.cluster(groups, torch.Generator().manual_seed(seed))
        assert count == 4
        own = clustering.by_first_token(own.flatten())
        assert torch.equal(own, labels)
        found.append(clustering.means(groups.flatten(0, 1), own, 4))
    assert all(torch.allclose(one, base) for one in found)


def test_numbers_of_the_labels_change_nothing():
    labels = torch.tensor([2, 2, 0, 3, 0])
    relabelled = torch.tensor([7, 7, 4, 1, 4])
    assert clustering.by_first_token(labels).tolist() == [0, 0, 1, 2, 1]
    assert torch.equal(clustering.by_first_token(labels), clustering.by_first_token(relabelled))


def test_the_residual_adds_the_codebook(small):
    other = build_video_connector("vqtoken", 12, 16, clusters=4, num_heads=2, map_size=[2, 3, 3], residual=True).eval()
    other.load_state_dict(small.state_dict())
    codebook, maps = torch.randn(4, 16), torch.rand(4, 18)
    torch.testing.assert_close(other.attend(codebook, maps), codebook + small.attend(codebook, maps))


@pytest.mark.parametrize("adaptive", ["silhouette", "elbow"])
def test_the_number_of_clusters_of_separate_groups_is_found(adaptive):
    connector = build_video_connector(
        "vqtoken", 12, 16, clusters=9, least_clusters=2, adaptive=adaptive, num_heads=2, iterations=50
    )
    torch.manual_seed(3)
    for groups in (4, 6):
        centers = torch.linalg.qr(torch.randn(16, 16)).Q[:groups]
        tokens = (centers[torch.arange(groups).repeat(20)] + 0.01 * torch.randn(20 * groups, 16)).view(2, -1, 16)
        found = {connector.cluster(tokens, torch.Generator().manual_seed(seed))[1] for seed in range(4)}
        assert groups in found and max(found) - min(found) <= 3
    assert not connector.static_count


def test_elbow_counts_from_the_first_number_that_is_tried():
    assert clustering.elbow([10.0, 9.0, 2.0, 1.9, 1.8], least=12) == 14
    assert clustering.elbow([3.0, 2.0], least=12) == 12


def test_tokens_of_the_paper():
    grid = Grid(27, 27)
    assert video_connector_of_sizes("vqtoken").output_shape(32, grid) == ClipShape(1, 1, 32)
    released = video_connector_of_sizes("vqtoken", {"module": "released"})
    assert [released.output_shape(frames, grid).size for frames in (8, 32, 64)] == [32, 32, 64]


def test_bad_options():
    for options, message in (
        ({"module": "other"}, "module of vqtoken must be paper or released"),
        ({"adaptive": "gap"}, "adaptive must be silhouette, elbow or null"),
        ({"clusters": 8, "adaptive": "elbow"}, "least_clusters must be from 2 to the 8 clusters, not 12"),
        ({"map_size": [3, 3]}, "map_size must be"),
        ({"residual": 1}, "residual must be true or false"),
        ({"num_heads": 3}, "3 heads of vqtoken do not divide"),
    ):
        with pytest.raises(FoveateError, match=message):
            build_video_connector("vqtoken", 12, 16, **options)
    with pytest.raises(FoveateError, match="makes 32 clusters, and this clip has 9 tokens"):
        video_connector_of_sizes("vqtoken").output_shape(1, Grid(3, 3))
    with pytest.raises(FoveateError, match="frames of 729 tokens, and these have 36"):
        video_connector_of_sizes("vqtoken", {"module": "released"}).output_shape(4, Grid(6, 6))

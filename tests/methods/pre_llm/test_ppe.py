"""PPE: clusters and positions against loops and against numbers of the authors' code, rotation against M-RoPE."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.pre_llm import divide
from foveate.core.tokens import Crop, Grid, VisualTokens
from foveate.methods.pre_llm.ppe import PPE, cluster_members, rotary_angles, rotary_axes, rotary_ids
from foveate.methods.shared.clustering import density_peaks

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "ppe.json").read_text())["cases"]


def slow_clusters(x: Tensor, count: int, k: int) -> list[list[int]]:
    n, d = x.shape
    distance = [[float((x[i] - x[j]).double().norm()) / d**0.5 for j in range(n)] for i in range(n)]
    density = [2.718281828459045 ** -(sum(v * v for v in sorted(row)[:k]) / min(k, n)) for row in distance]
    score = []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if (-round(density[j], 6), j) < (-round(density[i], 6), i)]
        score.append(density[i] * (min(denser) if denser else max(map(max, distance))))
    centres = sorted(range(n), key=lambda i: (-round(score[i], 6), i))[:count]
    clusters: list[list[int]] = [[] for _ in centres]
    for i in range(n):
        own = (
            centres.index(i)
            if i in centres
            else min(range(count), key=lambda c: (round(distance[i][centres[c]], 6), c))
        )
        clusters[own].append(i)
    return clusters


@pytest.mark.parametrize(("size", "count", "k"), [(9, 3, 5), (16, 7, 5), (20, 1, 2), (24, 23, 5), (4, 2, 9)])
@pytest.mark.parametrize("ties", [False, True])
def test_merging_equals_the_loop(size: int, count: int, k: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, 4, generator=generator)
    if ties:
        x = torch.randint(0, 2, (size, 4), generator=generator).float()
    selection = PPE(members=3, neighbours=k)(VisualTokens.of_grid(x, (1, size)), count)
    selection.check(size)
    clusters = sorted(slow_clusters(x, count, k))
    assert selection.indices.tolist() == [cluster[0] for cluster in clusters]
    assert selection.positions is not None and selection.features is not None
    for row, cluster in enumerate(clusters):
        assert selection.sources(row).tolist() == cluster
        assert selection.positions[row].tolist() == [cluster[i % len(cluster)] for i in range(3)]
        torch.testing.assert_close(selection.features[row], x[cluster].mean(dim=0))


@pytest.mark.parametrize("case", GOLDEN)
def test_equals_the_authors_code(case: dict) -> None:
    x = torch.tensor(case["features"])
    selection = PPE(members=case["members"], reference=True)(VisualTokens.of_grid(x, (1, len(x))), case["count"])
    assert selection.positions is not None and selection.features is not None
    assert selection.positions.tolist() == case["positions"]
    torch.testing.assert_close(selection.features.sum(dim=1), torch.tensor(case["sums"]), atol=1e-4, rtol=1e-4)


def test_members_wrap_around() -> None:
    labels = torch.tensor([0, 1, 0, 0, 1])
    assert cluster_members(labels, 2, 4).tolist() == [[0, 2, 3, 0], [1, 4, 1, 4]]
    assert cluster_members(labels, 2, 4, last_first=True).tolist() == [[3, 2, 0, 3], [4, 1, 4, 1]]


def slow_ids(ids: Tensor, carried: list[int], sections: tuple[int, ...]) -> list[int]:
    count = len(carried)
    even = all(size % count == 0 for size in sections)
    out = []
    for axis, size in enumerate(sections):
        for j in range(size):
            member = j // (size // count) if even else j % count
            out.append(int(ids[axis, carried[member]]))
    return out


@pytest.mark.parametrize("sections", [(16, 24, 24), (8, 12, 12), (3, 5, 2), (32,)])
@pytest.mark.parametrize("carried", [1, 3, 4, 8])
def test_ids_equal_the_loop(sections: tuple[int, ...], carried: int) -> None:
    generator = torch.Generator().manual_seed(carried)
    ids = torch.randint(0, 50, (len(sections), 20), generator=generator)
    positions = torch.randint(0, 20, (5, carried), generator=generator)
    found = rotary_ids(ids, positions, sections)
    assert found.tolist() == [slow_ids(ids, row, sections) for row in positions.tolist()]


def ordinary(ids: Tensor, sections: tuple[int, ...], interleaved: bool) -> tuple[Tensor, Tensor]:
    """Angles (N, half) of transformers' own rotation, and its inverse frequencies."""
    config_class: Any
    rotation_class: Any
    if interleaved:
        from transformers.models.qwen3_vl import configuration_qwen3_vl, modeling_qwen3_vl

        config_class, rotation_class = (
            configuration_qwen3_vl.Qwen3VLTextConfig,
            modeling_qwen3_vl.Qwen3VLTextRotaryEmbedding,
        )
    else:
        from transformers.models.qwen2_vl import configuration_qwen2_vl, modeling_qwen2_vl

        config_class, rotation_class = (
            configuration_qwen2_vl.Qwen2VLTextConfig,
            modeling_qwen2_vl.Qwen2VLRotaryEmbedding,
        )
    half = sum(sections)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}
    config = config_class(  # ty: ignore[unknown-argument]
        hidden_size=2 * half, num_attention_heads=1, num_key_value_heads=1, head_dim=2 * half,
                    rope_parameters=rope)  # fmt: skip
    rotation = rotation_class(config)  # ty: ignore[invalid-argument-type]
    cos, _ = rotation(torch.zeros(1), ids[:, None])
    return cos[0], rotation.inv_freq


@pytest.mark.parametrize(("sections", "interleaved"), [((16, 24, 24), False), ((24, 20, 20), True)])
def test_one_member_or_one_token_is_the_ordinary_rotation(sections: tuple[int, ...], interleaved: bool) -> None:
    ids = torch.stack([torch.full((12,), 7), 7 + torch.arange(12) // 4, 7 + torch.arange(12) % 4])
    cos, inv_freq = ordinary(ids, sections, interleaved)
    places = torch.tensor([1, 5, 11])
    for carried in (1, 4, 5, 8):
        positions = places[:, None].expand(-1, carried)
        angles = rotary_angles(rotary_ids(ids, positions, sections, interleaved=interleaved), inv_freq)
        assert torch.equal(torch.cat([angles, angles], dim=-1).cos(), cos[places])


def test_permuting_members_permutes_stretches_only() -> None:
    ids = torch.arange(30).view(3, 10)
    positions = torch.tensor([[2, 5, 7, 9]])
    one = rotary_ids(ids, positions, (4, 8, 8))
    other = rotary_ids(ids, positions.flip(1), (4, 8, 8))
    for part, flipped in zip(one.split((4, 8, 8), 1), other.split((4, 8, 8), 1), strict=True):
        assert torch.equal(part.view(4, -1).flip(0), flipped.view(4, -1))


def test_frames_are_clustered_apart_and_keep_their_positions() -> None:
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    crops = tuple(Crop(torch.arange(6) + 6 * f, Grid(2, 3), kind="frame") for f in range(2))
    selection = PPE(members=4)(VisualTokens(x, crops), 5)
    selection.check(12)
    assert selection.positions is not None
    assert torch.equal(selection.positions[:, 0], selection.indices)
    assert bool((selection.positions // 6 == selection.indices[:, None] // 6).all())


def clip(frames: int = 8, size: int = 6, seed: int = 0) -> VisualTokens:
    """Two scenes that follow each other."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, size, 4, generator=generator)
    x[: frames // 2] += 5
    crops = tuple(Crop(torch.arange(size) + size * f, Grid(2, size // 2), kind="frame") for f in range(frames))
    return VisualTokens(x.flatten(0, 1), crops)


@pytest.mark.parametrize("count", [2, 9, 20, 47])
def test_merging_over_time_is_two_stages_by_a_loop(count: int) -> None:
    tokens = clip()
    selection = PPE(members=3, events=0.25)(tokens, count)
    selection.check(48)
    assert len(selection) == count and selection.positions is not None and selection.features is not None
    share = math.ceil(6 * math.sqrt(count / 48))
    x = tokens.features.view(8, 6, 4)
    rows: list[tuple[Tensor, list[int], list[int]]] = []  # every frame, in raster order of the first member
    of_frame = []
    for frame in range(8):
        labels = density_peaks(x[frame], share, 5)[1] if share < 6 else torch.arange(6)
        carried = cluster_members(labels, share, 3) + 6 * frame
        own = [
            (
                x[frame][labels == n].mean(dim=0),
                carried[n].tolist(),
                (6 * frame + (labels == n).nonzero().flatten()).tolist(),
            )
            for n in carried[:, 0].argsort().tolist()
        ]
        of_frame.append(range(len(rows), len(rows) + len(own)))
        rows += own
    means = torch.stack([torch.stack([rows[r][0] for r in own]).mean(dim=0) for own in of_frame])
    _, events = density_peaks(means, 2, 5)
    groups = [[r for frame in range(8) if events[frame] == n for r in of_frame[frame]] for n in range(2)]
    assert sorted(map(len, groups)) == [4 * share, 4 * share]  # the scenes are the events
    expected = {}
    for group, wanted in zip(groups, divide(count, [len(group) for group in groups]), strict=True):
        features = torch.stack([rows[r][0] for r in group])
        _, labels = density_peaks(features, wanted, 5)
        for n in range(wanted):
            own = [group[i] for i in (labels == n).nonzero().flatten().tolist()]
            sources = sorted(i for r in own for i in rows[r][2])
            expected[rows[own[0]][2][0]] = (features[labels == n].mean(dim=0), rows[own[0]][1], sources)
    assert selection.indices.tolist() == sorted(expected)
    for row, place in enumerate(sorted(expected)):
        torch.testing.assert_close(selection.features[row], expected[place][0])
        assert selection.positions[row].tolist() == expected[place][1]
        assert selection.sources(row).tolist() == expected[place][2]
    torch.testing.assert_close(selection.apply(tokens.features), selection.features)


def test_without_a_clip_events_change_nothing() -> None:
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    image = VisualTokens.of_grid(x, (3, 4))
    one, other = PPE()(image, 5), PPE(events=0.0625)(image, 5)
    assert torch.equal(one.indices, other.indices) and one.features is not None and other.features is not None
    assert torch.equal(one.features, other.features)
    with pytest.raises(FoveateError, match="share of the frames"):
        PPE(events=1.5)


def test_errors() -> None:
    with pytest.raises(FoveateError, match="members"):
        PPE(members=0)
    with pytest.raises(FoveateError, match="neighbours"):
        PPE(neighbours=0)
    with pytest.raises(FoveateError, match="axes"):
        rotary_ids(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64), (2, 2, 2))
    with pytest.raises(FoveateError, match="at least 1"):
        rotary_axes((4, 0))
    assert density_peaks(torch.zeros(3, 2), 3, 5)[1].tolist() == [0, 1, 2]

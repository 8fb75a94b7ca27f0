"""Token merging over time against a loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foveate.methods.video.temporal_tome import TemporalToMe
from tests.methods.video.clips import clip_of, moving


def by_loop(features: Tensor, clip: tuple[int, int, int], count: int) -> list[tuple[int, list[int]]]:
    """Place and members of every row."""
    frames, size = clip[0], clip[1] * clip[2]
    members = {token: [token] for token in range(frames * size)}
    grid = [[frame * size + place for place in range(size)] for frame in range(frames)]
    while len(members) > count:
        means = {token: features[own].mean(dim=0) for token, own in members.items()}
        if len(grid) > 1:
            first, second = grid[::2], grid[1::2]
        else:
            first, second = [grid[0][::2]], [grid[0][1::2]]
        pairs = []
        for number, frame in enumerate(first):
            candidates = [one for n in (number - 1, number) if 0 <= n < len(second) for one in second[n]]
            for token in frame:
                cosines = [float(torch.cosine_similarity(means[token], means[other], dim=0)) for other in candidates]
                pairs.append((-max(cosines), len(pairs), token, candidates[cosines.index(max(cosines))]))
        for _, _, token, other in sorted(pairs)[: len(members) - count]:
            members[other] = members[other] + members.pop(token)
        grid = second
    return sorted((token, sorted(own)) for token, own in members.items())


@pytest.mark.parametrize("clip", [(5, 2, 3), (4, 3, 2), (1, 3, 3), (2, 1, 4)])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.3, 0.1])
def test_equals_the_loop(clip: tuple[int, int, int], share: float) -> None:
    features = moving(clip, 6, seed=clip[0], still=0.0)
    count = max(1, int(share * len(features)))
    selection = TemporalToMe()(clip_of(features, clip), count)
    selection.check(len(features))
    expected = by_loop(features, clip, count)
    assert selection.indices.tolist() == [token for token, _ in expected]
    assert [selection.sources(row).tolist() for row in range(count)] == [own for _, own in expected]
    rows = torch.stack([features[own].mean(dim=0) for _, own in expected])
    torch.testing.assert_close(selection.features, rows)


def test_what_moves_is_merged_with_itself() -> None:
    """A bright token that wanders over a dark frame is one row, without the dark tokens."""
    frames = torch.zeros(2, 9, 4)
    frames[:, :, 0] = 1
    frames[0, 2] = frames[1, 6] = torch.tensor([0.0, 5, 0, 0])
    selection = TemporalToMe()(clip_of(frames.flatten(0, 1), (2, 3, 3)), 9)
    assert selection.indices.tolist() == list(range(9, 18))
    assert selection.sources(6).tolist() == [2, 15]

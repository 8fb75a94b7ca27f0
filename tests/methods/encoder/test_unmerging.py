"""Virtual unmerging: against plain attention, a loop, and what the authors' exact form returned."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from foveate.core.errors import FoveateError
from foveate.core.unmerging import expand, group_mean, rotate, sequence_groups, virtual_attention

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "virtual_unmerging.json").read_text())


def rotary(count, width, base=10_000, batch=1):
    angle = torch.outer(torch.arange(count).float(), 1 / base ** (torch.arange(0, width, 2) / width))
    angle = torch.cat([angle, angle], dim=-1).expand(batch, -1, -1)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=range(len(GOLDEN["cases"])))
def test_as_the_authors(case):
    q, k, v = (torch.tensor(case[name]) for name in "qkv")
    group = torch.tensor(case["group"])
    out = virtual_attention(q, k, v, group, *rotary(group.shape[1], q.shape[-1], case["base"]))
    torch.testing.assert_close(out, torch.tensor(case["out"]), atol=1e-5, rtol=1e-4)


def test_every_position_for_itself_is_plain_attention():
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    cos, sin = rotary(9, 8, batch=2)
    group = torch.arange(9).expand(2, 9)
    plain = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(virtual_attention(q, k, v, group, cos, sin), plain)


def test_rows_that_were_equal_lose_nothing():
    group = torch.tensor([[0, 1, 1, 2, 1, 3, 2, 4], [0, 0, 1, 1, 2, 3, 4, 4]])
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    cos, sin = rotary(8, 8, batch=2)
    long = [torch.stack([x[b][:, group[b]] for b in range(2)]) for x in (q, k, v)]
    mask = torch.zeros(8, 8).masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf)[None, None]
    full = F.scaled_dot_product_attention(
        rotate(long[0], cos, sin), rotate(long[1], cos, sin), long[2], attn_mask=mask, enable_gqa=True
    )
    out = virtual_attention(q, k, v, group, cos, sin, mask=mask)
    torch.testing.assert_close(out, virtual_attention(q, k, v, group, cos, sin))
    for image in range(2):
        for row in range(5):
            torch.testing.assert_close(out[image, :, row], full[image][:, group[image] == row].mean(1))


def test_means_and_expansion():
    group = torch.tensor([[0, 2, 2, 0]])
    x = torch.tensor([[[1.0], [2.0], [4.0], [3.0]]])
    assert group_mean(x, group, 4).flatten().tolist() == [2, 0, 3, 0]
    assert expand(torch.tensor([[[5.0], [6.0], [7.0]]]), group).flatten().tolist() == [5, 7, 7, 5]
    assert group_mean(x.bfloat16(), group, 3).dtype == torch.bfloat16


def test_groups_of_sequences():
    image = torch.tensor([[0, 1, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 1, 0]]).bool()
    assignments = [torch.tensor([0, 1, 0]), torch.tensor([0, 0]), torch.tensor([0, 1, 1, 0])]
    groups = sequence_groups(image, assignments)
    assert groups.tolist() == [[0, 1, 2, 1, 3, 4, 4], [0, 1, 2, 3, 3, 2, 4]]
    assert sequence_groups(torch.zeros(1, 3).bool(), []).tolist() == [[0, 1, 2]]
    with pytest.raises(FoveateError, match="9 places for patches, and images of 3"):
        sequence_groups(image, assignments[:1])

"""Multi-scale residual quantisation against a slow loop, and a tokenizer's round trip."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from foveate.models.next_scale import NextScaleConfig
from foveate.models.next_scale.quantiser import MultiScaleQuantiser
from foveate.models.next_scale.tokenizer import ImageTokenizer


def quantiser() -> MultiScaleQuantiser:
    made = MultiScaleQuantiser(NextScaleConfig(image_size=16, scales=(1, 2, 3, 4), codebook_size=7, code_size=3))
    torch.nn.init.normal_(made.codebook)
    return made


def test_quantisation_is_that_of_a_loop() -> None:
    made = quantiser().requires_grad_(False)
    features = torch.randn(2, 3, 4, 4)
    ids, cells, sums = made(features)
    for row in range(2):
        left, so_far = features[row].clone(), torch.zeros(3, 4, 4)
        for place, side in enumerate((1, 2, 3, 4)):
            chosen = []
            for y in range(side):
                for x in range(side):
                    # Every cell is the mean of the features it touches.
                    rows = slice(y * 4 // side, -(-(y + 1) * 4 // side))
                    columns = slice(x * 4 // side, -(-(x + 1) * 4 // side))
                    mean = left[:, rows, columns].mean(dim=(1, 2))
                    torch.testing.assert_close(cells[place][row, y * side + x], mean)
                    distances = [float((mean - code).square().sum()) for code in made.codebook]
                    chosen.append(distances.index(min(distances)))
            assert ids[place][row].tolist() == chosen
            codes = made.codebook[chosen].T.reshape(1, 3, side, side)
            large = F.interpolate(codes, size=(4, 4), mode="bicubic") if side < 4 else codes
            convolved = F.conv2d(
                large, made.refinements[place].convolution.weight, made.refinements[place].convolution.bias, padding=1
            )
            added = (large + convolved)[0] / 2
            left, so_far = left - added, so_far + added
            torch.testing.assert_close(sums[place][row], so_far)
    torch.testing.assert_close(made.read(ids), sums[-1])


def test_codes_on_the_finest_map_come_back() -> None:
    made = quantiser()
    for refinement in made.refinements:  # the identity: half of what comes, and a convolution that copies it
        torch.nn.init.dirac_(refinement.convolution.weight)
        torch.nn.init.zeros_(refinement.convolution.bias)
    with torch.no_grad():
        made.codebook[0] = 0  # coarser maps may add nothing
    given = torch.randint(7, (2, 16))
    zero = [torch.zeros(2, side * side, dtype=torch.long) for side in (1, 2, 3)]
    features = made.read([*zero, given])
    torch.testing.assert_close(features, made.codebook[given].transpose(1, 2).unflatten(2, (4, 4)))
    assert torch.equal(made.nearest(features), given)


def test_ids_split_and_join() -> None:
    tokenizer = ImageTokenizer(NextScaleConfig(image_size=16, scales=(1, 2, 4)))
    torch.nn.init.normal_(tokenizer.requires_grad_(False).quantiser.codebook)
    ids = tokenizer.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert ids.shape == (2, 21)
    assert torch.equal(torch.cat(tokenizer.split(ids), dim=1), ids)
    assert torch.equal(tokenizer.decode(ids), tokenizer.decode(tokenizer.split(ids)))
    assert tokenizer.decode(ids).shape == (2, 3, 16, 16)
    assert float(tokenizer.decode(ids).abs().max()) <= 1

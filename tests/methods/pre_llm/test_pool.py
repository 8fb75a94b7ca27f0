"""Pool: any number of cells, every token in exactly one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.tokens import Crop, Grid, VisualTokens
from foveate.methods.pre_llm.pool import Pool
from foveate.methods.shared.cells import cells
from foveate.testing.visual_tokens import plain, tiled


def by_walking(present: list[list[bool]], count: int) -> list[list[int]]:
    """The cells (places in the raster) by walking through the bands one token after another."""
    rows = [i for i, line in enumerate(present) if any(line)]
    columns = [j for j in range(len(present[0])) if any(line[j] for line in present)]
    top, height = rows[0], rows[-1] - rows[0] + 1
    left, width = columns[0], columns[-1] - columns[0] + 1
    bands = min(max(round((count * height / width) ** 0.5), 1), height)
    path = []
    for band in range(bands):
        way = range(width) if band % 2 == 0 else range(width - 1, -1, -1)
        for column in way:
            for row in range(height):
                if row * bands // height == band and present[top + row][left + column]:
                    path.append((top + row) * len(present[0]) + left + column)
    found: list[list[int]] = [[] for _ in range(count)]
    for step, place in enumerate(path):
        found[step * count // len(path)].append(place)
    return sorted(sorted(cell) for cell in found)


@settings(max_examples=30)
@given(data=st.data(), rows=st.integers(1, 9), columns=st.integers(1, 9), share=st.sampled_from([0.0, 0.0, 0.2, 0.7]))
def test_cells_equal_the_walk(data: st.DataObject, rows: int, columns: int, share: float):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    present = torch.rand(rows * columns, generator=generator) >= share
    present[data.draw(st.integers(0, rows * columns - 1))] = True
    size = int(present.sum())
    index = torch.full((rows * columns,), -1)
    index[present] = torch.arange(size)
    count = data.draw(st.integers(1, size))
    centres, cell = cells(Crop(index, Grid(rows, columns)), count)
    assert centres.tolist() == sorted(set(centres.tolist())) and len(centres) == count
    assert cell[centres].tolist() == list(range(count))
    sizes = cell.bincount(minlength=count)
    assert int(sizes.max()) - int(sizes.min()) <= 1 and int(sizes.sum()) == size
    place = present.nonzero().flatten()
    assert sorted(place[cell == i].tolist() for i in range(count)) == by_walking(
        present.view(rows, columns).tolist(), count
    )


@pytest.mark.parametrize(
    ("grid", "cut"), [((24, 24), (8, 8)), ((24, 24), (12, 12)), ((12, 18), (4, 6)), ((6, 12), (2, 4)), ((1, 8), (1, 4))]
)
def test_average_pooling_where_it_fits(grid: tuple[int, int], cut: tuple[int, int]):
    tokens = plain(*grid)
    found = Pool()(tokens, cut[0] * cut[1])
    image = tokens.features.T.view(1, -1, *grid)
    expected = F.adaptive_avg_pool2d(image, cut).flatten(2)[0].T
    assert found.features is not None
    torch.testing.assert_close(found.features, expected)


def test_the_mean_of_an_image_stays_the_mean():
    tokens = plain(6, 6)
    for count in (1, 4, 9, 12, 18):  # cells of one size
        found = Pool()(tokens, count)
        assert found.features is not None
        torch.testing.assert_close(found.features.mean(dim=0), tokens.features.mean(dim=0))
    one = Pool()(tokens, 1)
    assert one.indices.tolist() == [14]  # of the four in the middle the first
    assert one.sources(0).tolist() == list(range(36))


def test_an_even_slope_keeps_its_places():
    """Averaged coordinates are the middles of the cells: rows stay within half a cell of where they stand."""
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    where = torch.stack([rows, columns], dim=-1).flatten(0, 1)
    tokens = VisualTokens.of_grid(where, (24, 24))
    for count in (64, 128, 192):
        found = Pool()(tokens, count)
        assert found.features is not None
        assert float((found.features - where[found.indices]).norm(dim=1).max()) < (576 / count) ** 0.5


def test_padding_is_in_no_cell_and_newlines_go():
    tokens = tiled(4, (2, 2), (1, 0))
    assert tokens.separators is not None
    found = Pool()(tokens, 15)
    members = found.members(len(tokens))
    assert torch.equal(members < 0, tokens.separators)
    for crop in tokens.crops:  # no cell reaches into another crop
        own = set(members[crop.present].tolist())
        assert all(set(found.sources(row).tolist()) <= set(crop.present.tolist()) for row in own)

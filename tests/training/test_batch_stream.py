"""Batch number i is a function of i alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from foveate import FoveateError, synthetic
from foveate.training.batch_stream import BatchStream, ListSource, RenderedSource, sizes_at
from foveate.training.collate import Collator
from foveate.training.examples import Example
from foveate.training.recipe import Rendered, Sizes
from foveate.training.recipe_file import parse_recipe
from foveate.training.sources import open_source
from tests.training.small_training import recipe, small_stage, write_conversations

UNIT = 32


def stage_of(data, **changes):
    return parse_recipe(recipe(Path("out"), small_stage(data, **changes))).stages[0]


@pytest.fixture
def mixed(tmp_path):
    """A stage of rendered images and files, two groups a batch."""
    sizes = {"width": [64, 160], "height": [64, 96]}
    data = [
        {"rendered": {"tasks": {"text_page": 1, "read_word": 1}, "sizes": sizes}},
        {"files": {"path": str(write_conversations(tmp_path))}, "weight": 0.5},
    ]
    return stage_of(data, groups=2, accumulate=2, steps=4)


def stream(stage, processor, **options):
    sources = [(open_source(data, UNIT, seed=5), data.weight) for data in stage.data]
    return BatchStream(stage, sources, Collator(processor, cells=True), seed=9, **options)


def same(a, b) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_stream_can_start_anywhere(mixed, processor):
    whole = list(stream(mixed, processor))
    assert len(whole) == 8
    assert not same(whole[0], whole[1])
    tail = list(stream(mixed, processor, start=5))
    assert len(tail) == 3
    assert all(same(a, b) for a, b in zip(whole[5:], tail, strict=True))


def test_workers_do_not_change_the_batches(mixed, processor):
    alone = list(stream(mixed, processor, start=1))
    shared = list(DataLoader(stream(mixed, processor, start=1), batch_size=None, num_workers=2))
    assert len(alone) == len(shared) == 7
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


def test_processes_divide_every_batch(mixed, processor):
    whole = stream(mixed, processor)
    parts = [stream(mixed, processor, rank=rank, processes=2) for rank in (0, 1)]
    for number, halves in enumerate(zip(*parts, strict=True)):
        examples = [draw() for draw in whole.draws(number)]
        for rank, half in enumerate(halves):
            assert same(half, Collator(processor, cells=True)(examples[rank::2]))


def test_a_batch_that_cannot_be_divided_is_refused(mixed, processor):
    with pytest.raises(FoveateError, match="4 cannot be divided among 3"):
        stream(mixed, processor, processes=3)


def test_a_list_alone_is_gone_through_once_an_epoch():
    source = ListSource(lambda index: Example([], [], task=str(index)), 10, seed=1)
    rng = np.random.default_rng(0)
    epochs = [[int(draw().task) for draw in source.draws(range(first, first + 10), 0.0, rng)] for first in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_rendered_groups_share_a_grid_and_stay_in_range(processor):
    settings = Rendered(
        {"text_page": 1.0, "read_field": 1.0}, Sizes((40, 200), (64, 128), pixels=12000), difficulty=(0.2, 0.4)
    )
    source = RenderedSource(settings, UNIT)
    grids = set()
    for seed in range(20):
        draws = source.draws(range(4), 0.5, np.random.default_rng(seed))
        sizes = [draw.args[2] for draw in draws]
        (grid,) = {(width // UNIT, height // UNIT) for width, height in sizes}
        grids.add(grid)
        assert 2 <= grid[0] <= 6
        assert 2 <= grid[1] <= 4
        assert grid[0] * grid[1] * UNIT**2 <= 12000
        assert all(0.2 <= draw.args[3] <= 0.4 for draw in draws)
        # read_field needs 96 x 64 pixels; smaller groups hold pages only.
        assert all(draw.args[0] == ("text_page",) or draw.args[2][0] >= 96 for draw in draws)
    assert len(grids) > 3
    example = source.draws(range(1), 0.5, np.random.default_rng(0))[0]()
    assert example.characters[0]


def test_sizes_grow():
    settings = Rendered(sizes=Sizes((64, 128), (64, 64)), final_sizes=Sizes((128, 256), (64, 128), pixels=20000))
    assert sizes_at(settings, 0.0) == Sizes((64, 128), (64, 64), 128 * 64)
    assert sizes_at(settings, 0.5) == Sizes((96, 192), (64, 96), (128 * 64 + 20000) // 2)
    assert sizes_at(settings, 1.0) == settings.final_sizes


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Rendered({"read_feild": 1.0}), ["read_feild", "read_field", "text_page"]),
        (Rendered({"read_field": 1.0}, Sizes((32, 64), (32, 64))), ["read_field", "at least 96"]),
        (
            Rendered({"receipt_total": 1.0}, Sizes((64, 640), (64, 640), 20_000)),
            ["receipt_total", "never", "at most 20000 pixels"],
        ),
        # Sides are multiples of 32 px: of 159 px, 128 are used.
        (Rendered({"receipt_total": 1.0}, Sizes((64, 640), (64, 159))), ["at least 128 x 144", "multiples of 32"]),
    ],
)
def test_impossible_renderings_are_refused_before_training(settings, words):
    with pytest.raises(FoveateError) as error:
        RenderedSource(settings, UNIT)
    for word in words:
        assert word in str(error.value)


def test_easy_vqa_is_the_training_split():
    easy_vqa = pytest.importorskip("easy_vqa")
    source = open_source(stage_of([{"easy_vqa": True}]).data[0], UNIT, seed=0)
    questions = set(zip(*easy_vqa.get_train_questions()[:2], strict=True))
    for draw in source.draws(range(20), 0.0, np.random.default_rng(0)):
        example = draw()
        asked = example.conversations[0]["value"].removeprefix("<image>\n")
        assert (asked, example.conversations[1]["value"]) in questions
        assert example.images[0].parent.parent.name == "train"


def test_receipts_in_large_type_need_room():
    narrow = {"sizes": Sizes((128, 170), (144, 190)), "least": 12.0}
    assert RenderedSource(Rendered({"snippet": 1.0, "read_word": 1.0}, **narrow), 20)
    with pytest.raises(FoveateError, match="receipt_total needs images of at least 181 x 203 pixels"):
        RenderedSource(Rendered({"receipt_total": 1.0}, **narrow), 20)
    source = RenderedSource(Rendered({"receipt_total": 1.0}, sizes=Sizes((180, 240), (200, 260)), least=12.0), 20)
    for number in range(4):
        for draw in source.draws(range(2), 0.0, np.random.default_rng(number)):
            assert draw().task == "receipt_total"


def test_another_task_stands_in_for_one_that_finds_no_layout(monkeypatch):
    drawn = synthetic.render

    def fails(task, *arguments, **options):
        if task == "sign":
            raise RuntimeError("no layout")
        return drawn(task, *arguments, **options)

    monkeypatch.setattr(synthetic, "render", fails)
    sizes = Sizes((100, 120), (80, 100))
    both = RenderedSource(Rendered({"sign": 1.0, "read_word": 1.0}, sizes=sizes), 20)
    assert {draw().task for draw in both.draws(range(6), 0.0, np.random.default_rng(0))} == {"read_word"}
    alone = RenderedSource(Rendered({"sign": 1.0}, sizes=sizes), 20)
    with pytest.raises(RuntimeError, match="no layout"):
        alone.draws(range(1), 0.0, np.random.default_rng(0))[0]()

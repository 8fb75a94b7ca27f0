"""Cell targets against a loop over characters, and the heads against their definition."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.training.data import Character
from foveate.training.supervision import (
    BLANK,
    NUM_CLASSES,
    UNKNOWN,
    CellReader,
    cell_targets,
    character_class,
    targets_before_last_stage,
)


def slow_targets(characters, image_size, grid, patch_size, num_stages):
    """Every token, every cell of it, every character: the definition, one comparison at a time."""
    rows, columns = grid
    side = 2**num_stages
    width, height = patch_size / 2, patch_size
    tokens = []
    for token_row in range(rows // side):
        for token_column in range(columns // side):
            cells = []
            for row in range(side):
                for column in range(2 * side):
                    left = (token_column * 2 * side + column) * width
                    top = (token_row * side + row) * height
                    found = BLANK
                    for character in characters:
                        x = character.x * columns * patch_size / image_size[0]
                        y = character.y * rows * patch_size / image_size[1]
                        if left <= x < left + width and top <= y < top + height:
                            found = character_class(character.char)
                            break
                    cells.append(found)
            tokens.append(cells)
    return np.array(tokens)


@given(seed=st.integers(0, 10**6), stages=st.integers(0, 3), patch=st.sampled_from([4, 7, 8, 10]))
def test_targets_equal_the_slow_loop(seed, stages, patch):
    rng = random.Random(seed)
    side = 2**stages
    grid = (side * rng.randint(1, 3), side * rng.randint(1, 3))
    # The image had another size before it was resized to the grid.
    width, height = grid[1] * patch + rng.randint(0, 15), grid[0] * patch + rng.randint(0, 15)
    alphabet = "".join(map(chr, range(32, 127))) + "é漢\n"
    count = rng.choice([0, 1, 30])
    characters = [
        Character(rng.choice(alphabet), rng.uniform(-3, width + 3), rng.uniform(-3, height + 3)) for _ in range(count)
    ]
    expected = slow_targets(characters, (width, height), grid, patch, stages)
    actual = cell_targets(characters, (width, height), grid, stages)
    np.testing.assert_array_equal(actual, expected)


def test_of_two_characters_in_a_cell_the_first_stays():
    both = [Character("a", 1, 1), Character("b", 2, 2)]
    assert cell_targets(both, (8, 8), (1, 1), 0).tolist() == [[character_class("a"), BLANK]]
    assert cell_targets(both[::-1], (8, 8), (1, 1), 0).tolist() == [[character_class("b"), BLANK]]


def test_classes():
    assert character_class(" ") == 1
    assert character_class("~") == NUM_CLASSES - 1 == 95
    assert character_class("\n") == character_class("é") == UNKNOWN


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_targets_before_the_last_stage_are_those_of_one_stage_less(stages):
    rng = random.Random(1)
    grid = (2**stages * 2, 2**stages * 3)
    size = (grid[1] * 8, grid[0] * 8)
    characters = [Character(rng.choice("abcdef"), rng.uniform(0, size[0]), rng.uniform(0, size[1])) for _ in range(200)]
    final = torch.from_numpy(cell_targets(characters, size, grid, stages))
    direct = cell_targets(characters, size, grid, stages - 1)
    # The same tokens as windows of 2 x 2, as `Layout.windows` cuts them.
    rows, columns = grid[0] // 2 ** (stages - 1), grid[1] // 2 ** (stages - 1)
    windows = direct.reshape(rows // 2, 2, columns // 2, 2, -1).transpose(0, 2, 1, 3, 4).reshape(len(final), 4, -1)
    assert np.array_equal(targets_before_last_stage(final).numpy(), windows)
    assert (windows != BLANK).any()


def test_scores_are_weighted_sums():
    torch.manual_seed(0)
    head = CellReader(16, 1, True).final
    tokens, targets = torch.randn(5, 16), torch.randint(0, NUM_CLASSES, (5, 8))
    targets[0, :3] = BLANK
    targets[1, :2] = UNKNOWN
    with torch.no_grad():
        score = head.score(tokens, targets, blank_weight=0.25)

    log_probabilities = head(tokens).detach().log_softmax(-1)
    loss = weight = right = characters = 0.0
    for token in range(5):
        for cell in range(8):
            target = int(targets[token, cell])
            if target == UNKNOWN:
                continue
            w = 0.25 if target == BLANK else 1.0
            loss -= w * float(log_probabilities[token, cell, target])
            weight += w
            if target != BLANK:
                characters += 1
                right += int(log_probabilities[token, cell].argmax()) == target
    assert float(score.loss) == pytest.approx(loss, rel=1e-5)
    assert float(score.weight) == pytest.approx(weight)
    assert int(score.correct) == right
    assert int(score.characters) == characters


def test_a_tower_without_stages_has_one_head():
    assert CellReader(16, 0, False).before is None
    assert CellReader(16, 0, False).final.num_cells == 2
    assert CellReader(16, 2, True).final.num_cells == 32
    assert CellReader(16, 2, True).before.num_cells == 8

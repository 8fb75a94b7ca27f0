"""Cell targets against a loop over characters, and the heads against their definition."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.synthetic import Character
from foveate.synthetic.shapes import KINDS
from foveate.training.dense_labels import (
    BLANK,
    CELL_CLASSES,
    NUM_CLASSES,
    UNKNOWN,
    CellReader,
    cell_targets,
    character_class,
    targets_before_last_stage,
    usual_cells,
)


def slow_targets(characters, image_size, tokens, cells):
    """Every token, every cell of it, every character: the definition, one comparison at a time."""
    across, down = tokens[1] * cells[1], tokens[0] * cells[0]
    found_tokens = []
    for token_row in range(tokens[0]):
        for token_column in range(tokens[1]):
            found_cells = []
            for row in range(cells[0]):
                for column in range(cells[1]):
                    left, top = token_column * cells[1] + column, token_row * cells[0] + row
                    found = BLANK
                    for character in characters:
                        height = character.y if character.middle is None else character.middle
                        x, y = character.x * across / image_size[0], height * down / image_size[1]
                        if left <= x < left + 1 and top <= y < top + 1:
                            found = character_class(character.char)
                            break
                    found_cells.append(found)
            found_tokens.append(found_cells)
    return np.array(found_tokens)


@given(seed=st.integers(0, 10**6), cells=st.sampled_from([(1, 2), (2, 4), (8, 16), (2, 6)]))
def test_targets_equal_the_slow_loop(seed, cells):
    rng = random.Random(seed)
    tokens = (rng.randint(1, 3), rng.randint(1, 3))
    width, height = rng.randint(20, 90), rng.randint(20, 90)
    alphabet = "".join(map(chr, range(32, 127))) + "é漢\n"
    characters = []
    for _ in range(rng.choice([0, 1, 30])):
        x, y = rng.uniform(-3, width + 3), rng.uniform(-3, height + 3)
        characters.append(Character(rng.choice(alphabet), x, y, rng.choice([None, y + rng.uniform(-4, 4)])))
    expected = slow_targets(characters, (width, height), tokens, cells)
    actual = cell_targets(characters, (width, height), tokens, cells)
    np.testing.assert_array_equal(actual, expected)


def test_of_two_characters_in_a_cell_the_first_stays():
    both = [Character("a", 1, 1), Character("b", 2, 2)]
    assert cell_targets(both, (8, 8), (1, 1), (1, 2)).tolist() == [[character_class("a"), BLANK]]
    assert cell_targets(both[::-1], (8, 8), (1, 1), (1, 2)).tolist() == [[character_class("b"), BLANK]]


def test_classes():
    assert character_class(" ") == 1
    assert character_class("~") == NUM_CLASSES - 1 == 95
    assert character_class("\n") == character_class("é") == UNKNOWN
    assert character_class("circle") == NUM_CLASSES
    assert character_class(KINDS[-1]) == CELL_CLASSES - 1
    assert character_class("cloud") == UNKNOWN


@pytest.mark.parametrize("cells", [(2, 4), (4, 8), (8, 16), (2, 6)])
def test_targets_before_the_last_stage_are_those_of_a_quarter(cells):
    rng = random.Random(1)
    size = (96, 64)
    characters = [Character(rng.choice("abcdef"), rng.uniform(0, size[0]), rng.uniform(0, size[1])) for _ in range(200)]
    final = torch.from_numpy(cell_targets(characters, size, (2, 3), cells))
    direct = cell_targets(characters, size, (4, 6), (cells[0] // 2, cells[1] // 2))
    # The same tokens as windows of 2 x 2, as `Layout.windows` cuts them.
    windows = direct.reshape(2, 2, 3, 2, -1).transpose(0, 2, 1, 3, 4).reshape(len(final), 4, -1)
    assert np.array_equal(targets_before_last_stage(final, cells).numpy(), windows)
    assert (windows != BLANK).any()


def test_scores_are_weighted_sums():
    torch.manual_seed(0)
    head = CellReader(16, usual_cells(1), True).final
    tokens, targets = torch.randn(5, 16), torch.randint(0, CELL_CLASSES, (5, 8))
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
    assert CellReader(16, usual_cells(0), False).before is None
    assert CellReader(16, usual_cells(0), False).final.num_cells == 2
    assert CellReader(16, usual_cells(2), True).final.num_cells == 32
    assert CellReader(16, usual_cells(2), True).before.num_cells == 8

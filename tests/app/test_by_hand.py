"""Tokens chosen by hand: exactly these are read, and a click changes exactly one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import FoveateError, ask, load
from foveate.app.by_hand import ALL_TOKENS, Board, ByHand
from foveate.core.registry import all_methods
from foveate.core.tokens import VisualTokens
from tests.tiny_model import noise, save_internvl, save_llava, save_llava_uhd


@pytest.fixture(scope="module", params=["llava-uhd", "llava"])
def model(request, tmp_path_factory):
    save = {"llava-uhd": save_llava_uhd, "llava": save_llava}[request.param]
    return load(save(tmp_path_factory.mktemp(request.param)))


def board_of(model, image):
    return Board.of(ask(image, "?", model, ALL_TOKENS, max_new_tokens=1), image, "a.png")


def test_exactly_the_chosen_tokens_are_read(model):
    image = noise(64, 64)
    count = board_of(model, image).count
    kept = (0, 3, count - 1)
    answer = ask(image, "?", model, ByHand(kept, count), max_new_tokens=4)
    assert answer.selection[0]["kept"] == list(kept) and answer.tokens.read == 3
    assert len(answer.selection[0]["dropped"]) == count - 3


def test_the_choice_of_a_method_made_by_hand_gives_its_answer(model):
    image = noise(64, 64)
    random = ask(image, "?", model, "random:25%", max_new_tokens=8)
    [chosen] = random.selection
    by_hand = ask(image, "?", model, ByHand(tuple(chosen["kept"]), chosen["tokens_in"]), max_new_tokens=8)
    assert by_hand.text == random.text and by_hand.tokens == random.tokens
    every = ask(image, "?", model, board_of(model, image).method, max_new_tokens=8)
    assert every.text == ask(image, "?", model, max_new_tokens=8).text and every.inert


@pytest.mark.parametrize("kept", [(), (2, 1), (1, 1), (-1, 2), (1, 9)])
def test_what_is_no_choice_is_refused(kept):
    with pytest.raises(FoveateError, match="keep at least one|ascending, different, and between 0 and 8"):
        ByHand(kept, 9)


def test_a_choice_is_of_one_image_and_no_method_of_the_registry():
    tokens = VisualTokens.of_grid(torch.randn(6, 3), (2, 3))
    assert ByHand((1, 4), 6)(tokens, None).indices.tolist() == [1, 4]
    with pytest.raises(FoveateError, match="in an image of 9 tokens, and this one has 6"):
        ByHand((1, 4), 9)(tokens, None)
    assert ByHand.name not in all_methods()


def test_a_click_drops_the_token_under_it_and_another_keeps_it_again(model):
    image = Image.new("RGB", (64, 64), "orange")
    board = board_of(model, image)
    rows, columns = board.document["crops"][0]["grid"]
    width, height = board.picture.size
    row, column = rows - 1, 1
    point = (column + 0.5) * width / columns, (row + 0.5) * height / rows
    once = board.clicked(*point)
    assert board.kept - once.kept == {row * columns + column}
    changed = (np.asarray(board.picture) != np.asarray(once.picture)).any(axis=2)
    down, across = changed.nonzero()
    assert down.min() >= row * height // rows - 1 and across.max() <= (column + 1) * width // columns + 1
    assert once.clicked(*point).kept == board.kept
    assert board.clicked(-1, 5) is board and board.clicked(5, height) is board
    assert once.method == ByHand(tuple(sorted(once.kept)), rows * columns)
    with pytest.raises(FoveateError, match="keep at least one"):
        _ = board.keeping(()).method


def test_tiles_are_refused_in_a_sentence(tmp_path, model):
    tiled, wide = load(save_internvl(tmp_path)), noise(96, 32)
    answer = ask(wide, "?", tiled, ALL_TOKENS, max_new_tokens=1)
    assert len(answer.selection) > 1
    one = ask(wide, "?", model, ALL_TOKENS, max_new_tokens=1)
    [document] = one.selection
    with_thumbnail = replace(one, selection=[document | {"crops": document["crops"] * 2}])
    for refused in (answer, with_thumbnail):
        with pytest.raises(FoveateError, match="only where a model reads the image as one grid"):
            Board.of(refused, wide, "a.png")

"""The handlers of the page, called as gradio calls them, without a browser."""

from pathlib import Path
from typing import Any

import pytest

import foveate
from tests.tiny_model import noise, save_llava_uhd

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'foveate[app]'")

from foveate.app import page as app
from foveate.app.choices import Choice
from foveate.app.session import Session


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Functions of the page by name."""
    model = foveate.load(save_llava_uhd(tmp_path_factory.mktemp("model")))
    page = app.build(model, "a/model", [Choice("divprune", "DivPrune", "count")], max_new_tokens=2)
    return {block.fn.__name__: block.fn for block in page.fns.values() if block.fn is not None}


@pytest.fixture
def path(tmp_path: Path) -> str:
    noise(64, 64).save(tmp_path / "one.png")
    return str(tmp_path / "one.png")


def shown(updates: list[dict[Any, Any]]) -> dict[str, Any]:
    """What the components show at last, by their ids."""
    last: dict[str, Any] = {}
    for update in updates:
        last |= {getattr(component, "elem_id", None): value for component, value in update.items()}
    return last


@pytest.mark.parametrize("plan", ["", "divprune:50%", "fastv:50%@99"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_question_about_another_image_says_nothing_more(
    handlers: dict[str, Any], path: str, plan: str, steps: int
) -> None:
    """Also where the image is replaced while the very first answer is written, and where a later one fails."""
    session = Session()
    answering = handlers["run"]("image", path, None, "What?", plan, False, session)
    for _ in range(steps):
        next(answering)
    session.file = "another.png"
    updates = list(answering)
    assert len(updates) == 1
    assert not {"notice", "overlay", "python"} & set(shown(updates))


def test_the_code_of_a_question_has_the_length_of_its_answer(handlers: dict[str, Any], path: str) -> None:
    last = shown(list(handlers["run"]("image", path, None, "What?", "", False, Session())))
    assert "max_new_tokens=2)" in str(last["python"].value) and "--max-new-tokens 2" in str(last["shell"].value)


def test_tokens_of_a_replaced_image_are_not_laid_out(
    handlers: dict[str, Any], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    assert shown([handlers["open_board"]("image", path, session)])["board"].visible

    def replaced(*arguments: Any, **options: Any) -> Any:
        session.file = "another.png"
        return foveate.ask(*arguments, **options)

    monkeypatch.setattr(app, "ask", replaced)
    assert "board" not in shown([handlers["open_board"]("image", path, session)])

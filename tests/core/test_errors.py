"""Refusals: a code that is stable, the sentence made of its two halves, and an error that carries both."""

from __future__ import annotations

import ast
import copy
import pickle
from pathlib import Path

import pytest

import foveate
from foveate.core.errors import CODES, FoveateError, Refusal

SOURCE = Path(foveate.__file__).parent


def test_the_sentence_says_what_is_wrong_and_what_is_possible() -> None:
    assert str(Refusal("needs-cls", "it needs [CLS]")) == "it needs [CLS]."
    assert (
        str(FoveateError(Refusal("needs-cls", "it needs [CLS]", "take divprune"))) == "it needs [CLS]; take divprune."
    )


def test_an_error_carries_its_refusal_through_copies_and_processes() -> None:
    refusal = Refusal("no-such-layer", "there is no layer 9", "layers are 0 to 3")
    error = FoveateError(refusal)
    for same in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (same.refusal, same.code, str(same)) == (refusal, "no-such-layer", str(refusal))
        assert same.as_json() == {"code": "no-such-layer", "reason": "there is no layer 9; layers are 0 to 3."}


def test_other_bad_input_has_no_refusal() -> None:
    error = FoveateError("the file is empty.")
    assert error.refusal is None and error.as_json() == {"code": "", "reason": "the file is empty."}


@pytest.mark.parametrize("code", ["", "Needs-CLS", "needs cls", "needs_cls", "-cls", "needs--cls"])
def test_a_code_is_in_kebab_case(code: str) -> None:
    with pytest.raises(ValueError, match="kebab-case"):
        Refusal(code, "no")


def test_meanings_are_known_for_our_codes_and_sentences_for_those_of_others() -> None:
    assert Refusal("needs-cls", "vtc-cls needs it").meaning == CODES["needs-cls"]
    assert Refusal("needs-a-moon", "tides needs a moon").meaning == "tides needs a moon"


def literals(tree: ast.AST) -> list[str]:
    """Codes that a module gives to refusals, as text."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args)
    firsts = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Refusal"]
    return [first.value for first in firsts if isinstance(first, ast.Constant)]


def test_every_code_of_the_package_has_a_meaning_and_is_used() -> None:
    text = {path: path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py") if path.name != "errors.py"}
    used = {code for source in text.values() for code in literals(ast.parse(source))}
    assert used <= set(CODES)
    assert all(any(f'"{code}"' in source for source in text.values()) for code in CODES)

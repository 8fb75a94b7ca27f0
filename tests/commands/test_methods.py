"""The gallery: every method of the registries is there, and what it says of a family is what attaching does."""

import json
from typing import get_args

import pytest

import foveate
from foveate.cli import main
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan, Step, all_methods
from foveate.core.registry import Mechanism, Modality, registered
from foveate.families import families, family_of
from foveate.gallery import gallery
from tests.families.zoo import zoo


def printed(capsys, *arguments):
    assert main(["methods", *arguments]) == 0
    return capsys.readouterr().out


def test_every_method_is_listed(capsys):
    document = json.loads(printed(capsys, "--json"))["methods"]
    assert [entry["name"] for entry in document] == list(all_methods())
    for entry in document:
        assert entry["summary"].endswith(".") and entry["title"] and set(entry["families"]) == set(families())
        assert entry["mechanism"] and set(entry["mechanism"]) <= set(get_args(Mechanism))
        assert entry["modality"] and set(entry["modality"]) <= set(get_args(Modality))
    text = printed(capsys)
    assert all(name in text for name in all_methods())


def test_what_acts_outside_of_plans_has_a_card(capsys):
    others = json.loads(printed(capsys, "--json"))["others"]
    names = {"flash", "hack", "scalekv", "specvlm", "vasparse", "vision-remember", "voco"}
    assert {card["name"] for card in others} == names
    for card in others:
        assert set(card["mechanism"]) <= set(get_args(Mechanism)) and card["modality"] and card["paper"]
        text = printed(capsys, card["name"])
        assert card["use"].split("(")[0].split()[0] in text and "mechanism" in text
    assert all(name in printed(capsys) for name in names)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "must say its mechanism"),
        ({"mechanism": ("magic",)}, "must say its mechanism"),
        ({"mechanism": ("query",)}, "must say its modality"),
        ({"mechanism": ("query",), "modality": ("smell",)}, "must say its modality"),
    ],
)
def test_a_method_without_mechanism_or_modality_is_not_registered(said, words):
    class Base:
        pass

    type("New", (Base,), {"name": "new", "__module__": "here.new", **said})
    with pytest.raises(TypeError, match=words):
        registered(Base, "here", [])


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_a_terminal(capsys, monkeypatch, columns):
    from foveate.commands import methods

    monkeypatch.setattr(methods.console, "width", columns)
    assert max(map(len, printed(capsys).splitlines())) <= columns
    assert max(map(len, printed(capsys, "fastervlm").splitlines())) <= columns


def test_a_pattern_is_a_wildcard_on_names_and_titles(capsys):
    names = [entry["name"] for entry in json.loads(printed(capsys, "DIV*", "--json"))["methods"]]
    assert names == ["divprune"]
    assert "fastervlm" in [entry.name for entry in gallery("*[[]CLS] Attention is All*")]


def test_one_method_in_full(capsys):
    text = printed(capsys, "fastervlm")
    assert "[CLS] Attention is All You Need" in text and "cls attention (or attention received)" in text
    assert "2412.01818" in text and "layer=" in text


def test_no_match_is_one_sentence(capsys):
    assert main(["methods", "divprun"]) == 2
    assert "no method is called 'divprun'; did you mean divprune" in capsys.readouterr().err


@pytest.mark.parametrize("specimen", ["llava", "llava-siglip", "qwen2-vl", "llava-uhd"])
def test_verdicts_are_what_attaching_does(specimen):
    model = zoo()[specimen].model()
    family = family_of(model).name
    for entry in gallery():
        if entry.trained:
            continue
        verdict = entry.families[family]
        try:
            method = all_methods()[entry.name]()
        except FoveateError:
            continue  # needs a file of thresholds
        plan = Plan((Step(method, foveate.core.plan.Budget(tokens=3) if entry.budget == "count" else None),))
        allowed = verdict.outcome != "no" and not (
            specimen == "llava-siglip" and "without [CLS]: not possible" in verdict.why
        )
        if "text_features" in verdict.why:
            continue
        if allowed:
            with foveate.compress(model, plan):
                pass
        else:
            with pytest.raises(FoveateError):
                foveate.compress(model, plan)

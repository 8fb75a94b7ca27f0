"""The gallery: every method of the registries is there, and what it says of a family is what attaching does."""

import json
from typing import get_args

import pytest

import foveate
from foveate.cli import main
from foveate.core.errors import FoveateError, Refusal
from foveate.core.method import Mechanism, Modality, Site
from foveate.core.plan import Plan, Step
from foveate.core.registry import all_methods, registered
from foveate.families import families, family_of
from foveate.gallery import gallery, verdict
from foveate.methods import entries
from foveate.methods.entries import Verdict
from tests.families.zoo import zoo
from tests.refusals import refused


def printed(capsys, *arguments):
    assert main(["methods", *arguments]) == 0
    return capsys.readouterr().out


def test_the_index_is_what_the_classes_say():
    assert list(entries.indexed()) == gallery()  # if not: make docs
    assert entries.INDEX.read_text(encoding="utf-8") == entries.index_of(gallery())


def test_a_damaged_index_is_one_sentence(tmp_path, monkeypatch):
    for content in ("", "{", "[]", '{"methods": [{}]}'):
        path = tmp_path / "index.json"
        path.write_text(content)
        monkeypatch.setattr(entries, "INDEX", path)
        entries.indexed.cache_clear()
        with pytest.raises(FoveateError, match="holds no index of methods"):
            entries.indexed()
    monkeypatch.undo()
    entries.indexed.cache_clear()


def test_methods_of_other_packages_are_listed(capsys, monkeypatch):
    known = all_methods()
    cls = type("Mine", (known["divprune"],), {"name": "mine", "title": "A method of mine", "__doc__": "It is mine."})
    monkeypatch.setattr("foveate.core.registry.all_methods", lambda: {**known, "mine": cls})
    (found,) = json.loads(printed(capsys, "mine", "--json"))["methods"]
    assert (found["name"], found["summary"], found["families"]["llava"]["outcome"]) == ("mine", "It is mine.", "runs")
    assert "mine" in [entry["name"] for entry in json.loads(printed(capsys, "--json"))["methods"]]


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
    names = {
        "flash",
        "hack",
        "llava-mini",
        "quecc",
        "scalekv",
        "specvlm",
        "tokenpacker",
        "vasparse",
        "vision-remember",
        "voco",
    }
    names |= {"convllava", "falcon", "ph-reg", "llava-uhd-v1", "lookupvit", "sit", "stvit"}
    names |= {"adventurer", "oryx_vit", "plain_vit", "stc-cacher"}
    names |= {"echoing-pixels", "llama-avsr", "llama-mtsk", "mome"}
    names |= {"b-vllm", "crosslmm", "hicom", "langdc", "slow-fast", "temporal-pvc", "vqtoken"}
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
    names = [entry["name"] for entry in json.loads(printed(capsys, "DIVP*", "--json"))["methods"]]
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
        outcome = entry.families[family]
        if specimen == "llava-siglip":
            outcome = outcome.without_cls or outcome
        try:
            method = all_methods()[entry.name]()
        except FoveateError:
            continue  # needs a file of thresholds
        plan = Plan((Step(method, foveate.core.plan.Budget(tokens=3) if entry.budget == "count" else None),))
        if "needs-text-features" in outcome.conditions:
            continue
        if method.site is Site.FRAMES:  # the verdict is about `ask`; a live model never sees the file
            with refused("chooses-frames"):
                foveate.compress(model, plan)
            continue
        if "needs-nested-connector" in outcome.conditions:  # the connectors of these models have one length
            with refused("needs-nested-connector"):
                foveate.compress(model, plan)
        elif outcome.outcome == "no":
            with refused(outcome.code):
                foveate.compress(model, plan)
        else:
            with foveate.compress(model, plan):
                pass


def test_a_refusal_with_a_code_of_another_package_is_shown_in_its_words():
    class Tides(all_methods()["divprune"]):
        name = "tides"

        def needs(self, tower):
            raise FoveateError(Refusal("needs-a-moon", "tides needs a moon"))

    found = verdict(Tides(), families()["llava"])
    assert (found.outcome, found.code, found.why) == ("no", "needs-a-moon", "tides needs a moon")
    assert Verdict.from_json(found.as_json() | {"detail": found.detail}) == found

"""Methods by name: what can be registered, what is refused, and what installed packages offer."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import foveate
from foveate import FoveateError, Plan
from foveate.core import registry
from foveate.core.in_decoder import DecoderScorer, LayerTokens
from foveate.core.method import Method, Site, year_of
from foveate.core.pre_llm import PreLLMMethod, PreLLMScorer
from foveate.core.tokens import Selection, VisualTokens
from foveate.methods.kv_cache.base import Hack


@dataclass(frozen=True)
class Last(PreLLMScorer):
    """Keeps the last tokens."""

    step: int = 1

    name: ClassVar[str] = "last"
    title: ClassVar[str] = "The last tokens"
    paper: ClassVar[str] = "arXiv 2412.01818"
    mechanism: ClassVar = ("control",)

    def score(self, tokens: VisualTokens) -> Tensor:
        return torch.arange(len(tokens), device=tokens.device)


@pytest.fixture(autouse=True)
def registry_as_it_was() -> Generator[None]:
    before = dict(registry._methods.added)
    yield
    registry._methods.added.clear()
    registry._methods.added.update(before)
    registry._broken.clear()


def test_a_registered_method_is_one_like_others() -> None:
    assert foveate.register_method(Last) is Last
    assert registry.all_methods()["last"] is Last and registry.methods_at(Site.PRE_LLM)["last"] is Last
    assert list(registry.all_methods()) == sorted(registry.all_methods())
    plan = Plan.of("last(step=2):25% + fastv:50%@2")
    assert plan.steps[0].method == Last(step=2) and str(plan) == "last(step=2):25% + fastv:50%@2"
    tokens = VisualTokens.of_grid(torch.randn(6, 3), (2, 3))
    assert Last()(tokens, 2).indices.tolist() == [4, 5]
    registry.unregister_method("last")
    with pytest.raises(FoveateError, match="unknown method 'last'"):
        Plan.of("last:25%")
    with pytest.raises(FoveateError, match="no method 'last' was registered"):
        registry.unregister_method("last")


def test_a_class_that_is_defined_again_replaces_itself() -> None:
    def define(title_: str) -> Any:
        @foveate.register_method
        @dataclass(frozen=True)
        class Again(Last):
            name: ClassVar[str] = "again"
            title: ClassVar[str] = title_

        return Again

    first, second = define("first"), define("second")
    assert first is not second and registry.all_methods()["again"] is second


def altered(**attributes: Any) -> Any:
    return dataclass(frozen=True)(type("Altered", (Last,), {"__module__": "elsewhere", **attributes}))


class NoDataclass(Last):
    name: ClassVar[str] = "no-dataclass"


@dataclass(frozen=True)
class NoVerb(PreLLMMethod):
    name: ClassVar[str] = "no-verb"
    title: ClassVar[str] = "Nothing"
    mechanism: ClassVar = ("control",)


@dataclass(frozen=True)
class NoMechanism(PreLLMMethod):
    name: ClassVar[str] = "no-mechanism"
    title: ClassVar[str] = "Nothing"

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        raise AssertionError


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (altered(name="divprune"), "the name 'divprune' is taken by foveate.methods.pre_llm.divprune.DivPrune"),
        (altered(name="dart-at"), "needs a name"),
        (altered(name="My Method"), "needs a name of lower-case letters"),
        (altered(name="a+b"), "needs a name"),
        (altered(name="a2+"), "needs a name"),
        (altered(name="no-modality", modality=()), "must say its modality"),
        (altered(name="magic", mechanism=("magic",)), "must say its mechanism"),
        (altered(name="untitled", title=None), "needs a title"),
        (NoMechanism, "must say its mechanism"),
        (NoVerb, "no-verb lacks select"),
        (NoDataclass, "is no frozen dataclass"),
        (Hack, "acts at no site of a plan"),
        (dict, "is no method"),
        (Last(), "is no method"),
    ],
)
def test_what_is_no_method_is_refused_in_a_sentence(what: Any, message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        foveate.register_method(what)


def test_names_among_registered_methods_are_taken_too() -> None:
    foveate.register_method(Last)
    with pytest.raises(FoveateError, match="the name 'last' is taken by tests.core.test_registry.Last"):
        foveate.register_method(altered(name="last"))


def offered(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "foveate.methods" else ())
    registry._load_installed.cache_clear()


def test_an_entry_point_registers_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    offered(monkeypatch, EntryPoint("last", f"{__name__}:Last", "foveate.methods"))
    assert registry.all_methods()["last"] is Last


@pytest.mark.parametrize(
    ("value", "reason"),
    [("no_such_module_here:Lost", "No module named"), (f"{__name__}:altered", "is no method")],
)
def test_a_broken_package_takes_only_its_own_method_away(monkeypatch, value: str, reason: str) -> None:
    offered(monkeypatch, EntryPoint("lost", value, "foveate.methods"))
    with pytest.warns(RuntimeWarning, match="the method 'lost', which a package offers"):
        assert "divprune" in registry.all_methods()
    with pytest.raises(FoveateError, match=f"the method 'lost', .* cannot be used: .*{reason}"):
        Plan.of("lost:25%")


def test_a_file_is_imported_once_and_by_any_process(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "once_method.py"
    file.write_text("import builtins\nbuiltins.times_imported = getattr(builtins, 'times_imported', 0) + 1\n")
    monkeypatch.setenv("FOVEATE_IMPORT", str(file))
    import builtins

    registry.all_methods()
    registry.all_methods()
    registry.import_methods(str(file))
    assert builtins.times_imported == 1  # ty: ignore[unresolved-attribute]
    del builtins.times_imported  # ty: ignore[unresolved-attribute]


def test_a_site_is_its_text() -> None:
    assert Site.PRE_LLM == "pre_llm" and f"{Site.DECODER}" == "decoder"
    assert {cls.site for cls in registry.all_methods().values()} == set(registry.PACKAGES)


def test_the_year_is_that_of_the_number() -> None:
    assert Last.year == 2024 and year_of("arXiv 2210.09461") == 2022
    assert year_of("") is None and year_of("ECCV") is None
    for cls in registry.all_methods().values():
        assert (cls.year is None) == (cls.paper == ""), cls


def test_budgets_are_checked_for_all_sites_alike() -> None:
    with_weights = ("dymu", "query-frames", "diverse-frames")
    every: list[Method] = [cls() for cls in registry.all_methods().values() if cls.name not in with_weights]
    for method in (*every, Hack()):
        if method.budget == "count":
            with pytest.raises(FoveateError, match="needs a budget; write one, such as"):
                method.check_budget(None)
        else:
            method.check_budget(None)
        with pytest.raises(FoveateError, match="takes no budget" if method.budget == "none" else "the least is 1"):
            method.check_budget(0)


def test_scores_decide_and_of_equal_ones_the_first() -> None:
    @dataclass(frozen=True)
    class Equal(PreLLMScorer):
        name: ClassVar[str] = "equal"

        def score(self, tokens: VisualTokens) -> Tensor:
            return torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0, 0.0])

    @dataclass(frozen=True)
    class EqualDecoder(DecoderScorer):
        name: ClassVar[str] = "equal-decoder"

        def layers(self, num_layers: int) -> tuple[int, ...]:
            return (1,)

        def score(self, tokens: LayerTokens) -> Tensor:
            return torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0, 0.0])

    from foveate.testing.layer_tokens import layer_tokens

    tokens = VisualTokens.of_grid(torch.randn(6, 3), (2, 3))
    for count, places in ((1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (5, [0, 1, 2, 3, 4])):
        assert Equal()(tokens, count).indices.tolist() == places
        assert EqualDecoder()(layer_tokens(6), count).indices.tolist() == places
    assert not fields(Equal)

"""Plans: what is written is what is read, and every slip is named."""

import contextlib
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate import FoveateError, Plan
from foveate.core.method import Site
from foveate.core.plan import PLAN_FILE, Budget, Step, parse_plan
from foveate.core.registry import all_methods, methods_at, model_methods

budgets = st.one_of(
    st.integers(1, 10**6).map(lambda n: Budget(tokens=n)),
    st.integers(1, 10000).map(lambda n: Budget(fraction=n / 10000)),
)


def sample(name):
    """A method with defaults, None where it cannot be made without arguments."""
    try:
        return all_methods()[name]()
    except (FoveateError, TypeError):
        return None


NAMES = [name for name in model_methods() if sample(name) is not None]
SAMPLERS = [name for name in methods_at(Site.FRAMES) if sample(name) is not None]


@st.composite
def steps(draw, names=NAMES):
    method = sample(draw(st.sampled_from(names)))
    number = {f.name: f.default for f in dataclasses.fields(method) if f.init and isinstance(f.default, bool)}
    if number and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(number)))
        method = dataclasses.replace(method, **{name: not number[name]})
    needs = method.budget == "count"
    budget = draw(budgets) if needs or (method.budget == "optional" and draw(st.booleans())) else None
    return Step(method, budget)


@given(st.lists(steps(SAMPLERS), max_size=1), st.lists(steps(), min_size=1, max_size=4))
def test_a_plan_is_read_as_it_is_written(sampler, own):
    plan = Plan((*sampler, *own))
    assert parse_plan(str(plan)) == plan
    assert Plan.of(str(plan).replace(" + ", "  +\n")) == plan


@given(budgets, st.integers(1, 5000))
def test_a_budget_is_between_one_and_all(budget, count):
    assert 1 <= budget.of(count) <= count
    assert Budget.parse(str(budget)) == budget


@given(st.text(alphabet="divprune():%@+,=0123456789. ax'\"[]", max_size=30))
def test_no_text_fails_in_another_way(text):
    with contextlib.suppress(FoveateError):
        assert str(parse_plan(text))


def test_a_plus_in_a_name_and_between_steps():
    plan = parse_plan("prumerge+ + divprune:5")
    assert [step.method.name for step in plan.steps] == ["prumerge+", "divprune"]
    assert parse_plan("hiprune(alpha=0.2):50%+divprune:5").steps[0].method.alpha == 0.2


def test_objects_texts_and_lists_are_plans():
    method = sample("divprune")
    want = parse_plan("divprune:25%")
    assert Plan.of(method, 0.25) == Plan.of(method, "25%") == Plan.of([want.steps[0]]) == Plan.of(want) == want
    assert str(Plan.of(method, 64)) == "divprune:64"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("divprune", "needs a budget"),
        ("divprune:", "no budget"),
        ("divprune:0", "keeps nothing"),
        ("divprune:-3", "keeps nothing"),
        ("divprune:0%", "not between"),
        ("divprune:101%", "not between"),
        ("divprune:nan%", "not between"),
        ("divprune:many", "no budget"),
        ("divprune:2.5", "no budget"),
        ("divprun:64", "did you mean divprune"),
        ("xyz:64", "unknown method 'xyz'; possible are"),
        ("divprune:64@2", "not at decoder layers"),
        ("divprune:64@", "names no layers"),
        ("divprune(k=3):64", "no argument 'k=3'; possible are"),
        ("hiprune(0.1):64", "as name=value"),
        ("hiprune(alpha=7):64", "alpha"),
        ("divprune:64 + ", "cannot be read"),
        ("hiprune(alpha=0.1, alpha=0.2):64", "alpha is given twice"),
        ("fastv:50%@2,3,2", "names a layer twice"),
        ("64", "cannot be read"),
        ("dymu(thresholds=none):64", "thresholds"),
    ],
)
def test_what_is_wrong_is_named(text, message):
    with pytest.raises(FoveateError, match=message):
        parse_plan(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random(seed='x'):64", "seed is a whole number, not"),
        ("random(seed=true):64", "seed is a whole number"),
        ("random(seed=99999999999999999999):64", "seed is a whole number"),
        ("hiprune(alpha=nan):64", "alpha is a number"),
        ("hiprune(alpha=1e999):64", "alpha is a number"),
        ("hiprune(layer=[1]):64", "layer is a whole number or none"),
        ("todre(rule=x):64", "rule is 'k-center' or 'max-sum'"),
        ("dymu(thresholds={1})", "thresholds is a text or a path or a list of numbers"),
        ("divprune:1e999999999%", "no budget"),
        ("divprune:" + "9" * 5000, "no budget"),
    ],
)
def test_values_of_other_kinds_are_refused(text, message):
    with pytest.raises(FoveateError, match=message) as caught:
        parse_plan(text)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a" + " " * 9000 + "(", "cannot be read as a step"),  # minutes, when blanks could be split in four ways
        ("a:" + " " * 9000 + "@x", "cannot be read as a step"),
        ("a" * 10_001, "at most 10,000 characters"),
        (f"random(seed={'-' * 9000}1):64", "nested too deeply"),
        (f"random(seed={'1+' * 4000}1):64", "nested too deeply"),
        (f"random(seed={'[' * 17}{']' * 17}):64", "16 deep"),
        ("pospad(selector=" * 200 + "divprune" + ")" * 200 + ":64", "16 deep"),
        ("pospad(selector=" * 15 + "divprune" + ")" * 15 + ":64", "one other method"),
    ],
)
def test_long_and_deep_texts_end_soon(text, message):
    with pytest.raises(FoveateError, match=message) as caught:
        parse_plan(text)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "path", ["a) + b.json", "a, b=(.json", 'a"b.json', "a'b\".json", "a\\'(.json", "o'clock, x.json"]
)
def test_a_text_may_hold_what_separates_steps(path):
    plan = Plan.of([methods_at(Site.ENCODER)["dymu"](path), "fastv:2@1"])
    assert parse_plan(str(plan)) == plan


def test_a_bare_word_may_hold_a_quote():
    plan = parse_plan("dymu(thresholds=/home/o'neil/t.json, reference=true)")
    assert plan.steps[0].method.arguments == {"thresholds": "/home/o'neil/t.json", "reference": True}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Step("divprune"), "a method object, not 'divprune'"),
        (lambda: Step(sample("divprune"), 64), r"a Budget, such as Budget\(64\), not 64"),
        (lambda: Step(sample("divprune"), Budget(64), (2,)), "not at decoder layers"),
        (lambda: Step(sample("fastv"), Budget(64), 2), r"whole numbers, such as \(2,\), not 2"),
        (lambda: Step(sample("fastv"), Budget(64), (2, 2)), "names a layer twice"),
        (lambda: Plan(("divprune:64",)), "tuple of steps"),
        (lambda: Budget(2.5), "a whole number, not 2.5"),
        (lambda: Budget("64"), "a whole number, not '64'"),
        (lambda: Budget(fraction="half"), "such as 0.25, not 'half'"),
        (lambda: Budget(fraction=True), "such as 0.25, not True"),
    ],
)
def test_parts_that_are_of_other_types_are_refused(make, message):
    with pytest.raises(FoveateError, match=message):
        make()


def test_a_fraction_may_be_a_decimal():
    assert parse_plan("divprune:0.25") == parse_plan("divprune: .25") == parse_plan("divprune:25%")
    assert str(parse_plan("divprune:1.0")) == "divprune:100%"
    for text in ("64.5", "0.0", "-0.5", "1.01", "0.2.5", "nan.", "0.5x"):
        with pytest.raises(FoveateError, match="no budget; write a number of tokens"):
            parse_plan(f"divprune:{text}")


@pytest.mark.parametrize("thing", [3, None, [], ["divprune:64", 4]])
def test_what_is_no_plan(thing):
    with pytest.raises(FoveateError, match="is no plan"):
        Plan.of(thing)


@pytest.mark.parametrize("budget", [[], {}])
def test_what_is_no_budget(budget):
    with pytest.raises(FoveateError, match="is no budget"):
        Plan.of(sample("divprune"), budget)


@pytest.mark.parametrize("budget", [64, 0.25, "64", "25%", np.int64(64), np.float32(0.25), Budget(tokens=64)])
def test_a_budget_beside_a_plan_is_used(budget):
    method = sample("divprune")
    expected = Plan((Step(method, Budget(tokens=64) if str(budget)[:1] == "6" else Budget(fraction=0.25)),))
    for plan in ("divprune", " divprune ", method, Step(method), Plan((Step(method),)), [method], ["divprune"]):
        assert Plan.of(plan, budget) == expected
    assert Plan.of("fastv@2", 64) == Plan.of("fastv:64@2")
    assert Plan.of("divprune:64", 64) == Plan.of("divprune:64")


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("divprune:25%", "'divprune:25%' has a budget, and 50% was given as well"),
        (Plan.of("divprune:64"), "has a budget"),
        (Plan.of("divprune:64").steps[0], "has a budget"),
        ("fastervlm:192 + fastv:50%@2", "any of its 2 steps"),
        (["fastervlm:192", "fastv:50%"], "any of its 2 steps"),
        ("fastervlm + fastv", "needs a budget"),
        ("cmai", "takes no budget"),
        (methods_at(Site.DECODER)["cmai"](), "takes no budget"),
    ],
)
def test_a_budget_beside_a_plan_that_cannot_take_it_is_refused(plan, words):
    with pytest.raises(FoveateError, match=words):
        Plan.of(plan, 0.5)


def test_budget_is_one_of_two():
    for wrong in ({}, {"tokens": 1, "fraction": 0.5}):
        with pytest.raises(FoveateError, match="one of the two"):
            Budget(**wrong)


def test_saved_and_read(tmp_path):
    plan = parse_plan("hiprune(alpha=0.2):25% + divprune:7")
    assert Plan.read(tmp_path) is None
    assert plan.save(tmp_path).name == PLAN_FILE
    assert Plan.read(tmp_path) == plan
    with pytest.raises(FoveateError, match="no folder"):
        plan.save(tmp_path / "missing")
    for broken in ("{", "{}", "[]", "[" * 100_000, '{"plan": 3}', '{"plan": "nothing:3"}'):
        (tmp_path / PLAN_FILE).write_text(broken)
        with pytest.raises(FoveateError):
            Plan.read(tmp_path)

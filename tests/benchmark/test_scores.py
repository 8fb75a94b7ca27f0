"""The rows of a result, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from foveate import FoveateError
from foveate.benchmark.budgets import budget_of, control_of, product, with_controls
from foveate.benchmark.scores import method_of, scores
from foveate.core.plan import Plan
from foveate.core.registry import all_methods

PLANS = ("full model", "random:25%", "downsample:25%", "divprune:25%")


def answer(plan: str, task: str, index: int, text: str, right: str, turn: int = 0, kept: int = 100) -> dict[str, Any]:
    row = {"model": "m", "plan": plan, "task": task, "index": index, "turn": turn, "text": text, "answer": right}
    return row | {"right": text == right, "tokens_in": 100, "tokens_kept": kept}


def given(texts: dict[str, str], task: str, right: str, turn: int = 0, kept: int = 100) -> list[dict[str, Any]]:
    """Answers of plans, one letter an item."""
    return [
        answer(plan, task, n, text, right[n], turn, 100 if plan == "full model" else kept)
        for plan, letters in texts.items()
        for n, text in enumerate(letters)
    ]


def found(rows: list[dict[str, Any]], tasks: tuple[str, ...], plans: tuple[str, ...] = PLANS) -> dict[Any, Any]:
    return {(row["plan"], row["task"]): row for row in scores(rows, ["m"], lambda _: plans, tasks)}


def test_figures_of_one_task():
    rows = given(
        {"full model": "aaaab", "downsample:25%": "abbab", "random:25%": "bbbbb", "divprune:25%": "aabab"},
        "table_cell",
        "aaaaa",
        kept=25,
    )
    table = found(rows, ("table_cell",))
    own = table["divprune:25%", "table_cell"]
    assert (own["count"], own["right"], own["accuracy"], own["relative"]) == (5, 3, 0.6, 0.75)
    assert own["low"] < 0.6 < own["high"] and own["relative_low"] < 0.75 < own["relative_high"]
    assert own["agreement"] == 0.8
    # The smaller image loses items 1 and 2 of the four that the full model knows.
    assert own["difficult"] == {"count": 2, "accuracy": 0.5, "full_model": 1.0}
    assert table["random:25%", "all"]["difficult"] == {"count": 2, "accuracy": 0.0, "full_model": 1.0}
    assert (own["tokens_in"], own["tokens_kept"], own["majority"]) == (100, 25, 1.0)
    assert (own["method"], own["budget"]) == ("divprune", "25%")
    whole = table["full model", "table_cell"]
    assert (whole["relative"], whole["relative_low"], whole["agreement"], whole["difficult"]) == (1.0, 1.0, 1.0, None)


def test_tasks_have_the_same_weight_in_groups_and_all():
    rows = given({"full model": "aaaa", "divprune:25%": "aaab"}, "sign", "aaaa")
    rows += given({"full model": "ab", "divprune:25%": "bb"}, "read_word", "aa")
    rows += given({"full model": "a", "divprune:25%": "a"}, "count_shapes", "a")
    plans = ("full model", "divprune:25%")
    table = found(rows, ("sign", "read_word", "count_shapes"), plans)
    assert table["divprune:25%", "group:reading"]["accuracy"] == (0.75 + 0) / 2
    assert table["full model", "group:reading"]["accuracy"] == (1 + 0.5) / 2
    assert table["divprune:25%", "group:reading"]["relative"] == 0.5
    every = table["divprune:25%", "all"]
    assert (every["accuracy"], every["count"], every["right"]) == (pytest.approx((0.75 + 0 + 1) / 3, abs=1e-4), 7, 4)
    assert every["relative"] == pytest.approx(1.75 / 2.5, abs=1e-4)
    assert every["agreement"] == pytest.approx((0.75 + 0.5 + 1) / 3, abs=1e-4)
    assert every["difficult"] is None  # the smaller image was not asked
    assert ("divprune:25%", "group:counting") in table and ("divprune:25%", "group:charts") not in table


def test_chats_are_also_scored_by_first_and_later_questions():
    rows = given({"full model": "aa", "divprune:25%": "aa"}, "chat", "aa")
    rows += given({"full model": "aa", "divprune:25%": "bb"}, "chat", "aa", turn=1)
    table = found(rows, ("chat",), ("full model", "divprune:25%"))
    assert table["divprune:25%", "chat"]["accuracy"] == 0.5
    assert table["divprune:25%", "group:chat, first question"]["accuracy"] == 1
    assert table["divprune:25%", "group:chat, later questions"]["accuracy"] == 0
    # Both questions of an image are drawn together, and both chats went alike: nothing varies.
    assert (table["divprune:25%", "chat"]["low"], table["divprune:25%", "chat"]["high"]) == (0.5, 0.5)


def test_second_questions_are_scored_where_the_first_was_right_in_both_orders():
    """T1V_T2V / T1V: five first answers are right, of these two second ones; the full model has three of four."""
    rows = given({"full model": "aab", "divprune:25%": "aaa"}, "chat", "aaa")
    rows += given({"full model": "aba", "divprune:25%": "abb"}, "chat", "aaa", turn=1)
    rows += given({"full model": "aab", "divprune:25%": "aab"}, "chat_swapped", "aaa")
    rows += given({"full model": "aab", "divprune:25%": "aba"}, "chat_swapped", "aaa", turn=1)
    plans = ("full model", "divprune:25%")
    table = found(rows, ("chat", "chat_swapped"), plans)
    own, whole = (table[plan, "group:chat, second after first"] for plan in reversed(plans))
    assert (own["count"], own["right"], own["accuracy"]) == (5, 2, 0.4)
    assert (whole["count"], whole["right"], whole["accuracy"], whole["relative"]) == (4, 3, 0.75, 1.0)
    assert own["relative"] == pytest.approx(0.4 / 0.75, abs=1e-4) and own["low"] < 0.4 < own["high"]
    # Chats in the other order are the same pages again: all tasks together do without.
    assert table["divprune:25%", "all"]["accuracy"] == table["divprune:25%", "chat"]["accuracy"]
    assert not any("second after" in task for _, task in found(rows, ("chat",), plans))


def test_only_questions_of_both_are_compared_and_numbers_are_read_as_such():
    rows = given({"full model": "aa", "divprune:25%": "a"}, "sign", "aa")
    rows.append(answer("divprune:25%", "sign", 7, "x", "x"))
    table = found(rows, ("sign",), ("full model", "divprune:25%"))
    assert table["divprune:25%", "sign"]["count"] == 1
    rows = [answer("full model", "sign", 0, "1,000", "7"), answer("divprune:25%", "sign", 0, "1000.0", "7")]
    assert found(rows, ("sign",), ("full model", "divprune:25%"))["divprune:25%", "sign"]["agreement"] == 1
    assert found(rows, ("sign",), ("full model",))["full model", "sign"]["relative"] is None


def test_controls_stand_at_every_budget():
    assert with_controls(["divprune:64", "full model", "dart : 64", "prumerge", "pool:25%", "random:25%"]) == (
        *("full model", "random:64", "downsample:64", "divprune:64", "dart:64"),
        *("random:25%", "downsample:25%", "pool:25%", "prumerge"),
    )
    assert with_controls(["hiprune:50% + fastv:50%@1,2", "fastv:25%"]) == (
        *(
            "full model",
            "random:50%",
            "downsample:50%",
            "random:50% + random-decoder:50%@1,2",
            "hiprune:50% + fastv:50%@1,2",
        ),
        *("random:25%", "downsample:25%", "random-decoder:25%", "fastv:25%"),
    )
    assert with_controls([]) == ("full model",)
    with pytest.raises(FoveateError, match="unknown method"):
        with_controls(["nothing:64"])


@pytest.mark.parametrize(
    ("plan", "control"),
    [
        ("divprune:64", "random:64"),
        ("divprune:64 + pool:50%", "random:32"),
        ("pyramiddrop:50%", "random-decoder:50%@2,4,6"),
        ("pyramiddrop:50%@1,3", "random-decoder:50%@1,3"),
        ("hiprune:50% + fastv:25%@2", "random:50% + random-decoder:25%@2"),
        ("prumerge", None),
        ("hiprune:50% + sparsevlm", None),
    ],
)
def test_a_control_acts_where_its_plan_acts(plan: str, control: str | None) -> None:
    assert control_of(plan, num_layers=8) == control


@pytest.mark.parametrize(
    ("plan", "budget"),
    [
        ("full model", None),
        ("divprune:64", "64"),
        ("fastervlm:192 + fastv:50%@2", "192"),
        ("fastv:50%@2", "50%"),
        ("prumerge", None),
        ("prumerge + divprune:50%", None),
        ("prumerge + divprune:64", "64"),
        ("divprune:50% + dart:50%", "25%"),
        ("divprune:64 + dart:50%", "32"),
        ("tome:50% + prumerge", None),
    ],
)
def test_the_budget_of_a_plan(plan, budget):
    assert budget_of(plan) == budget
    assert plan == "full model" or budget_of(Plan.of(plan)) == budget


def test_products_of_methods_and_budgets():
    assert product(["divprune", "dart"], ["64", "25 %"]) == ["divprune:64", "dart:64", "divprune:25%", "dart:25%"]
    every = {plan.split(":")[0] for plan in product([], ["25%"])}
    assert {"random", "downsample", "divprune", "pool"} <= every <= set(all_methods())
    assert not any(all_methods()[name].trained for name in every)
    with pytest.raises(FoveateError, match="methods nothing are not known; possible are cdpruner"):
        product(["nothing"], ["64"])
    with pytest.raises(FoveateError, match="no budget"):
        product(["divprune"], ["many"])


def test_names_of_methods():
    assert method_of("fastervlm:192 + divprune:50%") == "fastervlm + divprune"
    assert method_of("full model") == "full model"

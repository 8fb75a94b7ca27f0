"""What a report is made of: files that are read, the Pareto front, plots, tables."""

import io
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveate.benchmark.results import INERT, inert
from foveate.core.registry import all_methods
from foveate.report import read
from foveate.report.charts import (
    HEIGHT,
    LETTER_WIDTH,
    WIDTH,
    Chart,
    Point,
    front,
    slug,
    time_charts,
    tokens_charts,
)
from foveate.report.grouping import GROUPS, group_of
from foveate.report.html import Cell, Column, Row, table
from foveate.report.rendering import png, svg
from foveate.report.tables import accuracy, best, joint, name_of, speed, tint
from tests.benchmark import result_documents as documents

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_rows_of_the_three_kinds_are_read(tmp_path):
    made = {"a": documents.accuracy(), "s": documents.speed(), "j": documents.joint()}
    results = read([Path(path) for path in documents.save(tmp_path, **made)])
    assert [source.kind for source in results.sources] == ["accuracy", "speed", "joint"]
    assert [len(results.accuracy), len(results.speed), len(results.joint)] == [36, 9, 4]
    assert results.accuracy[0]["budget"] == "" and results.accuracy[-1]["budget"] == "50"
    assert results.models == ["small"] and results.methods == ["divprune", "downsample", "fastv", "random"]
    assert results.impossible == made["a"]["impossible"]


def test_reasons_of_older_results_have_no_code(tmp_path):
    document = documents.accuracy()
    del document["impossible"][0]["code"]
    [path] = documents.save(tmp_path, a=document)
    (line,) = read([Path(path)]).impossible
    assert (line["code"], line["reason"]) == ("", "focusui needs trained weights.")


def test_what_may_be_missing_is_none(tmp_path):
    document = documents.accuracy()
    needed = ("model", "plan", "task", "count", "accuracy", "low", "high", "tokens_kept")
    document["rows"] = [{name: row[name] for name in needed} for row in document["rows"]]
    del document["impossible"], document["hardware"]
    [path] = documents.save(tmp_path, a=document)
    results = read([Path(path)])
    assert results.accuracy[-1]["method"] == "fastv" and results.accuracy[-1]["relative"] is None
    assert results.sources[0].hardware == {}


def test_a_plan_that_leaves_nothing_out_says_so_in_every_table(tmp_path):
    """It is never the best one, and rows of older files say what they have."""
    plans = documents.PLANS | {"divprune:90": (100, 1.0), "cmai": (100, 0.9)}
    made = {name: getattr(documents, name)(plans=plans) for name in ("accuracy", "speed")} | {
        "joint": documents.joint()
    }
    for row in made["speed"]["rows"]:
        if "@" in row["plan"] or row["plan"] == "cmai":  # inside the language model: it reads all of them at first
            row["tokens"], row["tokens_mean"], row["tokens_left"] = 100, float(row["tokens"]), row["tokens"]
    for row in made["joint"]["rows"]:
        row["tokens_in"], row["tokens_kept"] = 100, 100
    results = read([Path(path) for path in documents.save(tmp_path, **made)])
    for shown in (accuracy, speed):
        assert shown(results, str).count(INERT) == 2, shown
    assert joint(results, str).count(INERT) == 2
    assert "divprune:90" not in best(results, str) and "fastv:50@1" in best(results, str)
    assert not inert({"plan": "full model", "tokens_in": 100, "tokens": 100})
    assert inert({"plan": "divprune:100%", "tokens_in": 100, "tokens": 100})
    assert not inert({"plan": "fastv:50%@2", "tokens_in": 100, "tokens": 100})  # of an older file: nobody knows
    assert not inert({"plan": "fastv:50%@2", "tokens_in": 100, "tokens": 100, "tokens_mean": 75.0})


@pytest.mark.parametrize("name", ["selection-cpu", "selection-cpu-llava-next", "selection-cpu-qwen2.5-vl"])
def test_files_of_the_earlier_command_are_speed(name):
    results = read([RESULTS / f"{name}.json"])
    assert len(results.speed) > 5 and not results.accuracy
    row = next(row for row in results.speed if row["method"] == "divprune")
    assert row["plan"] == f"divprune:{row['budget']}" and row["device"] == "cpu"
    assert row["seconds"]["ttft"] > row["seconds"]["encoder"] and row["seconds"]["preprocess"] is None


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_the_front_is_what_nothing_beats(places):
    points = [point(f"p{number}", x, y / 10) for number, (x, y) in enumerate(places)]
    found = {(one.x, one.y) for one in front(points)}
    wanted = {
        (a.x, a.y)
        for a in points
        if not any(b.x <= a.x and b.y >= a.y and (b.x, b.y) != (a.x, a.y) for b in points)
    }  # fmt: skip
    assert found == wanted
    assert len(found) == len(front(points))  # of equal ones one


def point(plan: str, x: float, y: float) -> Point:
    return Point(
        plan, plan.split(":")[0], group_of(plan.split(":")[0]), "", x, y, max(0, y - 0.1), min(1, y + 0.1), plan
    )


def test_labels_of_the_front_lie_in_the_frame_and_apart():
    rng = random.Random(0)
    for _ in range(5):
        points = [point(f"fastervlm:{n}", 10 * 2 ** rng.uniform(0, 5), rng.random()) for n in range(80)]
        chart = Chart("c", "m", "t", "tokens", tuple(points))
        boxes = [(one.x, one.y - 6, one.x + LETTER_WIDTH * len(one.text), one.y + 6) for one in chart.labels]
        assert len(boxes) == len(chart.front) > 2
        for number, box in enumerate(boxes):
            assert 0 <= box[0] < box[2] <= WIDTH and 0 <= box[1] < box[3] <= HEIGHT
            assert not any(a[0] < box[2] and box[0] < a[2] and a[1] < box[3] and box[1] < a[3] for a in boxes[:number])


def test_of_equal_plans_one_is_named_and_the_others_counted():
    chart = Chart("c", "m", "t", "x", tuple(point(f"{name}:9", 9, 0.5) for name in ("dart", "vmtc", "pool")))
    assert [label.text for label in chart.labels] == ["dart:9 and 2 equal"]


@pytest.mark.parametrize(
    "places",
    [
        [(576, 0.5)],
        [(64, 0.5), (64, 0.5)],
        [(64, 0), (576, 1)],
        [(0.0, 0.2), (3.0, 0.4)],
        [(0.002, 0.31), (0.003, 0.3101)],
    ],
)
def test_axes_hold_every_point(places):
    chart = Chart("c", "m", "t", "x", tuple(point(f"dart:{n}", *place) for n, place in enumerate(places)))
    for one in chart.points:
        x, y = chart.place(one.x, one.y)
        assert 40 < x < WIDTH and 0 < y < HEIGHT - 40
    for one in chart.front:  # with their intervals
        assert chart.limits[1][0] <= one.low and one.high <= chart.limits[1][1]
    assert all(chart.limits[0][0] <= tick <= chart.limits[0][1] for tick in chart.x_ticks)
    assert 1 <= len(chart.x_ticks) < 12 and 1 <= len(chart.y_ticks) < 12
    assert svg(chart).count('class="p ') == svg(chart, "dart").count('class="p ') == len(places)
    assert svg(chart, "vmtc").count("h0") == len(places)
    assert Image.open(io.BytesIO(png(chart))).format == "PNG"


def test_charts_join_accuracy_and_time_of_the_same_plans(tmp_path):
    speed = documents.speed()
    speed["rows"] = [row for row in speed["rows"] if row["plan"] != "fastv:50@1"]
    paths = documents.save(tmp_path, a=documents.accuracy(), s=speed, other=documents.accuracy("another"))
    results = read([Path(path) for path in paths])
    assert [chart.model for chart in tokens_charts(results)] == ["small", "another"]
    [chart] = time_charts(results)
    assert (chart.model, len(chart.points)) == ("small", 8)
    found = {one.plan: (one.x, one.y) for one in chart.points}
    assert found["divprune:10"] == pytest.approx((0.07, 0.6))
    assert [one.plan for one in tokens_charts(results)[0].front] == ["divprune:10", "fastv:50@1", "full model"]
    assert "90" in chart.x_text(0.09) and "ms" in chart.x_label


def test_a_model_in_a_folder_has_one_name_in_all_results(tmp_path):
    paths = documents.save(tmp_path, a=documents.accuracy("runs/small"), s=documents.speed())
    results = read([Path(path) for path in paths])
    assert results.models == ["small"] and len(time_charts(results)) == 1
    paths = documents.save(tmp_path, a=documents.accuracy("one/small"), b=documents.accuracy("other/small"))
    assert read([Path(path) for path in paths]).models == ["one/small", "other/small"]  # two models keep two names


def test_a_machine_that_gets_slower_moves_no_mark(tmp_path):
    speed = documents.speed()
    for row in speed["rows"]:
        if row["plan"].endswith(":50"):  # twice as long, as was the full model beside them: the speed-up stays
            row["seconds"]["ttft"] *= 2
    [accuracy] = documents.save(tmp_path, a=documents.accuracy())
    paths = documents.save(tmp_path, one=documents.speed(), two=speed)
    [before], [after] = (time_charts(read([Path(accuracy), Path(path)])) for path in paths)
    assert {one.plan: one.x for one in before.points} == pytest.approx({one.plan: one.x for one in after.points})


def test_times_of_the_smallest_batch_are_drawn(tmp_path):
    speed = documents.speed()
    speed["rows"] += [row | {"batch": 8, "seconds": row["seconds"] | {"ttft": 9.0}} for row in speed["rows"]]
    paths = documents.save(tmp_path, a=documents.accuracy(), s=speed)
    [chart] = time_charts(read([Path(path) for path in paths]))
    assert max(one.x for one in chart.points) < 1


def test_every_registered_method_has_a_family():
    assert {group_of(name).key for name in all_methods()} <= set(GROUPS) - {"other", "full-model"}
    names = ("random", "downsample", "divprune", "fastv", "tome", "cdpruner", "hiprune")
    keys = ["control", "control", "features", "decoder", "encoder", "prompt", "attention"]
    assert [group_of(name).key for name in names] == keys
    assert group_of("no such").key == "other"


def test_markup_in_cells_is_text():
    found = table("<b>", [Column("<i>", '"x"')], [Row([Cell("<script>", link='" onclick="')], {"model": "'\"<"})])
    assert "<script>" not in found and "<b>" not in found and "<i>" not in found
    assert 'onclick="' not in found.replace("&quot; onclick=&quot;", "")


def test_colours_follow_what_is_lost():
    assert [tint(value, 0.8) for value in (0.8, 0.6, 0.1, 0.9)] == [0, 25, 50, -12]
    assert tint(0.5, None) == tint(None, 0.5) == tint(0.5, 0) == 0


def test_names():
    assert name_of("group:yes/no") == "yes/no" and name_of("read_word") == "read word"
    assert name_of("some/where/my questions.jsonl") == "my questions.jsonl"
    assert slug("../../Ab c/d") == "ab-c-d" and slug("prumerge+") == "prumerge+"

"""Searches for plans: a known winner is found, stopping changes nothing, bad input is said in a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from foveate import FoveateError, compress, load
from foveate.benchmark.accuracy import answer_items
from foveate.benchmark.tasks import Item, items
from foveate.cli import main
from foveate.core.errors import Refusal
from foveate.tune import Goal, TuneSettings, factor, front, methods_in, plot, run, search, share, verdict
from foveate.tune.confirmation import controls_of
from foveate.tune.costs import Costs
from foveate.tune.questions import divided
from foveate.tune.scoring import Flow
from foveate.tune.space import Candidate, Space
from foveate.tune.study import Study
from tests.refusals import refused

pytestmark = pytest.mark.xdist_group("tune")

#: The plan whose own answers are the right ones in the data set below.
WINNER = "uniform:12.5%"
METHODS, BUDGETS = ("uniform", "vtw"), ("12.5%", "40%")
#: What the search may not differ in from run to run: times are not counted operations.
SMALL: dict[str, Any] = {"cost": "flops", "chains": False, "repeats": 1, "threads": 1, "sides": (128, 128)}


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    return load(plan=None)


@pytest.fixture(scope="module", autouse=True)
def _loaded_once(embedded) -> Generator[None]:
    """The embedded model need not be read from disk for every run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "load", lru_cache(lambda *args, **kwargs: embedded))
        yield


@pytest.fixture(scope="module")
def data(embedded, tmp_path_factory) -> Path:
    """Questions whose right answers are those of WINNER, of every fourth those of the full model."""
    folder = tmp_path_factory.mktemp("data")
    asked = list(items("read_word", 32, sides=(128, 128), difficulty=0.3))
    answers = {plan: answer_items(*embedded, plan, asked) for plan in (WINNER, "full model")}
    entries = []
    for number, item in enumerate(asked):
        text = answers["full model" if number % 4 == 0 else WINNER][number]["text"]
        item.images[0].save(folder / f"{number}.png")
        turns = [{"from": "human", "value": f"<image>\n{item.turns[0][0]}"}, {"from": "gpt", "value": text or "?"}]
        entries.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    path = folder / "questions.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def settings(data) -> TuneSettings:
    return TuneSettings(
        target_ttft=0.99, tasks=(str(data),), count=32, trials=50, methods=METHODS, budgets=BUDGETS, **SMALL
    )


@pytest.fixture(scope="module")
def result(settings, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tuned")
    return folder, run(settings, folder, command="foveate tune")


# What is found


def test_the_plan_whose_answers_are_the_right_ones_wins(result, settings):
    folder, document = result
    assert document["best"] == WINNER
    assert document == json.loads((folder / "tune.json").read_text(encoding="utf-8"))
    assert document["kind"] == "tune" and document["finished"] and document["command"] == "foveate tune"
    assert document["versions"]["optuna"] and document["hardware"]["threads"] == 1
    (best,) = document["confirmation"]
    assert best["accuracy"] > 0.6 > document["full_model"]["confirm"]["accuracy"] > 0
    rows = [json.loads(line) for line in (folder / "answers.rows.jsonl").read_text(encoding="utf-8").splitlines()[1:]]
    own = [row["right"] for row in rows if row["plan"] == WINNER and row["index"] % 4 and row["answer"] != "?"]
    assert len(own) > 16 and all(own)
    assert best["met"] and best["sure"] is None and best["flops"] <= settings.target_ttft
    assert best["ttft"]["median"] > 0 and len(best["ttft"]["all"]) == 2
    assert [control["plan"] for control in best["controls"]] == ["random:12.5%", "downsample:12.5%"]
    for control in best["controls"]:
        low, by, high = (control[f"better_{end}"] for end in ("low", "by", "high"))
        assert low <= by <= high and by > 0
        assert control["noise"] == (low <= 0 <= high)


def test_every_plan_is_tried_once_and_the_front_is_best(result):
    _, document = result
    plans = [record["plan"] for record in document["trials"]]
    assert len(set(plans)) == len(plans) < 50  # asked for 50, and there are fewer
    layers = load(plan=None)[0].config.get_text_config().num_hidden_layers
    assert set(plans) == {"uniform:12.5%", "uniform:40%"} | {f"vtw@{layer}" for layer in range(1, layers)}
    assert document["impossible"] == []
    complete = [record for record in document["trials"] if record["outcome"] == "complete"]
    for record in front(document["trials"]):
        assert not any(other["cost"] <= record["cost"] and other["score"] > record["score"] for other in complete)
    assert WINNER in document["front"]


def test_what_cannot_win_is_stopped_early(result):
    _, document = result
    stopped = [record for record in document["trials"] if record["outcome"] == "stopped"]
    assert stopped and all(record["questions"] == 8 and not record["met"] for record in stopped)
    assert next(record for record in document["trials"] if record["plan"] == WINNER)["questions"] == 16


def test_search_and_confirmation_share_no_question(result, settings):
    folder, document = result
    rows = [json.loads(line) for line in (folder / "answers.rows.jsonl").read_text(encoding="utf-8").splitlines()[1:]]
    losers = {record["plan"] for record in document["trials"]} - {WINNER}
    searched = {row["index"] for row in rows if row["plan"] in losers}
    confirmed = {row["index"] for row in rows if row["plan"] == "random:12.5%"}
    assert len(searched) == len(confirmed) == 16 and not searched & confirmed


def test_a_seed_gives_the_same_trials_and_a_finished_search_is_not_made_again(result, settings, monkeypatch, tmp_path):
    folder, document = result
    monkeypatch.setattr(search, "load", None)  # would be called
    assert run(settings, folder) == document
    space = replace(Space.from_json(document["space"]), chains=True)

    def drawn(seed: int) -> list[str]:
        study, plans = Study(None, {}, seed), []
        for number in range(8):
            trial, plan = study.draw(space, lambda plan: None)
            study.finish(trial, {"plan": plan, "value": float(number)})
            plans.append(plan)
        return plans

    assert drawn(3) == drawn(3) != drawn(4)


# Stopping and going on


@pytest.mark.slow
def test_a_stopped_search_goes_on_to_the_same_trials(result, settings, tmp_path):
    folder, document = result
    copy = tmp_path / "stopped"
    copy.mkdir()
    (copy / "answers.rows.jsonl").write_bytes((folder / "answers.rows.jsonl").read_bytes())

    def stop(done: int, total: int, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, copy, progress=stop)
    part = json.loads((copy / "tune.json").read_text(encoding="utf-8"))
    assert not part["finished"] and part["best"] is None and part["trials"] == document["trials"][:2]
    with (copy / "trials.journal").open("ab") as file:  # a kill cut the last line off
        file.write(b'{"op_code":8,"worker')
    assert run(replace(settings, trials=6), copy)["trials"] == document["trials"][:6]


def test_other_settings_are_refused_in_the_same_folder(result, settings, tmp_path):
    folder, _ = result
    with pytest.raises(FoveateError, match=r"search with other settings \(seed\); choose another folder"):
        run(replace(settings, seed=1), folder)
    (tmp_path / "trials.journal").write_text("nothing of ours\n", encoding="utf-8")
    with pytest.raises(FoveateError, match="not a study of a search"):
        run(settings, tmp_path)
    for described in ({"seed": 1}, {"seed": 2}):  # before the first trial nothing is mixed
        Study(tmp_path / "new.journal", described, 0)


def test_a_model_that_has_changed_is_another_search(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    settings = TuneSettings(model=str(tmp_path), target_ttft=0.5, tasks=("read_word",))
    before = settings.described
    assert settings.described == before
    (tmp_path / "model.safetensors").write_bytes(b"trained further")
    assert {name for name in before if settings.described[name] != before[name]} == {"content of the model"}


def command(data: Path, folder: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "foveate", "tune", "embedded", "--target-ttft", "0.99", "--data", str(data)]
    start += [
        "--count",
        "32",
        "--no-chains",
        "--trials",
        "6",
        "--methods",
        ",".join(METHODS),
        "--budgets",
        ",".join(BUDGETS),
    ]
    return [
        *start,
        "--cost",
        "flops",
        "--repeats",
        "1",
        "--threads",
        "1",
        "--sides",
        "128,128",
        "-o",
        str(folder),
        *more,
    ]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_goes_on(result, data, tmp_path, how):
    _, document = result
    process = subprocess.Popen(command(data, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal, until = tmp_path / "trials.journal", time.monotonic() + 300
    while process.poll() is None and time.monotonic() < until:
        if journal.exists() and journal.read_text(encoding="utf-8").count('"record"') >= 2:
            break
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait(timeout=120) == (130 if how == signal.SIGINT else -signal.SIGKILL)
    done = subprocess.run(command(data, tmp_path, "--json"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trials"] == document["trials"][:6]


# Parts


def test_goals_order_plans():
    fast, good, both = Goal(cost=0.5), Goal(accuracy=0.97), Goal(0.5, 0.97)
    assert fast.value(0.4, 0.9) > fast.value(0.3, 0.8) > fast.value(0.3, 0.0) > fast.value(0.6, None)
    assert fast.value(0.4, 0.9) > fast.value(0.5, 0.9)
    assert good.value(0.3, 0.98) > good.value(0.6, 1.2) > good.value(0.2, 0.96) > good.value(0.1, 0.5)
    assert both.value(0.5, 0.97) > both.value(0.4, 0.96) > both.value(0.6, None) > both.value(0.9, None)
    assert both.met(0.5, 0.97) and not both.met(0.51, 1) and not both.met(0.4, 0.96)
    assert good.met(0.99, 0.97) and not good.met(1, 1)
    assert (factor("0.5x"), factor("50%"), share("97%"), share("0.97")) == (0.5, 0.5, 0.97, 0.97)
    for wrong in ({}, {"cost": 1.0}, {"cost": 0.0}, {"accuracy": 97.0}):
        with pytest.raises(FoveateError):
            Goal(**wrong)


def test_questions_about_one_image_stay_together():
    pictures = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(6)]
    asked = [Item("a", number, (pictures[number % 6],), (("q", "a"),)) for number in range(18)]
    asked += [Item("b", number, (pictures[number % 2 * 5],), (("q", "b"),)) for number in range(8)]
    found = divided(asked, seed=1)
    halves = [{item.images[0].getpixel((0, 0)) for item in half} for half in (found.search, found.confirm)]
    assert not halves[0] & halves[1] and halves[0] | halves[1] == {picture.getpixel((0, 0)) for picture in pictures}
    assert len(found.search) + len(found.confirm) == 26 and found == divided(asked, seed=1)
    assert [item.task for item in found.search[:4]] == ["a", "b", "a", "b"]
    assert found.rungs == (len(found.search),)
    with pytest.raises(FoveateError, match="b has too few images"):
        divided([item for item in asked if item.task == "a" or item.index % 2], seed=1)


def test_a_space_draws_what_its_methods_take():
    before = (Candidate("divprune", False, "count", False), Candidate("prumerge", False, "optional", False))
    inside = (Candidate("fastv", True, "count", True), Candidate("vtw", True, "none", True))
    inside += (Candidate("pyramiddrop", True, "count", False),)
    space = Space(before, inside, ("10%", "50%"), 6, chains=True)
    study, seen = Study(None, {}, 0), set()
    refused = FoveateError(Refusal("saves-nothing", "it is too easy"))
    for _ in range(40):
        trial, plan = study.draw(space, lambda plan: refused if plan == "vtw@1" else None)
        study.finish(trial, {"plan": plan, "value": 0.0})
        seen.add(plan)
    assert len(seen) == 40 and "vtw@1" not in seen
    assert study.impossible == [{"plan": "vtw@1", "code": "saves-nothing", "reason": "it is too easy."}]
    assert any(plan == "prumerge" or plan.startswith("prumerge + ") for plan in seen)
    assert not any("vtw:" in plan or "pyramiddrop:10%@" in plan for plan in seen)
    assert {plan.rpartition("@")[2] for plan in seen if "@" in plan} == {"1", "2", "3", "4", "5"}
    assert Space.from_json(json.loads(json.dumps(space.as_json))) == space


def test_a_control_keeps_as_many_tokens():
    kept = {"tokens_in": 100, "tokens_kept": 42.4}
    assert controls_of("divprune:20%", kept, 4) == ["random:20%", "downsample:20%"]
    assert controls_of("divprune:64", kept, 4) == ["random:64", "downsample:64"]
    assert controls_of("divprune:80% + fastv:20%", kept, 4) == [
        "random:80% + random-decoder:20%@2",
        "downsample:42.4%",
    ]
    assert controls_of("prumerge", kept, 4) == ["random:42.4%", "downsample:42.4%"]


def test_costs_are_those_of_shorter_sequences(embedded):
    costs = Costs(*embedded, list(items("sign", 1, sides=(128, 160))), repeats=1)
    assert 0 < costs.flops("uniform:10%") < costs.flops("uniform:60%") < 1
    assert costs.flops("uniform:100%") == 1
    # Methods that the runtime treats by their class do so under the clock too.
    assert costs.flops("corematching:10%", quick=True) < 1
    measured = costs.time("uniform:10%", repeats=2)
    assert len(measured["all"]) == 2 and measured["min"] <= measured["median"] <= measured["max"]
    with refused("needs-one-token-per-patch"):
        costs.flops("tome:10%")


def test_information_flow_is_the_cosine_of_what_the_answer_begins_from(embedded):
    model, processor = embedded
    asked = list(items("sign", 3, sides=(128, 160)))
    flow = Flow(model, processor, batch_size=2)
    assert flow.score("uniform:100%", asked).value == pytest.approx(1, abs=1e-6)
    found = flow.score("uniform:20%", asked)

    def state(item: Item) -> torch.Tensor:
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.turns[0][0]}]}]
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = processor(images=[list(item.images)], text=[prompt], return_tensors="pt")
        return model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]

    with torch.no_grad():
        whole = [state(item) for item in asked]
        with compress(model, "uniform:20%"):
            short = [state(item) for item in asked]
    cosines = [torch.cosine_similarity(a, b, dim=0) for a, b in zip(whole, short, strict=True)]
    assert found.value == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)
    assert found.value < 0.9999


# The command


def test_the_command_prints_the_plan_and_its_evidence(result, data, capsys):
    folder, document = result
    arguments = command(data, folder)[3:]
    arguments[arguments.index("6")] = "50"
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert f'foveate ask IMAGE "QUESTION" --plan "{WINNER}"' in shown
    assert "Pareto-optimal among" in shown and "random:12.5%" in shown and "new questions" in shown
    assert Image.open(folder / "tune.png").width > 600
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document


def test_a_goal_that_nothing_meets_is_said(result):
    _, document = result
    none = {**document, "trials": [{**one, "met": False} for one in document["trials"]], "confirmation": []}
    said = " ".join(verdict(none))
    assert "met the goal" in said and said.startswith("No plan of") and "Nearest came" in said
    missed = {**document, "confirmation": [{**document["confirmation"][0], "met": False}]}
    assert "the one plan that met the goal" in verdict(missed)[0] and "did not hold" in verdict(missed)[0]
    noisy = [{**control, "noise": True} for control in document["confirmation"][0]["controls"]]
    close = {**document, "confirmation": [{**document["confirmation"][0], "controls": noisy}]}
    assert any("over random:12.5% is within noise" in line for line in verdict(close))


def test_there_is_nothing_to_draw_without_trials(result, tmp_path):
    with pytest.raises(FoveateError, match="nothing to draw"):
        plot({**result[1], "trials": []}, tmp_path / "x.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a search needs a goal"),
        (["--target-ttft", "fast"], "--target-ttft 'fast' is not a number; write it as 0.5x"),
        (["--target-ttft", "2x"], "a target of 2x"),
        (["--min-accuracy", "97"], "write 97%"),
        (["--min-accuracy", "97%", "--cost", "money"], "cost 'money'"),
        (["--min-accuracy", "97%", "--objective", "information-flow"], "give --target-ttft alone"),
        (["--min-accuracy", "97%", "--data", "nowhere.json"], "nowhere.json cannot be read"),
        (["--min-accuracy", "97%", "--budgets", "half"], "'half' is no budget"),
        (["--min-accuracy", "97%", "--count", "1"], "--count"),
        (["--min-accuracy", "97%", "--tasks", "clip_count"], "clip_count is about clips"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(arguments, message, capsys, tmp_path):
    assert main(["tune", "embedded", *arguments, "-o", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and message in said and "\n" not in said
    assert not list(tmp_path.iterdir())


def test_methods_that_cannot_be_searched_are_refused(settings, tmp_path):
    few = replace(settings, tasks=("sign",), count=4, sides=(128, 160))
    with pytest.raises(FoveateError, match="method 'nothing' is not known"):
        run(replace(few, methods=("nothing",)))
    with pytest.raises(FoveateError, match=r"no method remains to search with: tome: tome merges inside"):
        run(replace(few, methods=("tome",)))
    assert methods_in("divprune, hiprune(alpha=0.1, layer=2),fastv") == (
        "divprune",
        "hiprune(alpha=0.1, layer=2)",
        "fastv",
    )

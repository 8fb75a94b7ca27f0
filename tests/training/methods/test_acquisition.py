"""Training a model to ask for more of an image: warm-up, GRPO, resuming and what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("trl", reason="TRL comes with the extra train")

import foveate
from foveate import FoveateError
from foveate.cli import main
from foveate.training.callbacks import StopRequest
from foveate.training.grpo.advantages import dtpo_advantages, turn_weights
from foveate.training.grpo.rollouts import padded
from foveate.training.methods import trainer_of
from foveate.training.methods.shared.acquisition import SHORT, is_correct
from foveate.training.run_directory import RunDirectory
from tests import asking_model
from tests.asking_model import FULL

pytestmark = pytest.mark.xdist_group("asking model")

SMALL = {
    "questions": 2,
    "group": 2,
    "micro_batch": 2,
    "first_tokens": 130,
    "second_tokens": 40,
    "width": 96,
    "height": 64,
}


def trainer(name: str = "visionthink", **options: Any) -> Any:
    cls = trainer_of(name)
    return cls(cls.config_class(**{**SMALL, "prompts": "short", "held_out": 2, "save_every": 1, **options}))


def fit(output: Path, steps: int, stop_after: int | None = None, **options: Any):
    """Train the tiny model that asks, and stop after some steps."""
    one = trainer(steps=steps, learning_rate=1e-4, **options)
    model, processor = foveate.load(asking_model.folder(), device="cpu")
    run, stop = RunDirectory(output, {"model": "m", **one.about()}), StopRequest()

    def progress(stage: str, done: int, total: int, loss: float | None = None) -> None:
        if stage == "GRPO" and done == stop_after:
            stop.request()

    state = one.fit(model, processor, None, run, progress, stop)
    return one, state, run


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_stopped_run_gives_the_weights_of_an_unstopped_one(tmp_path: Path) -> None:
    _, whole, run = fit(tmp_path / "whole", 2, kl=0.1)
    _, half, half_run = fit(tmp_path / "half", 2, stop_after=1, kl=0.1)
    assert (whole.step, whole.finished, half.step, half.finished) == (2, True, 1, False)
    killed = half_run.path / "grpo" / "checkpoint-2"  # while it was written, before its last file
    shutil.copytree(half_run.path / "grpo" / "checkpoint-1", killed)
    (killed / "trainer_state.json").unlink()
    one, resumed, _ = fit(tmp_path / "half", 2, kl=0.1)
    assert resumed.finished
    assert Path(one.describe(resumed.network, resumed)["log"]) == half_run.path / "grpo" / "log.jsonl"
    torch.testing.assert_close(weights(resumed.network), weights(whole.network), atol=1e-6, rtol=1e-5)
    log = [json.loads(line) for line in (run.path / "grpo" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2] and {"reward", "asked_small", "image_tokens"} <= set(log[0])
    assert Image.open(run.path / "grpo" / "curve.png").size == (990, 660)
    one.save(resumed.network, tmp_path / "out")
    model, _ = foveate.load(tmp_path / "out")
    torch.testing.assert_close(weights(model), weights(whole.network), atol=1e-6, rtol=1e-5)
    answer = foveate.ask(one.question(1, "heldout").image, "B", str(tmp_path / "out"), "visionthink", max_new_tokens=3)
    assert answer.plan == "visionthink" and len(answer.turns) == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train-method", "visionthink", "--model", str(asking_model.folder()), "-o", str(tmp_path / "out")]
    arguments += [
        "--steps",
        "0",
        "--warm-up-steps",
        "2",
        "--warm-up-batch",
        "2",
        "--prompts",
        "short",
        "--device",
        "cpu",
    ]
    arguments += ["--held-out", "2", "--width", "96", "--height", "64"]
    arguments += ["--first-tokens", "120", "--second-tokens", "60"]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["finished"] and document["steps"] == 2
    assert Path(document["log"]).is_file()
    rows = document["measured"]
    assert set(rows) == {"policy", "always low", "always full"}
    assert rows["always low"]["image tokens"] < rows["always full"]["image tokens"]
    assert rows["policy"]["accuracy"]["count"] == 2 and "asked (small print)" in rows["policy"]


@pytest.mark.parametrize("name", ["visionthink", "adaptvision"])
def test_scripts_of_the_warm_up_are_well_formed(name: str) -> None:
    """Half of the pages have small print, and whether the model asks does not depend on it."""
    one = trainer(name)
    method = one.acquisition()
    asked, small = [], []
    for number in range(200):
        question = one.question(-1 - number, "train")
        texts, full = one.script(question, number)
        call = method.read_call(texts[0], question.image.size)
        assert (call is not None) == (len(texts) == 2) and not (full and call)
        asked.append(call is not None)
        small.append(question.about["small"])
        if call is not None and name == "adaptvision":
            left, top, right, bottom = question.about["box"]
            assert call.box[0] <= left and call.box[1] <= top and call.box[2] >= right and call.box[3] >= bottom
    assert sum(small) == 100
    by_need = [sum(a for a, s in zip(asked, small, strict=True) if s == need) for need in (True, False)]
    assert all(25 <= count <= 60 for count in by_need)


def test_scores_of_rollouts() -> None:
    """Rewards reach the tokens: right answers of a group have larger advantages than wrong ones."""
    one = trainer(group=4)
    model, processor = foveate.load(asking_model.folder(), device="cpu")
    conversation = one.conversation(model, processor)
    question = one.question(1, "train")
    right, wrong = (asking_model.answer(text) for text in (question.answer, "x"))
    turns = [[right], [FULL, right], [wrong], [FULL, wrong]]
    # The tiny model's scripts have no thoughts in their calls, so that their format is wrong.
    rollouts = [conversation.scripted(question, texts) for texts in turns]
    assert [is_correct(rollout) for rollout in rollouts] == [True, True, False, False]
    scored = one.score(rollouts, padded([rollout.turns for rollout in rollouts], 0))
    assert scored.rewards.tolist() == pytest.approx([1.5, 0.9, 0.5, 0.0])
    assert scored.measured["asked_small"] == 0.5 and scored.measured["correct_small"] == 0.5
    for rollout, row in zip(rollouts, scored.advantages, strict=True):
        used = torch.tensor(rollout.turns) > 0
        assert len(set(row[: len(used)][used].tolist())) == 1 and not row[: len(used)][~used].any()


def test_scores_of_crops() -> None:
    one = trainer("adaptvision", group=4)
    model, processor = foveate.load(asking_model.folder(), device="cpu")
    conversation = one.conversation(model, processor)
    question = one.question(1, "train")
    good = "<think></think>" + one.call(question, 0)
    bad = "<think></think>" + asking_model.call("request_local_region", bbox_2d=[0, 0, 3, 3])
    right = asking_model.answer(question.answer)
    rollouts = [conversation.scripted(question, texts) for texts in ([right], [good, right], [bad, right], [good, "x"])]
    turns = padded([rollout.turns for rollout in rollouts], 0)
    scored = one.score(rollouts, turns)
    tool, outcome = torch.tensor([0.0, 0.1, 0.0, 0.1]), torch.tensor([1.5, 1.4, 1.4, 0.0])
    expected = dtpo_advantages(tool, outcome, turns, 4) * turn_weights(turns)
    torch.testing.assert_close(scored.advantages, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scored.rewards, tool + outcome)
    # A group whose rewards are all alike takes no part in the loss, and none in the shares of first and last turns.
    alike = [rollouts[-1]] * 4
    more = one.score([*rollouts, *alike], padded([rollout.turns for rollout in (*rollouts, *alike)], 0))
    torch.testing.assert_close(more.advantages[:4, : turns.shape[1]], scored.advantages)


def test_scores_of_image_quality() -> None:
    cls: Any = trainer_of("q-insight")
    one = cls(cls.config_class(group=2))
    model, processor = foveate.load(asking_model.folder(), device="cpu")
    conversation = one.conversation(model, processor)
    tasks = set()
    for number in range(12):
        question = one.question(number, "train")
        tasks.add(question.about["task"])
        (text,), _ = one.script(question, number)
        wrong = "<think></think><answer>{}</answer>"
        right = question.about["right"]
        rollouts = [conversation.scripted(question, [answer]) for answer in (right, wrong)]
        scored = one.score(rollouts, padded([rollout.turns for rollout in rollouts], 0))
        assert scored.rewards.tolist() == [2.0, 1.0]  # the format alone
        assert text.startswith("<think>")
    assert tasks == {"score", "degradation", "comparison"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, "steps and warm_up_steps are 0 or more, and not both 0"),
        ({"group": 1}, "group must be 2 or more"),
        ({"kl": -1.0}, "kl, entropy and clip_high must be 0 or more"),
        ({"learning_rate": 0.0}, "learning_rate must be greater than 0"),
        ({"first_tokens": 0}, "first_tokens must be 1 or more"),
    ],
)
def test_impossible_options(options: dict, sentence: str) -> None:
    with pytest.raises(FoveateError, match=sentence):
        trainer(**options)


def test_impossible_runs(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="2 questions of 2 rollouts cannot be divided into passes of 3"):
        fit(tmp_path / "out", 1, micro_batch=3)
    with pytest.raises(FoveateError, match=r"none\.json holds no prompts"):
        trainer(prompts=str(tmp_path / "none.json")).prompts()
    assert trainer(prompts="short").prompts() == SHORT

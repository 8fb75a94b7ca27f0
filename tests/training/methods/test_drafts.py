"""Training of drafts: what they learn from, interrupted runs, the trained folder in use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import foveate
from foveate.answering import ask
from foveate.answering.conversations import inputs_of
from foveate.commands.train_method import train_method
from foveate.core.errors import FoveateError
from foveate.loading import load
from foveate.methods.decoding import Draft, draft_kinds, load_draft
from foveate.runtime.speculative import target_of
from foveate.training.callbacks import StopRequest
from foveate.training.examples import Example
from foveate.training.methods import trainer_of
from foveate.training.methods.shared.drafts import loss_of, measure, record_conversation
from foveate.training.run_directory import RunDirectory
from tests.tiny_model import noise, save_llava, save_llava_uhd

Loaded = tuple[Any, Any]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(save_llava(tmp_path_factory.mktemp("model")), device="cpu")


def example(number: int = 0) -> Example:
    return Example.of_question(noise(40, 40, number), f"What is this, number {number}?", f"A picture, {number}.")


def draft_for(model: Any, kind: str = "specvlm", **chosen: Any) -> Draft:
    cls = draft_kinds()[kind]
    return cls.new(cls.config_class.of(model, **chosen))


def trainer_for(kind: str, **options: Any) -> Any:
    trainer = trainer_of(kind)
    return trainer(trainer.config_class(**options))


def test_what_is_heard_of_own_answers_is_what_the_model_would_read(loaded: Loaded) -> None:
    """Features gathered while the model writes are those of one pass over prompt and answer."""
    model, processor = loaded
    heard = record_conversation(model, processor, example(), 7)
    prompt = inputs_of(model, processor, noise(40, 40), "What is this, number 0?")
    answer = model.generate(**prompt, max_new_tokens=7, do_sample=False)
    with torch.no_grad():
        whole = model(
            input_ids=answer[:, :-1], pixel_values=prompt["pixel_values"], output_hidden_states=True, use_cache=False
        )
    assert heard.prompt == prompt["input_ids"].shape[1]
    torch.testing.assert_close(heard.features, whole.hidden_states[-1][0], atol=1e-4, rtol=1e-4)
    assert torch.equal(heard.visual, answer[0, :-1] == model.config.image_token_index)
    embedded = model.get_input_embeddings()(answer[:, :-1])[0]
    assert torch.equal(heard.embeddings[~heard.visual], embedded[~heard.visual])
    said = model.get_output_embeddings()(heard.features[heard.prompt - 1 :]).argmax(-1)
    assert torch.equal(said, answer[0, heard.prompt :])


def test_answers_of_the_data_are_heard_too(loaded: Loaded) -> None:
    model, processor = loaded
    heard = record_conversation(model, processor, example(), None)
    text = processor.tokenizer("A picture, 0.", add_special_tokens=False)["input_ids"]
    written = heard.embeddings[heard.prompt :]
    assert torch.equal(written, model.get_input_embeddings()(torch.tensor(text)))


@pytest.mark.parametrize("kind", ["specvlm", "flash"])
def test_the_loss_is_that_of_the_answer(loaded: Loaded, kind: str) -> None:
    """A draft that guesses every feature of the answer has no distance left."""
    model, processor = loaded
    heard = record_conversation(model, processor, example(), 7)
    target, draft = target_of(model), draft_for(model, kind)
    written = len(heard.features) - heard.prompt

    def knowing(features: Any, following: Any, visual: Any, prompt: int, generator: Any) -> torch.Tensor:
        assert len(features) == len(following) == len(heard.features) - 1
        torch.testing.assert_close(following[:-1], heard.embeddings[1:-1])
        found = torch.full((len(features), draft.guesses, features.shape[1]), 1e6)
        for place in range(heard.prompt - 1, len(features)):
            ahead = heard.features[place + 1 : place + 1 + draft.guesses]
            found[place, : len(ahead)] = ahead
        return found

    draft.forward = knowing  # ty: ignore[invalid-assignment]
    loss = loss_of(draft, target, heard, torch.Generator())
    with torch.no_grad():
        said = target.log_probabilities(heard.features[heard.prompt :])
        weights = torch.tensor([min(place + 1, draft.guesses) for place in range(written)])
        entropy = -(said.exp() * said).sum(-1)
    assert float(loss.detach()) == pytest.approx(0.1 * float((weights * entropy).sum() / weights.sum()), rel=1e-4)


def test_an_answer_of_one_token_teaches_nothing(loaded: Loaded) -> None:
    model, processor = loaded
    draft = draft_for(model)
    loss = loss_of(draft, target_of(model), record_conversation(model, processor, example(), 1), torch.Generator())
    loss.backward()
    assert float(loss.detach()) == 0


@pytest.mark.parametrize("kind", ["specvlm", "flash"])
def test_training_makes_passes_fewer_and_leaves_the_model_alone(loaded: Loaded, kind: str, tmp_path: Path) -> None:
    model, processor = loaded
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new = draft_for(model, kind, queries=4)
    trainer = trainer_for(kind, steps=40, batch_size=1, learning_rate=1e-2, queries=4, max_new_tokens=12)
    trained = trainer.fit(model, processor, lambda n: example(), RunDirectory(tmp_path / "d", {}))
    assert trained.finished
    log = [json.loads(line)["loss"] for line in (tmp_path / "d.run" / "log.jsonl").read_text().splitlines()]
    assert len(log) == 40 and sum(log[-5:]) < 0.5 * sum(log[:5])
    rows = [measure(model, processor, draft.eval(), [example()], 12) for draft in (new, trained.network)]
    for row in (*rows[0].values(), *rows[1].values()):
        assert row["answers"] == row["identical"] == 1
        assert row["speed_up"] == row["seconds_alone"] / row["seconds"]
    for way in ("default", "chain"):
        assert rows[1][way]["acceptance_length"] > rows[0][way]["acceptance_length"]
    assert rows[1]["chain"]["acceptance_length"] >= 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["specvlm", "flash"])
def test_a_stopped_run_gives_the_same_weights(loaded: Loaded, kind: str, tmp_path: Path) -> None:
    model, processor = loaded
    options: dict[str, Any] = {"steps": 4, "batch_size": 2, "max_new_tokens": 5}
    fit, arguments = trainer_for(kind, **options).fit, (model, processor, example)
    whole = fit(*arguments, RunDirectory(tmp_path / "whole", {})).network
    stop = StopRequest()
    first = fit(*arguments, RunDirectory(tmp_path / "d", {}),
                lambda stage, step, steps, loss: stop.request() if step == 2 else None, stop)  # fmt: skip
    assert first.step == 2 and not first.finished
    again = fit(*arguments, RunDirectory(tmp_path / "d", {}))
    assert again.finished
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    with pytest.raises(FoveateError, match="other settings"):
        trainer_for(kind, **options, seed=1).fit(*arguments, RunDirectory(tmp_path / "d", {}))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(save_llava_uhd(tmp_path / "model"))
    output = tmp_path / "draft"
    options: dict[str, Any] = {"steps": 2, "batch_size": 1, "held_out": 2, "device": "cpu", "max_new_tokens": 4}
    train_method("specvlm", output, model=model, max_minutes=0, as_json=True, **options)
    assert json.loads(capsys.readouterr().out)["finished"] is False
    assert not output.exists()
    train_method("specvlm", output, model=model, as_json=True, **options)
    document = json.loads(capsys.readouterr().out)
    assert document["finished"] and document["samples"] == 2
    for row in document["measured"].values():
        assert row["answers"] == row["identical"] == 2
    assert load_draft(output).kind == "specvlm"
    with pytest.raises(FoveateError, match="another steps"):
        train_method("specvlm", output, model=model, **(options | {"steps": 3}))

    image = tmp_path / "image.png"
    noise(64, 64).save(image)
    alone = ask(image, "What?", model, max_new_tokens=6)
    answer = ask(image, "What?", model, max_new_tokens=6, draft=output)
    assert answer.text == alone.text and alone.draft is None
    assert answer.draft is not None and answer.draft["tokens"] == answer.tokens.generated == alone.tokens.generated
    assert answer.to_dict()["draft"]["passes"] >= 1
    beside = ask(image, "What?", model, "divprune:3", max_new_tokens=6, draft=output)
    assert beside.text == ask(image, "What?", model, "divprune:3", max_new_tokens=6).text and beside.draft is not None
    with pytest.raises(FoveateError, match="holds no draft"):
        ask(image, "What?", model, draft=tmp_path)


def test_a_file_of_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(save_llava_uhd(tmp_path / "model"))
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    turns = [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": "red, all of it"}]
    (tmp_path / "data.json").write_text(json.dumps([{"image": "red.png", "conversations": turns}]))
    train_method("flash", tmp_path / "draft", model=model, data=(tmp_path / "data.json",), own_answers=False, steps=2,
                 batch_size=1, held_out=1, max_new_tokens=4, device="cpu", as_json=True)  # fmt: skip
    assert json.loads(capsys.readouterr().out)["method"] == "flash"
    assert foveate.methods.decoding.load_draft(tmp_path / "draft").kind == "flash"


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="--limit is for files"):
        train_method("specvlm", tmp_path / "d", limit=3)
    with pytest.raises(FoveateError, match="no folder"):
        train_method("specvlm", tmp_path / "none" / "d")
    model = str(save_llava_uhd(tmp_path / "model"))
    with pytest.raises(FoveateError, match="a compressor is gate"):
        train_method("specvlm", tmp_path / "d", model=model, compressor="zip", device="cpu")

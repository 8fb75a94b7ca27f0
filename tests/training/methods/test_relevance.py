"""Training of the method `relevance`: targets against loops, interrupted runs, the trained file in use."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import foveate
from foveate.commands.train_method import train_method
from foveate.core.errors import FoveateError
from foveate.methods.pre_llm.relevance import Mapper
from foveate.training.callbacks import StopRequest
from foveate.training.examples import Example
from foveate.training.methods.relevance import (
    RelevanceTrainConfig,
    RelevanceTrainer,
    collect_relevance_maps,
    kept_shares,
    split_maps,
)
from foveate.training.methods.shared.questions import file_samples, rendered_samples
from foveate.training.methods.shared.relevance_targets import RelevanceMap, answer_relevance, explain, read_example
from foveate.training.run_directory import RunDirectory, quiet
from tests.families.zoo import END, IMAGE, zoo
from tests.tiny_model import save_llava, save_llava_uhd
from tests.training.small_training import write_conversations

ANSWER = torch.tensor([5, 6, 7])


def stop_at(wanted: str, number: int, stage: str, done: int, total: int, loss: float | None) -> None:
    if (stage, done) == (wanted, number):
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["llava", "qwen2-vl"])
def test_target_and_attention_equal_the_loop(name: str) -> None:
    model = zoo()[name].model()
    inputs = zoo()[name].prompts(model, [((3, 4),)])
    (picture,) = explain(model, inputs, ANSWER)
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    assert all(parameter.requires_grad for parameter in model.parameters())
    columns = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    prompt = inputs["input_ids"].shape[1]
    whole = dict(inputs)
    written = {"input_ids": ANSWER[None], "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    written |= {"mm_token_type_ids": torch.zeros(1, 3, dtype=torch.int32)} if "mm_token_type_ids" in inputs else {}
    for key, more in written.items():
        whole[key] = torch.cat([inputs[key], more], dim=1)
    model.set_attn_implementation("eager")
    try:
        output = model(**whole, output_attentions=True)
        places = range(prompt - 1, prompt + 2)
        likelihood = sum(output.logits[0, i].log_softmax(-1)[whole["input_ids"][0, i + 1]] for i in places)
        gradients = torch.autograd.grad(likelihood, output.attentions)
        first = model(**inputs, output_attentions=True).attentions[0][0].detach()
    finally:
        model.set_attn_implementation("sdpa")
    size, heads = prompt + 3, 4
    slow = [[float(i == j) for j in range(size)] for i in range(size)]
    for a, g in zip(output.attentions, gradients, strict=True):
        parts = (a[0] * g[0]).tolist()
        m = [[sum(max(0.0, parts[h][i][j]) for h in range(heads)) / heads for j in range(size)] for i in range(size)]
        slow = [[slow[i][j] + sum(m[i][k] * slow[k][j] for k in range(size)) for j in range(size)] for i in range(size)]
    found = [sum(slow[i][j] for i in places) for j in columns.tolist()]
    expected = torch.tensor(found) / sum(found)
    torch.testing.assert_close(picture.target.flatten(), expected, rtol=1e-4, atol=1e-6)
    ids = inputs["input_ids"][0].tolist()
    text = [place for place in range(int(columns[-1]) + 1, prompt) if ids[place] != END]
    looked = torch.stack([first[:, i, columns].mean(dim=0) for i in text]).mean(dim=0)
    torch.testing.assert_close(picture.attention.flatten(), looked, rtol=1e-4, atol=1e-6)


def test_a_token_whose_value_is_masked_out_has_no_relevance() -> None:
    model = zoo()["llava"].model()
    inputs = zoo()["llava"].prompts(model, [((4, 4),)])
    columns = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    hidden = int(columns[5])

    def hide(module: nn.Module, args: object, output: Tensor) -> Tensor:
        seen = torch.ones(output.shape[1], 1)
        seen[hidden] = 0
        return output * seen

    with ExitStack() as hooks:
        for layer in model.model.language_model.layers:
            hooks.callback(layer.self_attn.v_proj.register_forward_hook(hide).remove)
        relevance = answer_relevance(model, inputs, ANSWER)
        (picture,) = explain(model, inputs, ANSWER)
    assert relevance[-3:, hidden].tolist() == [0, 0, 0]
    target = picture.target.flatten()
    assert target[5] == 0 and int((target > 0).sum()) == 15


def test_own_answers_are_the_greedy_ones_and_crops_are_pictures() -> None:
    model = zoo()["llava-next"].model()
    inputs = zoo()["llava-next"].prompts(model, [((5, 8),)])
    own = explain(model, inputs, 4)
    with torch.no_grad():
        said = model.generate(**inputs, do_sample=False, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    given = explain(model, inputs, said)
    assert len(own) == len(given) >= 2
    for one, other in zip(own, given, strict=True):
        torch.testing.assert_close(one.target, other.target)
        assert abs(float(one.target.sum()) - 1) < 1e-5 and not one.target[~one.present].any()


def pictures(count: int) -> list[list[RelevanceMap]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        attention = torch.rand(3 + number % 3, 5, generator=generator)
        target = 1 / (0.1 + attention**2)  # what the first layer overlooks
        found.append([RelevanceMap(attention, target / target.sum(), torch.ones_like(attention, dtype=torch.bool))])
    return found


def test_training_learns_and_an_interrupted_one_gives_the_same_weights(tmp_path: Path) -> None:
    learned, held = split_maps(pictures(40))
    assert (len(learned), len(held)) == (36, 4)
    trainer = RelevanceTrainer(RelevanceTrainConfig(epochs=12, batch_size=8, learning_rate=1e-2))
    state = torch.get_rng_state()
    whole = RunDirectory(tmp_path / "whole", {"seed": 0})
    mapper = trainer.fit_mapper(learned, held, whole).network
    assert torch.equal(torch.get_rng_state(), state)
    lines = whole.log.read()
    assert len(lines) == 12 and lines[-1]["held_out_loss"] < 0.3 * lines[0]["held_out_loss"]
    shares = kept_shares(mapper, held)["25%"]
    assert shares["mapper"] > 0.9 * shares["relevance"] and shares["attention"] < shares["random"] < shares["mapper"]

    with pytest.raises(KeyboardInterrupt):
        trainer.fit_mapper(learned, held, RunDirectory(tmp_path / "parts", {"seed": 0}), partial(stop_at, "mapper", 5))
    parts = RunDirectory(tmp_path / "parts", {"seed": 0})
    stop = StopRequest()
    stopped = trainer.fit_mapper(
        learned, held, parts, lambda stage, done, *_: stop.request() if done == 8 else None, stop
    )
    assert not stopped.finished and len(parts.log.read()) == 8
    again = trainer.fit_mapper(learned, held, parts).network
    assert all(torch.equal(a, b) for a, b in zip(mapper.parameters(), again.parameters(), strict=True))
    assert [line["loss"] for line in parts.log.read()] == [line["loss"] for line in lines]
    other = RelevanceTrainer(RelevanceTrainConfig(epochs=2)).fit_mapper(learned, held, parts).network  # from the start
    assert not torch.equal(other.layers[0].weight, mapper.layers[0].weight) and len(parts.log.read()) == 2


def test_samples_are_explained_once(tmp_path: Path) -> None:
    model, processor = foveate.load(save_llava(tmp_path / "model"))
    data = write_conversations(tmp_path, 3)
    samples = file_samples([data], None, None, 0)
    with pytest.raises(KeyboardInterrupt):
        collect_relevance_maps(
            model, processor, samples, RunDirectory(tmp_path / "a", {}), None, partial(stop_at, "relevance", 2)
        )
    half = sorted((tmp_path / "a.run" / "samples").iterdir())
    assert len(half) == 2

    def nothing() -> Example:
        raise AssertionError("a sample that is known was made again")

    going_on = RunDirectory(tmp_path / "a", {})
    found = collect_relevance_maps(model, processor, [nothing, nothing, samples[2]], going_on, None, quiet)
    fresh = collect_relevance_maps(model, processor, samples, RunDirectory(tmp_path / "b", {}), None, quiet)
    for one, other in zip(chain(*found), chain(*fresh), strict=True):
        assert torch.equal(one.target, other.target) and torch.equal(one.attention, other.attention)
        assert one.target.shape == (8, 8)


def test_the_command_and_the_file_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_llava_uhd(tmp_path / "model")
    data = write_conversations(tmp_path, 8)
    output = tmp_path / "mapper.safetensors"
    about: dict[str, Any] = {"model": str(folder), "data": (data,), "epochs": 3}
    options = about | {"max_new_tokens": 2, "own_answers": True}
    train_method("relevance", output, limit=6, as_json=True, max_minutes=0, **options)
    assert json.loads(capsys.readouterr().out)["finished"] is False
    train_method("relevance", output, limit=6, as_json=True, **options)
    document = json.loads(capsys.readouterr().out)
    assert (document["samples"], document["images"], document["held_out"]) == (6, 5, 1)
    assert set(document["measured"]) == {"25%", "50%"}
    assert set(document["measured"]["50%"]) == {"mapper", "attention", "random", "relevance"}
    before = load_file(output)
    train_method("relevance", output, limit=6, **options)
    assert all(torch.equal(value, before[name]) for name, value in load_file(output).items())
    assert "held-out" in capsys.readouterr().out
    with pytest.raises(FoveateError, match="another answers"):
        train_method("relevance", output, **about)
    with pytest.raises(FoveateError, match="contains a run already"):
        train_method("relevance", output, resume=False, **options)

    for name in ("llava", "qwen2-vl"):
        specimen = zoo()[name]
        model, inputs = specimen.model(), specimen.prompts(specimen.model(), [((4, 4),), ((4, 4),)])
        with foveate.compress(model, f"relevance(weights={json.dumps(str(output))}):50%") as handle, torch.no_grad():
            model.generate(**inputs, do_sample=False, max_new_tokens=2)
        for report in handle.report().images:
            assert len(report.selection) == 8
    (picture,) = explain(model, specimen.prompts(model, [((4, 4),)]), ANSWER)
    with torch.no_grad():
        best = Mapper.load(output)(picture.attention).flatten().topk(8).indices.sort().values
    first = next(report for report in handle.report().images if report.row == 0)
    assert torch.equal(first.selection.indices, best)


def test_several_turns_and_images(tmp_path: Path) -> None:
    model, processor = foveate.load(save_llava(tmp_path))
    image = Image.new("RGB", (40, 40), "red")
    turns = [("human", "<image>\nFirst?"), ("gpt", "one"), ("human", "And <image> now </s>?"), ("gpt", "two"),
             ("human", "Last?"), ("gpt", "three")]  # fmt: skip
    example = Example([image, image], [{"from": who, "value": what} for who, what in turns])
    inputs, answer = read_example(model, processor, example)
    said = processor.decode(inputs["input_ids"][0])
    assert "one" in said and "now" in said and "Last" not in said
    assert processor.decode(answer, skip_special_tokens=True) == "two"
    assert int(answer[-1]) == processor.tokenizer.eos_token_id
    assert len(explain(model, inputs, answer)) == 2


def test_rendered_samples_are_the_same_whatever_their_number() -> None:
    few, many = rendered_samples(2, seed=1), rendered_samples(4, seed=1)
    assert isinstance(many[1], partial) and [draw.args for draw in few] == [draw.args for draw in many[:2]]
    assert len({draw.args for draw in many}) == 4


def test_bad_input(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "model")
    output = tmp_path / "mapper.safetensors"
    lines = tmp_path / "text.jsonl"
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    lines.write_text(json.dumps({"conversations": turns}))
    cases = [
        ({"data": (lines,), "rendered": 4, "output": output}, "leave out one"),
        ({"limit": 4, "output": output}, "--limit is for files"),
        ({"data": (lines,), "output": output}, "no conversation there shows an image"),
        ({"data": (tmp_path / "none.jsonl",), "output": output}, "cannot be read"),
        ({"data": (write_conversations(tmp_path, 3),), "output": tmp_path / "none" / "x"}, "there is no folder"),
        ({"data": (write_conversations(tmp_path, 1),), "output": tmp_path / "x"}, "give more samples"),
        ({"output": output, "learning_rate": 0.0}, "learning_rate must be"),
    ]
    for arguments, said in cases:
        with pytest.raises(FoveateError, match=said):
            train_method("relevance", model=str(folder), **arguments)
    assert not output.exists()
    model, processor = foveate.load(folder)
    samples = file_samples([write_conversations(tmp_path, 3)], None, None, 0)
    with (
        foveate.compress(model, "random:50%"),
        pytest.raises(FoveateError, match="sample 0: the plan 'random:50%' is"),
    ):
        collect_relevance_maps(model, processor, samples, RunDirectory(tmp_path / "y", {}), None, quiet)

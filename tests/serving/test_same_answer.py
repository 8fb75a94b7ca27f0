"""The same weights give the same greedy answer from library, pipeline, server, file of questions, Ray and vLLM.

A small random LLaVA in float32, whose answers are readable, with plans of every kind. A way to ask is a function below,
from the model's folder and the cases to the answers; another way is another function in `WAYS`. Each runs where its
package is: vLLM has an environment of its own (`make test-vllm`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoProcessor, LlamaConfig, LlavaForConditionalGeneration

import foveate
from foveate.batch import Question, answer_questions
from foveate.cli import main
from foveate.runtime import handle_of
from tests.serving.live_server import asking, data_uri, running
from tests.tiny_model import SPREAD, noise, save_llava, text_config

#: A plan ("full model": none), a picture and a question.
Case = tuple[str, Path, str]
PLANS = ("full model", "divprune:9", "pool:25%", "fastv:50%@1")
#: Plans that vLLM refuses: they act in its layers.
NOT_IN_VLLM = ("fastv:50%@1",)
QUESTIONS = ("What is it?", "How many are there, and which is the largest one?")
WRITTEN = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA with heads that engines have kernels for; it writes nothing but visible ASCII."""
    path = save_llava(tmp_path_factory.mktemp("llava"))
    config = AutoConfig.from_pretrained(path)
    wider = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 32}
    config.text_config = LlamaConfig(**{**text_config().to_dict(), **wider})
    config.vision_config.initializer_range = SPREAD
    model = LlavaForConditionalGeneration(config)
    visible = torch.tensor([33 <= token < 127 for token in range(config.text_config.vocab_size)])
    with torch.no_grad():
        model.get_output_embeddings().weight[~visible] = 0
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    found = []
    for number in range(2):
        path = tmp_path_factory.mktemp("pictures") / f"{number}.png"
        noise(5, 5, number).resize((48, 32), Image.Resampling.BICUBIC).save(path)  # neighbours are alike
        found.append(path)
    return [(plan, path, question) for plan in PLANS for path in found for question in QUESTIONS]


@pytest.fixture(scope="module")
def expected(folder: Path, cases: list[Case]) -> list[str]:
    """Processor, `generate` and `foveate.compress`, one question at a time."""
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    answers = []
    for plan, path, question in cases:
        content = [{"type": "image", "image": Image.open(path)}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        handle = None if plan == "full model" else foveate.compress(model, plan)
        output = model.generate(**inputs, max_new_tokens=WRITTEN, do_sample=False)
        answers.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        if handle is not None:
            handle.restore()
    assert all(len(answer) == WRITTEN for answer in answers)
    assert len(set(answers)) > len(answers) // 2  # pictures, questions and plans make a difference
    return answers


def ask(folder: Path, cases: list[Case]) -> list[str]:
    """`foveate.ask`."""
    model = foveate.load(folder, plan=None)
    plans = [None if plan == "full model" else plan for plan, _, _ in cases]
    return [
        foveate.ask(path, question, model, plan, max_new_tokens=WRITTEN).text
        for plan, (_, path, question) in zip(plans, cases, strict=True)
    ]


def pipeline(folder: Path, cases: list[Case]) -> list[str]:
    """The pipeline of transformers, on a model that a plan is attached to."""
    answering = transformers.pipeline("image-text-to-text", model=str(folder))
    answers = []
    for plan, path, question in cases:
        content = [{"type": "image", "image": Image.open(path)}, {"type": "text", "text": question}]
        handle = None if plan == "full model" else foveate.compress(answering.model, plan)
        said = answering(
            text=[{"role": "user", "content": content}],
            generate_kwargs={"max_new_tokens": WRITTEN, "do_sample": False},
            return_full_text=False,
        )
        answers.append(said[0]["generated_text"])
        if handle is not None:
            handle.restore()
    return answers


def server(folder: Path, cases: list[Case]) -> list[str]:
    """`foveate serve`, over HTTP."""
    with running(*foveate.load(folder, plan=None)) as served:
        client = served.client()
        return [
            client.chat.completions.create(
                model="embedded",
                messages=asking(question, data_uri(path.read_bytes())),
                max_tokens=WRITTEN,
                extra_body={"foveate": {"plan": plan}},
            )
            .choices[0]
            .message.content
            for plan, path, question in cases
        ]


def batch(folder: Path, cases: list[Case], *options: str) -> list[str]:
    """`foveate batch`."""
    asked, out = folder / "questions.jsonl", folder / "answers.jsonl"
    entries = [{"plan": plan, "image": str(path), "question": question} for plan, path, question in cases]
    asked.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    out.unlink(missing_ok=True)
    command = ["batch", str(asked), "-o", str(out), "--model", str(folder), "--max-new-tokens", str(WRITTEN)]
    assert main([*command, *options]) == 0
    rows = sorted(map(json.loads, out.read_text().splitlines()), key=lambda row: row["number"])
    return [row["text"] for row in rows]


def ray(folder: Path, cases: list[Case]) -> list[str]:
    """`foveate batch --ray`."""
    pytest.importorskip("ray", reason="Ray is an extra: foveate[ray]")
    from tests.integrations.ray.local_ray import two_workers

    with two_workers():
        return batch(folder, cases, "--ray")


def vllm(folder: Path, cases: list[Case]) -> list[str]:
    """The plug-in for vLLM, with a plan in every request."""
    pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
    from tests.integrations.vllm.vllm_engines import engine, served

    processor = AutoProcessor.from_pretrained(folder)
    prompts = []
    for _, path, question in cases:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        prompts.append((text, [Image.open(path)], []))
    plans = [None if plan == "full model" else plan for plan, _, _ in cases]
    with engine(folder, "full model") as model:
        return [answer.outputs[0].text for answer in served(model, prompts, plans)]


WAYS: tuple[Callable[[Path, list[Case]], list[str]], ...] = (ask, pipeline, server, batch, ray, vllm)


# Ray takes most of a minute to start; tests/integrations/ray starts it by default.
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.slow if way is ray else (), id=way.__name__) for way in WAYS]
)
def test_the_answer_is_the_same(
    way: Callable[[Path, list[Case]], list[str]], folder: Path, cases: list[Case], expected: list[str]
) -> None:
    asked = [number for number, (plan, _, _) in enumerate(cases) if way is not vllm or plan not in NOT_IN_VLLM]
    assert way(folder, [cases[number] for number in asked]) == [expected[number] for number in asked]


@pytest.mark.parametrize("way", ["ask", "batch", "server"])
def test_the_question_is_located_with_the_processor_that_was_given(folder: Path, tmp_path: Path, way: str) -> None:
    """Not with a tokenizer next to the weights: a model in memory and a revision of the Hub have none in reach."""
    model, processor = foveate.load(folder, plan=None)
    model.name_or_path = ""
    picture, plan, question = tmp_path / "a.png", "cdpruner:9", "What is it?"
    noise(32, 32).save(picture)
    notes: list[Any] = []

    def note(*_: Any) -> None:
        handle = handle_of(model)
        assert handle is not None
        notes.extend(image.notes for image in handle.report().images)

    hook = model.get_output_embeddings().register_forward_hook(note)
    if way == "ask":
        foveate.ask(picture, question, (model, processor), plan, max_new_tokens=1)
    elif way == "batch":
        answer_questions(model, processor, [Question(0, 0, (picture,), question, plan)], max_new_tokens=1)
    else:
        with running(model, processor, plan=plan) as served:
            messages = asking(question, data_uri(picture.read_bytes()))
            served.client().chat.completions.create(model="embedded", messages=messages, max_tokens=1)  # ty: ignore
    hook.remove()
    assert notes and not any("no tokenizer" in line for image in notes for line in image)

"""lmms-eval: settings, batches and losses by themselves, and whole runs of `lmms-eval` on tasks of local files."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.answering import ask
from foveate.answering.conversations import inputs_of_batch
from foveate.benchmark.accuracy import answer_items
from foveate.benchmark.generation import SPARE
from foveate.benchmark.tasks import Item, items
from foveate.core.errors import FoveateError
from foveate.integrations.lmms_eval.model import EvaluatedModel, GenerationSettings, manifest
from foveate.loading import load
from foveate.models.llava_uhd import byte_tokenizer
from foveate.runtime import handle_of
from foveate.synthetic import render
from tests.tiny_model import SPREAD, noise, save_llava_uhd, text_config

EXAMPLE = Path(__file__).parents[3] / "examples" / "lmms-eval"


def asked(image: Any, text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]


PLANS = ("full model", "hiprune:50%", "fastv:50%@1")


@pytest.fixture(scope="module", params=PLANS)
def evaluated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EvaluatedModel:
    folder = save_llava_uhd(tmp_path_factory.mktemp("tiny"))
    return EvaluatedModel(str(folder), request.param, device="cpu", batch_size=3)


QUESTIONS = [
    asked(noise(40 + 8 * seed, 64, seed), text) for seed, text in enumerate(["What?", "Which one?", "Why?", "a"])
]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"until": ["\n\n"], "do_sample": False}, GenerationSettings(until=("\n\n",))),
        ({"until": "END", "max_new_tokens": 7, "temperature": 0, "top_p": 0.9}, GenerationSettings(7, ("END",))),
        ({"temperature": 0.7, "do_sample": False, "top_k": 5}, GenerationSettings()),
        (
            {"temperature": 0.7, "top_p": 0.9, "num_beams": None},
            GenerationSettings(temperature=0.7, more=(("top_p", 0.9),)),
        ),
        ({"do_sample": True}, GenerationSettings(temperature=1.0)),
        ({"num_beams": 3, "length_penalty": 0.5}, GenerationSettings(num_beams=3, more=(("length_penalty", 0.5),))),
    ],
)
def test_settings_of_tasks(settings: dict[str, Any], expected: GenerationSettings) -> None:
    assert GenerationSettings.of(settings) == expected


def test_settings_for_other_models_are_named(caplog: pytest.LogCaptureFixture) -> None:
    assert GenerationSettings.of({"image_aspect_ratio": "pad", "max_new_tokens": 4}) == GenerationSettings(4)
    assert "image_aspect_ratio" in caplog.text


@pytest.mark.parametrize("settings", [{"until": 3}, {"until": [1]}, {"num_beams": -1}, {"temperature": -0.1}])
def test_settings_that_cannot_be_followed(settings: dict[str, Any]) -> None:
    with pytest.raises(FoveateError, match="of the task"):
        GenerationSettings.of(settings)


def test_an_answer_ends_before_what_ends_it() -> None:
    assert GenerationSettings(until=("\n\n", "Q:")).cut(" 12 Q: 13\n\n14") == "12"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": "auto"}, "auto"),
        ({"attn_implementation": "quick"}, "sdpa"),
        ({"max_frames": 0}, "max_frames"),
        ({"plan": "nonsense:3"}, "unknown method"),
        ({"dtype": "int3"}, "bfloat16"),
    ],
)
def test_arguments_that_cannot_be_followed(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(FoveateError, match=said):
        EvaluatedModel(**arguments)


def test_answers_are_those_of_ask(evaluated: EvaluatedModel) -> None:
    written = evaluated.answers(QUESTIONS, [GenerationSettings(8)] * 4)
    pair = (evaluated.model, evaluated.processor)
    for text, question in zip(written, QUESTIONS, strict=True):
        image, words = (part[part["type"]] for part in question[0]["content"])
        assert text == ask(image, words, pair, max_new_tokens=8).text
    assert len(set(written)) > 1


def test_draws_and_beams(evaluated: EvaluatedModel) -> None:
    straight = evaluated.answers(QUESTIONS, [GenerationSettings(8)] * 4)
    cold = GenerationSettings.of({"do_sample": True, "temperature": 1e-4, "max_new_tokens": 8})
    assert evaluated.answers(QUESTIONS, [cold] * 4) == straight
    hot = GenerationSettings.of({"temperature": 50.0, "max_new_tokens": 8})
    assert evaluated.answers(QUESTIONS, [hot] * 4) != straight
    search = GenerationSettings(8, num_beams=3)
    assert evaluated.answers(QUESTIONS, [search] * 4) == [evaluated.answers([one], [search])[0] for one in QUESTIONS]


def test_answers_come_in_the_order_of_the_questions(evaluated: EvaluatedModel) -> None:
    both = QUESTIONS[0][0]["content"][:1] + QUESTIONS[1][0]["content"]
    conversations = [
        QUESTIONS[0],
        [{"role": "user", "content": "Hello?"}],
        [{"role": "system", "content": "Read."}, *QUESTIONS[0]],
        [{"role": "user", "content": both}],
        *QUESTIONS[1:],
    ]
    wanted = [GenerationSettings(8 - place % 2) for place in range(len(conversations))]
    together = evaluated.answers(conversations, wanted)
    assert together == [evaluated.answers([one], [how])[0] for one, how in zip(conversations, wanted, strict=True)]
    assert len(set(together)) > 3


def test_answers_end_where_positions_do(evaluated: EvaluatedModel, caplog: pytest.LogCaptureFixture) -> None:
    positions = evaluated.model.config.get_text_config().max_position_embeddings
    crowded = asked(noise(64, 64), "l" * (positions - 90))
    assert evaluated.answers([crowded], [GenerationSettings(positions)])[0]
    assert f"allows {positions} new tokens" in caplog.text
    with pytest.raises(FoveateError, match="more than the"):
        evaluated.answers([asked(noise(64, 64), "long " * positions)], [GenerationSettings()])


def test_what_the_plan_kept_is_counted() -> None:
    evaluated = EvaluatedModel("embedded", "random:5", device="cpu", batch_size=2)
    evaluated.answers([asked(noise(160, 128, seed), "What is it?") for seed in range(3)], [GenerationSettings(2)] * 3)
    assert [kept for _, kept in evaluated.token_counts] == [5] * 3
    assert all(count > 5 for count, _ in evaluated.token_counts)


@torch.inference_mode()
@pytest.mark.parametrize("plan", PLANS)
def test_losses_are_those_of_labels(plan: str) -> None:
    evaluated = EvaluatedModel("embedded", plan, device="cpu", batch_size=3)
    samples = [render("read_word", index, split="heldout", sides=(128, 144), difficulty=0.3) for index in range(3)]
    conversations = [asked(sample.image, sample.question) for sample in samples]
    answers = [" of no use", *evaluated.answers(conversations[1:2], [GenerationSettings(4)]), samples[2].answer]
    losses = evaluated.losses(conversations, answers)
    assert [greedy for _, greedy in losses[:2]] == [False, True]
    if plan.startswith("fastv"):  # chooses by the last token, which in a pass over everything is the answer's
        return
    for conversation, answer, (loss, _) in zip(conversations, answers, losses, strict=True):
        prompt = evaluated.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        image = conversation[0]["content"][0]["image"]
        question = evaluated.processor(images=[[image]], text=[prompt], return_tensors="pt")["input_ids"]
        inputs = evaluated.processor(images=[[image]], text=[prompt + answer.strip()], return_tensors="pt")
        labels = inputs["input_ids"].clone()
        labels[:, : question.shape[1]] = -100
        assert loss == pytest.approx(float(evaluated.model(**inputs, labels=labels).loss), rel=1e-4)


def test_losses_are_those_of_the_steps_of_writing(evaluated: EvaluatedModel) -> None:
    """Every token of an answer is the one that comes next after those before it, with p as generate gives it."""
    answer = "yes, 12"
    for loss, _ in evaluated.losses(QUESTIONS[:2], [answer] * 2):
        assert 0 < loss < 30
    (both,) = evaluated.losses(QUESTIONS[:1], [answer])
    (alone,) = evaluated.losses(QUESTIONS[:1], [answer[:1]])
    inputs = inputs_of_batch(evaluated.model, evaluated.processor, QUESTIONS[:1])
    with torch.inference_mode():
        first = evaluated.model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
    (token,) = evaluated.processor.tokenizer(answer[:1], add_special_tokens=False)["input_ids"]
    assert alone[0] == pytest.approx(-float(first.logits[0].log_softmax(-1)[0, token]), rel=1e-4)
    assert alone[0] != both[0]


def test_losses_need_an_answer(evaluated: EvaluatedModel) -> None:
    with pytest.raises(FoveateError, match="empty"):
        evaluated.losses(QUESTIONS[:1], ["  "])


def test_what_a_model_does_not_read_is_refused(evaluated: EvaluatedModel) -> None:
    for kind, reason in (("video", "take no clips"), ("audio", "does not accept audio")):
        with pytest.raises(FoveateError, match=reason):
            evaluated.answers([[{"role": "user", "content": [{"type": kind, kind: "a.mp4"}]}]], [GenerationSettings()])


def test_attention_is_changed_under_a_plan() -> None:
    evaluated = EvaluatedModel("embedded", "hiprune:50%", device="cpu", attn_implementation="eager")
    assert evaluated.model.config.get_text_config()._attn_implementation == "eager"
    assert evaluated.plan == str(handle_of(evaluated.model).plan) == "hiprune:50%"
    evaluated.close()


@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
def test_the_manifest_names_classes_that_exist() -> None:
    named = manifest()
    for path, simple in ((named.simple_class_path, True), (named.chat_class_path, False)):
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name).is_simple is simple


def test_the_entry_point_names_the_classes() -> None:
    (found,) = {point.value for point in entry_points(group="lmms_eval.models") if point.name == "foveate"}
    assert found == "foveate.integrations.lmms_eval.model:manifest"


# Clips


@pytest.fixture(scope="module")
def reads_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen2.5-VL, whose processor takes images and clips, and two clips of noise."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    av = pytest.importorskip("av", reason="PyAV, which decodes clips, is not installed; `make test-lmms` does it")
    folder = tmp_path_factory.mktemp("clips")
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    names |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    tokenizer.add_special_tokens({"additional_special_tokens": list(names.values())})
    for name in ("image_token", "video_token"):  # else the processor would go by the tokenizer's own <image>
        setattr(tokenizer, name, names[name.partition("_")[0]])
        tokenizer.init_kwargs[name] = names[name.partition("_")[0]]
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = {**text_config().to_dict(), "model_type": "qwen2_5_vl_text", "vocab_size": 272, "rope_parameters": rope}
    vision = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    vision |= {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "window_size": 16}
    vision |= {"fullatt_block_indexes": [1], "initializer_range": SPREAD}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"size": {"shortest_edge": 64, "longest_edge": 4096}}
    part = "{{ '<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>' }}"
    part = "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}" + part + "{% endif %}"
    template = "{% for m in messages %}{% for part in m['content'] %}" + part + "{% endfor %}{% endfor %}"
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**sizes, **limits),
        tokenizer,
        Qwen2VLVideoProcessor(**sizes, **limits),
        chat_template=template,
    ).save_pretrained(folder)
    for name in ("a", "b"):
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for seed in range(8):
                container.mux(stream.encode(av.VideoFrame.from_image(noise(32, 32, seed + 8 * (name == "b")))))
            container.mux(stream.encode())
    return folder


def test_clips(reads_clips: Path) -> None:
    evaluated = EvaluatedModel(str(reads_clips), "divprune:50%", device="cpu", batch_size=2, max_frames=4)

    def about(*parts: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "What happens?"}]}]

    clips = [{"type": "video", "video": str(reads_clips / f"{name}.mp4")} for name in "ab"]
    conversations = [about(clips[0]), about({"type": "image", "image": noise(32, 32)}), about(clips[1]), about(*clips)]
    together = evaluated.answers(conversations, [GenerationSettings(6)] * 4)
    # Four frames are two pairs of 4 x 4 tokens, of which half stay.
    assert sorted(evaluated.token_counts) == [(16, 8)] + [(32, 16)] * 4
    assert together == [evaluated.answers([one], [GenerationSettings(6)])[0] for one in conversations]
    assert len(set(together)) > 1
    together = evaluated.losses(conversations, ["a", "b", "cd", "e"])
    alone = [evaluated.losses([one], [text])[0] for one, text in zip(conversations, ["a", "b", "cd", "e"], strict=True)]
    assert [loss for loss, _ in together] == pytest.approx([loss for loss, _ in alone], rel=1e-4)
    with pytest.raises(FoveateError, match="is not a video file"):
        evaluated.answers([about({"type": "video", "video": "nowhere.mp4"})], [GenerationSettings()])


# Whole runs

needs_lmms_eval = pytest.mark.skipif(
    find_spec("lmms_eval") is None, reason="lmms-eval is not installed; `make test-lmms` installs it and runs this"
)

MORE = """

def question(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    told = f"{previous_output[-1]}? {previous_round_info or ''}"
    return of(doc), told, round_idx == 1 + doc["index"] % 2, previous_output, f"round {round_idx}"


def scored(doc, results):
    return {"rounds": len(results[0]), "written": results[0]}
"""


class Local:
    """A folder with tasks of local files, and runs of `lmms-eval` on them."""

    def __init__(self, folder: Path, rows: list[tuple[dict[str, Any], Any]]) -> None:
        self.folder = folder
        (folder / "pictures.py").write_text((EXAMPLE / "pictures.py").read_text(encoding="utf-8") + MORE)
        lines = []
        for number, (row, image) in enumerate(rows):
            image.save(folder / f"{number}.png")
            lines.append(json.dumps({**row, "images": [str(folder / f"{number}.png")]}) + "\n")
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        self.yaml = (EXAMPLE / "examples.yaml").read_text(encoding="utf-8")
        self.yaml = self.yaml.replace("examples/lmms-eval/questions.jsonl", str(folder / "rows.jsonl"))

    def add(self, task: str, *changes: tuple[str, str]) -> None:
        """A task like the example's, with changes to its text."""
        text = self.yaml
        for old, new in (("task: foveate_examples", f"task: {task}"), *changes):
            assert old in text
            text = text.replace(old, new)
        (self.folder / f"{task}.yaml").write_text(text, encoding="utf-8")

    def run(self, name: str, *arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
        """Results, samples in the order of the data, and what was printed."""
        command = [sys.executable, "-m", "lmms_eval", "--model", "foveate", "--include_path", str(self.folder)]
        out = self.folder / "out" / name
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(self.folder)}
        done = subprocess.run(
            [*command, "--device", "cpu", "--log_samples", "--output_path", str(out), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        printed = done.stdout + done.stderr
        assert list(out.rglob("*_results.json")), printed[-4000:]
        (results,) = out.rglob("*_results.json")
        (samples,) = out.rglob("*_samples_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        rows.sort(key=lambda row: row["doc_id"])
        return json.loads(results.read_text(encoding="utf-8")), rows, printed


@pytest.fixture(scope="module")
def pages() -> list[Item]:
    """Questions that the embedded model answers, some of them rightly."""
    tasks = ("read_word", "receipt_total", "sign", "easy_vqa")
    return [item for task in tasks for item in items(task, 4, difficulty=0.3, sides=(128, 256))]


def choices_of(answer: str) -> list[str]:
    return sorted({answer, "no", "12.40"})


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, pages: list[Item]) -> Local:
    rows = []
    for number, item in enumerate(pages):
        ((question, answer),) = item.turns
        choices = choices_of(answer)
        row = {"question": question, "answer": answer, "index": number}
        rows.append(({**row, "choices": choices, "right": choices.index(answer)}, item.images[0]))
    return Local(tmp_path_factory.mktemp("tasks"), rows)


@pytest.mark.slow
@needs_lmms_eval
@pytest.mark.parametrize("plan", ["full model", "random:75%"])
def test_answers_are_those_of_bench_accuracy(local: Local, pages: list[Item], plan: str) -> None:
    local.add("pages")
    results, samples, _ = local.run(plan, "--tasks", "pages", "--batch_size", "4", "--model_args", f"plan={plan}")
    model, processor = load(device="cpu", plan=None)
    rows = answer_items(model, processor, plan, pages, batch_size=4)
    assert [(row["task"], row["index"]) for row in rows] == [(item.task, item.index) for item in pages]
    for sample, row in zip(samples, rows, strict=True):
        # `foveate bench` cuts off answers that are too long to be right; the task of lmms-eval has one limit for all.
        limit = len(processor.tokenizer(row["answer"])["input_ids"]) + SPARE
        written = processor.tokenizer(sample["filtered_resps"])["input_ids"]
        assert processor.tokenizer.decode(written[:limit]).strip() == row["text"]
    right = [row["right"] for row in rows]
    assert 0 < sum(right) < len(right)
    assert [sample["exact_match"] for sample in samples] == right
    assert results["results"]["pages"]["exact_match,none"] == pytest.approx(sum(right) / len(right))
    for name, key in (("visual", "tokens_in"), ("kept", "tokens_kept")):
        counts = [row[key] for row in rows]
        assert results["throughput"][f"avg_{name}_tokens_per_image"] == pytest.approx(sum(counts) / len(counts))


@pytest.mark.slow
@needs_lmms_eval
def test_choices_are_weighed(local: Local, pages: list[Item]) -> None:
    local.add(
        "choices",
        ("output_type: generate_until\n", "output_type: multiple_choice\ndoc_to_choice: choices\n"),
        ("doc_to_target: answer\nprocess_results: !function pictures.right", "doc_to_target: right"),
        ("generation_kwargs:\n  max_new_tokens: 32\n", ""),
        ("exact_match", "acc"),
    )
    arguments = ("--tasks", "choices", "--force_simple", "--model_args", "plan=random:75%", "--batch_size", "2")
    results, samples, _ = local.run("choices", *arguments)
    evaluated = EvaluatedModel(plan="random:75%", device="cpu")
    right = []
    for sample, item in zip(samples, pages, strict=True):
        ((question, answer),) = item.turns
        choices = choices_of(answer)
        expected = evaluated.losses([asked(item.images[0], question)] * len(choices), choices)
        for (loss, greedy), (found, also) in zip(expected, sample["filtered_resps"], strict=True):
            assert (float(found), also in (True, "True")) == (pytest.approx(loss, rel=1e-3), greedy)
        right.append(choices[expected.index(min(expected))] == answer)
    assert [sample["acc"] for sample in samples] == right
    assert results["results"]["choices"]["acc,none"] == pytest.approx(sum(right) / len(right))


@pytest.mark.slow
@needs_lmms_eval
@pytest.mark.parametrize("kind", ["chat", "simple"])
def test_rounds(local: Local, pages: list[Item], kind: str) -> None:
    """One round or two; the second asks about the answer of the first, and is told what the task keeps."""
    local.add(
        "rounds",
        ("output_type: generate_until\n", "output_type: generate_until_multi_round\n"),
        ("doc_to_text: question", "doc_to_text: !function pictures.question"),
        ("pictures.right", "pictures.scored"),
        ("metric: exact_match", "metric: rounds"),
    )
    arguments = ("--tasks", "rounds", "--limit", "4", "--batch_size", "2", "--model_args", 'plan="divprune:50%"')
    _, samples, _ = local.run(f"rounds {kind}", *arguments, *(["--force_simple"] if kind == "simple" else []))
    evaluated = EvaluatedModel(plan="divprune:50%", device="cpu")
    for number, (sample, item) in enumerate(zip(samples, pages[:4], strict=True)):
        text, answers = item.turns[0][0], []
        for round_ in range(1 + number % 2):
            answers += evaluated.answers([asked(item.images[0], text)], [GenerationSettings(32)])
            text = f"{answers[-1]}? " + (f"round {round_}" if round_ else "")
        assert sample["written"] == answers
        assert sample["rounds"] == len(answers)


@pytest.mark.slow
@needs_lmms_eval
def test_answers_are_cached_and_bad_arguments_are_explained(local: Local) -> None:
    local.add("cached")
    arguments = ("--tasks", "cached", "--limit", "2", "--use_cache", str(local.folder / "answers"))
    _, first, _ = local.run("first", *arguments)
    _, second, printed = local.run("second", *arguments)
    assert [sample["filtered_resps"] for sample in first] == [sample["filtered_resps"] for sample in second]
    assert "skipping model inference" in printed
    command = [sys.executable, "-m", "lmms_eval", "--model", "foveate", "--include_path", str(local.folder)]
    done = subprocess.run(
        [*command, "--tasks", "cached", "--model_args", "plans=random:3"], capture_output=True, text=True, check=False
    )
    assert "--model_args has no plans; possible are pretrained, plan," in done.stdout + done.stderr

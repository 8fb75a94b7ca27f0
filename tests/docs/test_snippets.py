"""Every Python and shell block of README and of the pages runs, in the order of its page, on small models."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

import foveate
from foveate.core import registry
from foveate.training.building import build_model
from foveate.training.recipe import ModelChoice
from tests import tiny_model
from tests.docs.shell import Shell, check_extras, commands
from tests.docs.snippets import ROOT, SHELL, Block, blocks, pages
from tests.video_files import save_clip

#: Pages whose blocks take more than a few seconds: they train, search or start servers.
SLOW = (
    "README.md", "docs/accuracy.md", "docs/clients.md", "docs/decoding.md", "docs/next-scale.md", "docs/own-method.md",
    "docs/serving.md", "docs/training-with-fewer-tokens.md", "docs/training-with-plans.md", "docs/tune.md",
    "docs/tutorial.md", "docs/which-method.md",
)  # fmt: skip
#: Blocks that do not run here, by page, with their reasons. A new one is added here too.
NOT_RUN = {
    "README.md": ["the network"],
    "docs/accuracy.md": ["minutes; tests/benchmark/test_clips.py runs it on a small model"],
    "docs/app.md": ["gradio is not among the test dependencies; make test-browser"],
    "docs/benchmarks.md": [
        "a minute; tests/benchmark/test_trained.py runs it on a small model",
        "seconds to minutes; tests/benchmark/test_patch_scaling.py runs it on small encoders",
        "lmms-eval is not installed, and its data are on the Hub",
        "lmms-eval is not installed; make test-lmms",
    ],
    "docs/clients.md": ["docker", "langchain-openai is not among the test dependencies"],
    "docs/lmms-eval.md": [
        "lmms-eval and its data are not installed; make test-lmms",
        "lmms-eval is not installed; make test-lmms",
    ],
    "docs/embedded-model.md": ["hours; tests/training/test_processes.py trains a small model on two processes"],
    "docs/looking-again.md": ["minutes to hours; tests/training/methods/test_acquisition.py runs it on a small model"],
    "docs/quantization.md": [
        "bitsandbytes needs a GPU",
        "minutes; tests/benchmark/test_joint.py runs it on a small model",
    ],
    "docs/streaming.md": ["tests/streaming/test_files.py runs both on a small model"],
    "docs/speech.md": [
        "downloads several GB; tests/models/avsr/test_avsr.py runs it on small models",
        "an hour and a half on a free CPU core; tests/benchmark/test_avsr.py runs it on a small model",
        "needs trained weights; tests/models/echoing_pixels runs it on a small model",
    ],
    "docs/training-with-fewer-tokens.md": [
        "needs the weights of a ConvNeXt; tests/models/encoders/test_convllava.py runs both ways on small ones"
    ],
    "docs/serving.md": ["docker", "starts a cluster; tests/integrations/ray"],
    "docs/tutorial.md": ["the network, and a model that reads clips"],
    "docs/vllm.md": ["vLLM is not installed; make test-vllm"] * 4,
    "docs/video.md": [
        "minutes; tests/benchmark/test_speed.py runs it on a small model",
        "hours; tests/benchmark/test_trained.py runs two steps of it",
    ],
}

#: The model that pages call `path/to/model`, and the question of every file of questions.
MODEL, QUESTION = ROOT / "benchmarks/models/measure-qwen2.5-vl", "What does it say?"

CODE = {page.relative_to(ROOT).as_posix(): blocks(page) for page in pages()}
RUN = [name for name, code in CODE.items() if any(not block.not_run for block in code)]


@pytest.fixture(scope="session")
def answers() -> list[str]:
    """What a model answers to questions about noise, as references that it gets right."""
    parts = foveate.load(MODEL)
    images = (tiny_model.noise(64, 64, number) for number in range(8))
    return [foveate.ask(image, QUESTION, parts, max_new_tokens=64).text or "?" for image in images]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of training runs, with the model that `recipes/voco.yaml` begins with."""
    folder = tmp_path_factory.mktemp("runs")
    for part in build_model(ModelChoice(pretrained="embedded", voco=2), seed=0):
        part.save_pretrained(folder / "voco" / "model")
    return folder


def conversation(number: int, answer: str) -> str:
    """A line of a file of questions in LLaVA's format."""
    turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": answer}]
    return json.dumps({"image": f"{number}.png", "conversations": turns})


@pytest.fixture
def workplace(tmp_path: Path, hub: Path, answers: list[str], runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a reader: a clone's folders, their images, files of questions and models."""
    (tmp_path / "benchmarks").mkdir()
    for name in ("examples", "benchmarks/models"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shorter = tmp_path / "recipes" / "next-scale.json"
    recipe = json.loads(shorter.read_text())
    recipe["training"] |= {"tokenizer_steps": 2, "steps": 2}
    shorter.write_text(json.dumps(recipe))
    for name in ("receipt.png", "page.png", "screen.png"):
        shutil.copy(ROOT / "examples" / "receipt.png", tmp_path / name)
    save_clip(tmp_path / "clip.mp4", 40, 4, (96, 64), codec="mpeg4")
    for number in range(len(answers)):
        tiny_model.noise(64, 64, number).save(tmp_path / f"{number}.png")
    for name in ("my-receipts.jsonl", "my-questions.jsonl", "my.jsonl"):
        (tmp_path / name).write_text("".join(f"{conversation(*pair)}\n" for pair in enumerate(answers)))
    (tmp_path / "questions.jsonl").write_text('{"image": "receipt.png", "question": "What is the total?"}\n')
    for name in ("path/to/model", "path/or/hub-id", "my-model"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(MODEL, tmp_path / name)
    (tmp_path / "runs").symlink_to(runs)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(registry._methods, "added", dict(registry._methods.added))
    return tmp_path


@pytest.fixture
def shell(workplace: Path, hub: Path) -> Iterator[Shell]:
    """What runs shell blocks; its server ends with the test."""
    shell = Shell(workplace, {"HF_HUB_CACHE": str(hub)})
    yield shell
    shell.close()


@pytest.mark.parametrize("page", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in RUN])
def test_the_blocks_of_a_page_run(page: str, shell: Shell, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("page")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "page", module)
    for block in CODE[page]:
        run(block, module, shell, workplace)


def run(block: Block, module: types.ModuleType, shell: Shell, folder: Path) -> None:
    if block.file:  # a later block uses it
        (folder / block.file).write_text(block.code)
        return
    if block.not_run:
        return
    if block.language in SHELL:
        shell.run(block.code)
        return
    # As many lines before it as in the page, so that a traceback names the line of the page.
    code = "\n" * block.line + shell.at_port(block.code)
    exec(compile(code, block.page, "exec"), vars(module))


def test_what_does_not_run_is_listed_with_its_reason() -> None:
    marked = {name: [block.not_run for block in code if block.not_run] for name, code in CODE.items()}
    assert {name: reasons for name, reasons in marked.items() if reasons} == NOT_RUN


def test_a_block_is_parsed(tmp_path: Path) -> None:
    code = 'A=1 foveate ask a.png \\\n  "What?"  # why\ncurl -d \'{"a":\n 1}\' localhost\n\n# more\n'
    first, second = commands(code)
    assert first == ({"A": "1"}, ["foveate", "ask", "a.png", "What?"])
    assert second == ({}, ["curl", "-d", '{"a":\n 1}', "localhost"])
    with pytest.raises(AssertionError, match="there is no extra nothing"):
        check_extras(["foveate[serve,nothing]"])
    with pytest.raises(AssertionError, match="nothing here runs docker"):
        Shell(tmp_path, {}).run("docker ps")
    with pytest.raises(AssertionError, match=r"foveate ask missing\.png"):
        Shell(tmp_path, {}).run("foveate ask missing.png 'What?'")

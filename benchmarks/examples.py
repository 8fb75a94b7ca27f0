"""Chooses the examples of the package for a model, and measures the plan of its demonstration.

    python benchmarks/examples.py --plan vispruner:25%

1. The full model, the plan, random tokens and a smaller image answer one question each about drawings
   (`examples/draw.py`). These are not chosen: `benchmarks/results/examples-embedded.json` has all of them.
2. Of each kind the first drawing becomes an example whose questions the full model answers rightly. On the first
   question of the first example, the demonstration, the plan has to be right, random tokens and a smaller image wrong.
3. The examples are written where they are used: `examples/`, `src/foveate/examples.json`, and the pages that show the
   demonstration. The images of the report are chosen in the same way, in `src/foveate/report/images.py`.

Run it again whenever the weights of the embedded model change. An answer is right if it is exactly the expected text.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.answering import ask
from foveate.app.comparison import BASELINES, mean_budget
from foveate.benchmark.profiling import hardware, head
from foveate.benchmark.results import write_json
from foveate.core.errors import FoveateError
from foveate.core.full_model import FULL_MODEL
from foveate.core.plan import Plan
from foveate.loading import load
from foveate.report.images import IMAGES, page

ROOT = Path(__file__).parents[1]
DRAWINGS: dict[str, Callable[[int], Any]] = runpy.run_path(str(ROOT / "examples" / "draw.py"))["DRAWINGS"]
#: Numbers of the first drawings: to choose examples from, and to compare contenders on.
CHOOSE, COMPARE = 0, 2_000
#: Drawings of each kind among which an example has to be found, and questions of an example: the first ones of these.
MOST_DRAWINGS, LEAST_QUESTIONS, MOST_QUESTIONS = 60, 2, 3
#: Pages among which an image of the report has to be found.
MOST_PAGES = 100
#: Longest answer in tokens; that of every question is shorter.
ANSWER = 24
#: Pages with commands that show the demonstration.
PAGES = ("Makefile", "README.md", "docs/tutorial.md", "docs/index.md")
NOTE = "An answer is right if it is exactly the expected text. Time: from opening the image to the end of the answer."
SHOWN = (
    re.compile(r'(foveate ask examples/\w+\.png ")[^"]+(" --plan )\S+'),
    re.compile(r'(foveate\.ask\("examples/\w+\.png", ")[^"]+(", \(model, processor\), plan=")[^"]+'),
)

#: Answers of all contenders to a question about an image.
Replies = Callable[[Image.Image, str], Mapping[str, "Reply"]]


@dataclass(frozen=True)
class Reply:
    """An answer with the image tokens that the first layer of the language model read, and its seconds."""

    text: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Asked:
    """A question about a drawing."""

    kind: str
    number: int
    image: Image.Image
    question: str
    expected: str


def drawn(first: int, many: int) -> Iterator[Asked]:
    """One question about each of so many drawings, whose kinds take turns; questions take turns too."""
    kinds = tuple(DRAWINGS)
    for place in range(many):
        kind, number = kinds[place % len(kinds)], first + place // len(kinds)
        drawing = DRAWINGS[kind](number)
        question, expected = drawing.questions[number % len(drawing.questions)]
        yield Asked(kind, number, drawing.image, question, expected)


def replies_of(model: Any, plan: str) -> Replies:
    """Let a model answer without and with a plan, and with the same number of random tokens and of a smaller image."""
    layers = model[0].config.get_text_config(decoder=True).num_hidden_layers

    def replies(image: Image.Image, question: str) -> dict[str, Reply]:
        answers = {
            name: ask(image, question, model, followed, max_new_tokens=ANSWER)
            for name, followed in ((FULL_MODEL, None), ("plan", Plan.of(plan)))
        }
        budget = mean_budget(answers["plan"], layers)
        if budget is None:
            raise FoveateError(f"{plan} drops nothing, so that there is nothing to compare it with.")
        for name in BASELINES:
            answers[name] = ask(image, question, model, Plan.of(name, budget), max_new_tokens=ANSWER)
        return {name: Reply(answer.text, answer.tokens.read, answer.times["total"]) for name, answer in answers.items()}

    return replies


def compare(replies: Replies, many: int) -> list[dict[str, Any]]:
    """Ask one question about each drawing; rows with the answer, tokens and time of every contender."""
    rows = []
    for asked in drawn(COMPARE, many):
        said = replies(asked.image, asked.question)
        rows.append(
            {
                "kind": asked.kind,
                "number": asked.number,
                "question": asked.question,
                "expected": asked.expected,
                "answers": {
                    name: {"text": reply.text, "right": reply.text == asked.expected, "tokens": reply.tokens}
                    for name, reply in said.items()
                },
                "speed_up": round(said[FULL_MODEL].seconds / said["plan"].seconds, 3),
            }
        )
    return rows


def right(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Right answers of every contender."""
    return {name: sum(row["answers"][name]["right"] for row in rows) for name in rows[0]["answers"]}


def choose(texts: Callable[[Image.Image, str], str], replies: Replies) -> list[dict[str, Any]]:
    """Find the first drawing of each kind that can be an example.

    Args:
        texts: Answers of the full model.
        replies: Answers of all contenders.

    Raises:
        FoveateError: none of the first drawings can be.
    """
    chosen = []
    for kind, draw in DRAWINGS.items():
        for number in islice(count(CHOOSE), MOST_DRAWINGS):
            drawing = draw(number)
            answered = ((q, a) for q, a in drawing.questions if texts(drawing.image, q) == a)
            kept = list(islice(answered, MOST_QUESTIONS))
            if kept[:1] != list(drawing.questions[:1]) or len(kept) < LEAST_QUESTIONS:
                continue
            if chosen or demonstrates(replies(drawing.image, kept[0][0]), kept[0][1]):
                chosen.append({"name": kind, "number": number, "questions": [list(pair) for pair in kept]})
                break
        else:
            raise FoveateError(
                f"none of the first {MOST_DRAWINGS} drawings of a {kind} can be an example: the full model answers too "
                "few of their questions, or no plan differs from random tokens and a smaller image."
            )
    return chosen


def report_pages(texts: Callable[[Image.Image, str], str]) -> dict[str, int]:
    """Find the first page of every task in the report that the full model reads.

    Raises:
        FoveateError: it reads none of the first pages of a task.
    """
    found = {}
    for task, _, size, shows in IMAGES:
        samples = ((number, page(task, number, size)) for number in range(MOST_PAGES))
        read = (number for number, one in samples if texts(one.image, one.question) == one.answer)
        number = next(read, None)
        if number is None:
            raise FoveateError(f"the full model reads none of the first {MOST_PAGES} pages with {shows} of the report.")
        found[task] = number
    return found


def demonstrates(said: Mapping[str, Reply], expected: str) -> bool:
    """Whether the full model and the plan are right, and random tokens and a smaller image are wrong."""
    correct = {name: reply.text == expected for name, reply in said.items()}
    return correct[FULL_MODEL] and correct["plan"] and not any(correct[name] for name in BASELINES)


def write(root: Path, plan: str, chosen: Sequence[Mapping[str, Any]], report: Mapping[str, int]) -> None:
    """Write the examples and the images of the report, and name plan and question in the pages of a repository."""
    table = {"plan": plan, "examples": list(chosen)}
    (root / "src/foveate/examples.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    folder = root / "examples"
    asked = [(one["name"], *pair) for one in chosen for pair in one["questions"]]
    for one in chosen:
        DRAWINGS[one["name"]](one["number"]).image.save(folder / f"{one['name']}.png", optimize=True)
    rows = [
        json.dumps({"images": [f"examples/{name}.png"], "question": question, "answer": answer})
        for name, question, answer in asked
    ]
    (folder / "lmms-eval/questions.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    lines = "\n".join(
        f"| [{one['name']}.png]({one['name']}.png) | {' '.join(question for question, _ in one['questions'])} |"
        for one in chosen
    )
    _replace(folder / "README.md", [re.compile(r"(?:^\| \[\w+\.png\].*\|\n)+", re.MULTILINE)], lines + "\n")
    notebook = folder / "notebooks/compare-methods.ipynb"
    document = json.loads(notebook.read_text(encoding="utf-8"))
    (cell,) = (cell for cell in document["cells"] if cell["source"][0] == "QUESTIONS = [\n")
    listed = [f'    ("../{name}.png", "{question}", "{answer}"),\n' for name, question, answer in asked]
    cell["source"][1 : cell["source"].index("]\n")] = listed
    notebook.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for task, number in report.items():
        _replace(root / "src/foveate/report/images.py", [re.compile(rf'(\("{task}", )\d+')], rf"\g<1>{number}")
    for name in PAGES:
        _replace(root / name, SHOWN, lambda match: f"{match[1]}{asked[0][1]}{match[2]}{plan}")


def _replace(path: Path, patterns: Sequence[re.Pattern[str]], text: str | Callable[[re.Match[str]], str]) -> None:
    content, found = path.read_text(encoding="utf-8"), 0
    for pattern in patterns:
        content, times = pattern.subn(text, content)
        found += times
    if not found:
        raise FoveateError(f"{path} has no longer what is replaced in it: adapt benchmarks/examples.py.")
    path.write_text(content, encoding="utf-8")


def main(options: argparse.Namespace) -> None:
    """Choose, measure and write."""
    model = load(options.model)
    plan = options.plan
    replies = replies_of(model, plan)
    rows = compare(replies, options.count)
    settings = {"count": options.count, "first": COMPARE}
    command = shlex.join(["python", *sys.argv])
    result = {
        **head("examples", command, hardware(model[0].device), settings, NOTE),
        "model": options.model or "embedded",
        "plan": plan,
        "right": right(rows),
        "speed_up": round(statistics.median(row["speed_up"] for row in rows), 3),
        "rows": rows,
    }
    print(f"{plan}: {result['right']} of {len(rows)}, {result['speed_up']} times as fast", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, result)
    if not options.measure_only:

        def texts(image: Image.Image, question: str) -> str:
            return ask(image, question, model, max_new_tokens=ANSWER).text

        chosen = choose(texts, replies)
        write(ROOT, plan, chosen, report_pages(texts))
        for one in chosen:
            print(
                one["name"], one["number"], *(f"{question} {answer}" for question, answer in one["questions"]), sep="; "
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model; by default the embedded one")
    parser.add_argument("--plan", required=True, help="plan of the demonstration")
    parser.add_argument("--count", type=int, default=48, help="questions that the contenders are compared on")
    parser.add_argument("--measure-only", action="store_true", help="write only the result file, no examples")
    parser.add_argument(
        "-o", "--output", type=Path, default=ROOT / "benchmarks/results/examples-embedded.json", help="result file"
    )
    try:
        main(parser.parse_args())
    except FoveateError as error:
        sys.exit(f"error: {error}")

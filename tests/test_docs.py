"""The documentation: its links lead somewhere, its numbers come from files; `tests/docs` runs its code."""

import json
import re
import sys
from pathlib import Path

import pytest

from foveate.benchmark.embedded import summary, wilson_interval

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from foveate.gallery import gallery  # noqa: E402
from generator import choices, papers, readme, small_networks, tables  # noqa: E402
from generator import gallery as pages_of_methods  # noqa: E402

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def page_with(name: str) -> str:
    return f"before\n<!-- generated: {name} -->\nold\n<!-- end -->\nafter\n"


def test_a_block_says_that_nothing_was_measured(tmp_path):
    for name in ("embedded", "encoders", "authors"):
        text = tables.fill(page_with(name), tmp_path, tmp_path / "page.md")
        assert "old" not in text
        assert "yet.*" in text
        assert (text.startswith("before\n"), text.endswith("after\n")) == (True, True)


def test_numbers_are_those_of_the_file(tmp_path):
    rows = [{"task": "read_word", "answer": f"word {index}", "right": index >= 500} for index in range(4000)]
    path = tmp_path / "src/foveate/embedded/evaluation.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"command": "a command", **summary(rows)}))
    text = tables.fill(page_with("embedded"), tmp_path, tmp_path / "page.md")
    low, high = wilson_interval(3500, 4000)
    assert f"| read word | 4,000 | **87.5 %** | {100 * low:.1f} % to {100 * high:.1f} % | 0.0 % |" in text
    assert "`a command`" in text
    assert tables.fill(text, tmp_path, tmp_path / "page.md") == text


def test_every_run_of_the_encoders_is_shown_with_its_command(tmp_path):
    folder = tmp_path / "benchmarks/results"
    folder.mkdir(parents=True)
    run = json.loads((ROOT / "benchmarks/results/encoders-cpu.json").read_text(encoding="utf-8"))
    for machine in ("one", "two"):
        (folder / f"encoders-{machine}.json").write_text(json.dumps(run | {"machine": machine}))
    text = tables.fill(page_with("encoders"), tmp_path, tmp_path / "page.md")
    assert text.count(f"created by `{run['command']}`") == 2
    assert text.index("one; from `benchmarks/results/encoders-one.json`") < text.index("two; from")
    row = run["rows"][0]
    assert f"| {row['encoder']} | {row['pixels']} ({row['side']}) | {row['patches']:,} | {row['tokens']:,} |" in text


def test_the_picture_appears_when_it_was_drawn(tmp_path):
    assert "make picture" in tables.fill(page_with("picture"), tmp_path, tmp_path / "page.md")
    path = tmp_path / "docs/figures/demo.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert "](docs/figures/demo.png)" in tables.fill(page_with("picture"), tmp_path, tmp_path / "page.md")
    assert "](figures/demo.png)" in tables.fill(page_with("picture"), tmp_path, tmp_path / "docs/index.md")


def test_a_block_that_nothing_generates_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing generates 'weather'; possible are"):
        tables.fill(page_with("weather"), tmp_path, tmp_path / "page.md")


@pytest.mark.parametrize(
    ("written", "today"),
    [
        ("foveate train-pruner -o a --steps 2 --json", "foveate train-method covipal -o a --steps 2 --json"),
        ("foveate train-pruner m --kind dpn -o a", "foveate train-method dpn --model m -o a"),
        ("foveate train-draft m -o a --kind flash --json", "foveate train-method flash --model m -o a --json"),
        ("foveate train-method flash -o a", "foveate train-method flash -o a"),
    ],
)
def test_commands_of_old_results_are_shown_as_they_are_today(written, today):
    assert small_networks.command_today(written) == today


def test_results_of_trained_methods_old_and_new_are_shown_alike(tmp_path):
    folder = tmp_path / "benchmarks/results"
    folder.mkdir(parents=True)
    old = json.loads((ROOT / "benchmarks/results/pruner-measure-llava.json").read_text(encoding="utf-8"))
    new = {name: value for name, value in old.items() if name not in ("kind", "questions")}
    new |= {"method": old.get("kind", "covipal"), "samples": old["questions"]}
    pages = []
    for run in (old, new):
        (folder / "pruner-embedded.json").write_text(json.dumps(run))
        pages.append(tables.fill(page_with("pruners"), tmp_path, tmp_path / "page.md"))
    assert pages[0] == pages[1] and "foveate train-method covipal --model" in pages[0]


def measured(folder: Path, model: str, relative: dict[str, float]) -> None:
    """A result of `foveate bench accuracy` on one model, with a relative accuracy for each plan."""
    run = json.loads((ROOT / "benchmarks/results/accuracy-embedded.json").read_text(encoding="utf-8"))
    row = next(row for row in run["rows"] if row["task"] == "all" and row["relative"] is not None)
    run["rows"] = [
        row
        | {"model": model, "task": task, "plan": plan, "budget": plan.partition(":")[2], "relative": value}
        | {"tokens_in": 100, "tokens_kept": 50}
        for plan, value in relative.items()
        for task in ("all", "group:reading")
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"accuracy-{model}.json").write_text(json.dumps(run))


def test_recommended_plans_are_the_best_that_need_no_training_on_all_models(tmp_path):
    budgets = {"10%", "25%", "50%"}
    base = {f"{name}:{budget}": 0.5 for budget in budgets for name in ("random", "random-decoder", "downsample")}
    plans = {"divprune:25%": 0.8, "fastv:25%": 0.95, "covipal:25%": 0.99, "divprune:50%": 0.9, "divprune:10%": 0.6,
             "fastv:10%": 0.7, "covipal:10%": 0.9}  # fmt: skip
    measured(tmp_path / "benchmarks/results", "one", base | plans | {"vispruner:25%": 1.0})
    measured(tmp_path / "benchmarks/results", "two", base | plans | {"divprune:25%": 0.6})
    text = choices.start_here(tmp_path)
    # FastV acts inside the language model, CoViPAL is trained, and VisPruner was measured on one model alone.
    assert "| general | `divprune:25%` | 70% | 50% | 50% |" in text
    assert "| `divprune:50%` | 90% | 50% | 50% |" in text and "| aggressive | `fastv:10%` | 70% | 50% | 50% |" in text


def test_the_costs_of_the_readme_are_those_of_the_formulas():
    lines = readme.costs(ROOT).splitlines()
    random, smaller = (next(line for line in lines if f"*{name}:25%*" in line) for name in ("random", "downsample"))
    assert "| 250 | 49% | 30% |" in random and "| 250 | 28% | 30% |" in smaller  # a smaller image saves in the encoder
    assert len(lines) == 2 + 1 + 3 * len(readme.BUDGETS)


def test_the_matrix_is_one_screen_and_a_method_one_line_of_it(monkeypatch):
    """One line is another method's; the legend depends on codes alone."""
    entries = gallery()
    whole = pages_of_methods.pages()["matrix.md"].splitlines()
    assert len(whole) <= len(entries) + 25 and max(map(len, whole)) <= 350
    for gone in (0, len(entries) // 2, len(entries) - 1):
        monkeypatch.setattr(pages_of_methods, "gallery", lambda gone=gone: entries[:gone] + entries[gone + 1 :])
        fewer = pages_of_methods.pages()["matrix.md"].splitlines()
        place = next(number for number, line in enumerate(whole) if line.startswith(f"| `{entries[gone].name}` |"))
        assert fewer == whole[:place] + whole[place + 1 :]


def test_every_refusal_of_the_matrix_has_a_letter():
    verdicts = [one for entry in gallery() for one in entry.families.values()]
    verdicts += [one.without_cls for one in verdicts if one.without_cls is not None]
    codes = {one.code for one in verdicts if one.outcome == "no"}
    assert codes <= set(pages_of_methods.LETTERS) and len(set(pages_of_methods.LETTERS.values())) == len(codes)
    assert {code for one in verdicts for code in one.conditions} <= set(pages_of_methods.CONDITIONS)


def test_every_paper_is_in_the_index_with_what_it_was_verified_against():
    page = papers.pages(ROOT)["paper_index.md"]
    rows = [line for line in page.splitlines() if line.startswith("| ") and "arxiv.org" in line]
    assert sum(entry.paper in page and f"`{entry.name}`" in page for entry in gallery() if entry.paper) == sum(
        bool(entry.paper) for entry in gallery()
    )
    assert all(row.split(" | ")[-1].strip(" |") for row in rows)
    (divprune,) = (row for row in rows if "`divprune`" in row)
    assert "[authors' numbers](../tests/golden/divprune.json)" in divprune and "[reference loop](" in divprune
    (todre,) = (row for row in rows if "`todre`" in row)
    assert "from the paper" in todre and "authors' numbers" not in todre

"""The sources of the site: links that leave docs/, the navigation, and the generated pages of methods."""

from __future__ import annotations

import re
import sys
import tomllib

import pytest

from foveate.cards import cards
from foveate.core.errors import CODES
from foveate.core.plan import Plan
from foveate.gallery import gallery
from tests.docs.snippets import ROOT

sys.path.insert(0, str(ROOT / "docs"))

import build_site

from generator import method_pages

REPOSITORY = "https://example.org/owner/foveate"


def rewritten(text: str, source: str, repository: str = REPOSITORY) -> str:
    return build_site.rewrite(text, ROOT / source, build_site.pages(), repository)


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("docs/index.md", "tune.md", "tune.md"),
        ("docs/index.md", "../CONTRIBUTING.md#versions", "contributing.md#versions"),
        ("docs/reference/cli.md", "../tune.md", "../tune.md"),
        ("CONTRIBUTING.md", "docs/DESIGN.md", "DESIGN.md"),
        ("CONTRIBUTING.md", "docs/figures/pvc.svg", "figures/pvc.svg"),
        ("docs/methods/fastv.md", "../../src/foveate/cli.py", f"{REPOSITORY}/blob/main/src/foveate/cli.py"),
        ("docs/own-method.md", "../examples/own_method", f"{REPOSITORY}/tree/main/examples/own_method"),
        ("docs/index.md", "https://arxiv.org", "https://arxiv.org"),
        ("docs/index.md", "#here", "#here"),
    ],
)
def test_links_lead_to_the_page_or_into_the_repository(source: str, link: str, expected: str) -> None:
    assert rewritten(f"a [`b`]({link}) c", source) == f"a [`b`]({expected}) c"


def test_code_is_not_a_link_and_a_file_that_does_not_exist_is_an_error() -> None:
    block = "```sh\n[a](nothing.md)\n```"
    assert rewritten(block, "docs/index.md") == block
    assert rewritten("[`cli`](../src/foveate/cli.py)", "docs/index.md", repository="") == "`cli`"
    with pytest.raises(FileNotFoundError, match=r"docs/index\.md: there is no nothing\.md"):
        rewritten("[a](nothing.md)", "docs/index.md")


def test_every_page_is_in_the_navigation() -> None:
    entries = tomllib.loads((ROOT / "docs/zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    available = set(build_site.pages().values())
    navigation = build_site.navigation(entries, available)
    assert "methods/divprune.md" in str(navigation) and "/*" not in str(navigation)
    with pytest.raises(FileNotFoundError, match=r"the navigation lacks new\.md"):
        build_site.navigation(entries, available | {"new.md"})


def test_every_method_has_a_small_page_with_plans_that_can_be_read() -> None:
    pages = method_pages.pages(ROOT)
    assert set(pages) == {f"methods/{entry.name}.md" for entry in [*gallery(), *cards()]}
    assert max(map(len, pages.values())) < 10_000
    for entry in gallery():
        section = pages[f"methods/{entry.name}.md"].split("## In a plan\n\n")[1].split("\n\n##")[0]
        plans = [
            plan for block in re.findall(r"```text\n(.*?)```", section, flags=re.DOTALL) for plan in block.split("\n")
        ]
        assert plans or f"such as {entry.name}(" in section
        assert all(Plan.of(plan).steps[0].method.name == entry.name for plan in plans if plan)


def test_a_page_has_the_cost_and_the_accuracy_of_its_method_next_to_baselines() -> None:
    page = method_pages.pages(ROOT)["methods/divprune.md"]
    cost, accuracy = page.split("## Cost")[1].split("## Measured accuracy")
    for section in (cost, accuracy):
        first_cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| ")]
        assert {"| `divprune:25%`", "| `random:25%`"} <= {cell.replace("*", "`") for cell in first_cells}
    numbers = next(line for line in cost.splitlines() if line.startswith("| `divprune:25%`")).split(" | ")
    full = next(line for line in cost.splitlines() if line.startswith("| full model")).split(" | ")
    assert int(numbers[1]) == round(int(full[1]) / 4)


def test_codes_of_the_page_on_troubleshooting_exist() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*) \|", text.split("## Attaching a plan")[1].split("\n## ")[0], flags=re.MULTILINE)
    codes = {code for row in rows for code in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", row)}
    assert len(codes) >= 10 and codes <= set(CODES)

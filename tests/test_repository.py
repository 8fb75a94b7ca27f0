"""The repository around the code: file sizes, words, workflows, issue forms, the container, and versions."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
FORMS = sorted(set(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")) - {ROOT / ".github/ISSUE_TEMPLATE/config.yml"})


def script(name: str) -> ModuleType:
    """A script of .ci, as a module."""
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def file_name(path: Path) -> str:
    return path.name


# Sizes


def test_a_large_file_is_refused_outside_the_folders_for_weights(tmp_path):
    sizes = script("sizes")
    names = ("small.bin", "large.bin", "src/foveate/embedded/large.bin", "benchmarks/models/a/large.bin")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(sizes.LIMIT + ("large" in name)))
    (tmp_path / "link.bin").symlink_to(tmp_path / "large.bin")
    large = sizes.oversized(tmp_path, [*names, "link.bin", "deleted.bin"])
    assert large == {"large.bin": sizes.LIMIT + 1}
    (sentence,) = sizes.problems(large, {}, complete=True)
    assert sentence.startswith("large.bin has 500 kB; 500 kB are possible outside src/foveate/embedded/")
    assert sizes.problems(large, {"*.bin": "a reason"}, complete=True) == []


def test_an_entry_that_allows_nothing_is_refused_where_all_files_are_known():
    sizes = script("sizes")
    (sentence,) = sizes.problems({}, {"gone.bin": "a reason"}, complete=True)
    assert "'gone.bin'" in sentence and "remove the entry" in sentence
    assert sizes.problems({}, {"gone.bin": "a reason"}, complete=False) == []


def test_the_check_and_the_hook_look_at_sizes():
    hooks = parsed(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert any(hook["entry"].endswith(".ci/sizes.py") and hook.get("pass_filenames", True) for hook in hooks)
    check = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ncheck:")[1].split("\n\n")[0]
    assert ".ci/sizes.py" in check


# Words


def test_an_unclear_word_is_named_with_its_line_and_a_replacement():
    words = script("words")
    text = "Tokens of the full model.\nThe seam before the decoder.\n"
    (sentence,) = words.problems("docs/page.md", text)
    assert sentence == "docs/page.md:2: 'seam' is unclear; write: hook."


@pytest.mark.parametrize("word", ["rooms", "untouched", "Told", "which are left", "looks at", "dart-at"])
def test_unclear_words_are_matched_as_whole_words(word):
    words = script("words")
    assert len([*words.problems("docs/page.md", f"before {word} after.")]) == 1
    assert [*words.problems("docs/page.md", f"x{word} {word}x {word}-x x-{word}")] == []


@pytest.mark.parametrize(
    "text",
    [
        'The plan `untouched` and the key "loyalty".',
        "left padding, the left half, data that were not used, a mushroom",
        "UNTOUCHED = 'untouched'",
        "<!-- generated: x -->\nseam\n<!-- end -->",
    ],
)
def test_values_and_generated_blocks_are_ignored(text):
    assert [*script("words").problems("docs/page.md", text)] == []


def test_line_numbers_count_generated_blocks():
    text = "a\n<!-- generated: x -->\nseam\n<!-- end -->\nseam\n"
    (sentence,) = script("words").problems("docs/page.md", text)
    assert sentence.startswith("docs/page.md:5:")


def test_allowed_words_and_generated_pages_pass():
    words = script("words")
    assert [*words.problems("src/foveate/synthetic/fields.py", "room")] == []
    assert len([*words.problems("src/foveate/synthetic/fields.py", "seam")]) == 1
    assert [*words.problems("docs/reference/runtime.md", "seam")] == []
    for path, (patterns, reason) in words.ALLOWED.items():
        assert (ROOT / path).exists() and set(patterns) <= words.WORDS.keys() and reason


def test_paths_override_the_checked_folders():
    words = script("words")
    assert words.covered("README.md") and words.covered("docs/generator/flops.py")
    assert not words.covered("LICENSE") and not words.covered("somewhere/README.md")
    expected = {"README.md", "docs/DESIGN.md", "Makefile", ".ci/run", "recipes/tiny.yaml"}
    assert expected <= set(words.files(ROOT, []))
    assert words.files(ROOT, ["LICENSE", "src/foveate/cli.py"]) == ["src/foveate/cli.py"]


def test_the_checked_files_have_no_unclear_words(capsys):
    assert script("words").main([]) == 0, capsys.readouterr().out
    check = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ncheck:")[1].split("\n\n")[0]
    assert ".ci/words.py" in check


# Workflows


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=file_name)
def test_a_workflow_names_what_there_is(path):
    """Targets of the Makefile, files of the repository, and jobs that a job waits for."""
    workflow = parsed(path)
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    commands = [step["run"] for step in steps(workflow) if "run" in step]
    assert commands
    for command in commands:
        for line in re.findall(r"^\s*make ([^\n;&|]+)", command, flags=re.MULTILINE):
            assert set(line.split()) <= targets, line
        for file in re.findall(r"\.ci/[\w.]+", command):
            assert (ROOT / file).exists(), file
    for job in workflow["jobs"].values():
        needed = job.get("needs", [])
        assert set([needed] if isinstance(needed, str) else needed) <= set(workflow["jobs"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=file_name)
def test_a_workflow_has_few_rights_and_pinned_actions(path):
    workflow = parsed(path)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    text = path.read_text(encoding="utf-8")
    uses = re.findall(r"uses: (.+)", text)
    assert len(uses) == sum("uses" in step for step in steps(workflow))
    for action in uses:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        # What a stranger may name (a branch, a title) reaches a shell as a variable only.
        assert "${{" not in step.get("run", "")


def test_one_action_has_one_version():
    pins = {}
    for path in WORKFLOWS:
        for action, pin in re.findall(r"uses: ([^@\s]+)@(.+)", path.read_text(encoding="utf-8")):
            assert pins.setdefault(action, pin) == pin, (path.name, action)


def test_every_python_and_every_set_of_versions_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = set(re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"])))
    jobs = parsed(ROOT / ".github/workflows/tests.yml")["jobs"]
    runs = jobs["test"]["strategy"]["matrix"]["include"]
    assert {run["python"] for run in runs if run["versions"] == "locked"} == pythons
    assert set(jobs["wheel"]["strategy"]["matrix"]["python"]) == pythons
    assert {run["versions"] for run in runs} == {"oldest", "locked", "newest"}
    assert {step["run"] for step in jobs["test"]["steps"] if "run" in step} == {
        f"make test-{run['versions']}" for run in runs
    }


def test_only_the_job_of_the_environment_pypi_publishes():
    jobs = parsed(ROOT / ".github/workflows/release.yml")["jobs"]
    publishing = [name for name, job in jobs.items() if any("pypi-publish" in s.get("uses", "") for s in job["steps"])]
    assert publishing == ["publish"]
    assert jobs["publish"]["environment"]["name"] == "pypi"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert [step["uses"].partition("@")[0] for step in jobs["publish"]["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]


def test_the_issue_of_the_weekly_run_says_what_failed(tmp_path):
    compatibility = script("compatibility")
    path = tmp_path / "result.json"
    assert compatibility.reported(path).startswith("The tests did not begin")
    failures = [f"tests/test_a.py::test_{index}" for index in range(60)]
    result = {"name": "newest", "date": "2026-11-29", "versions": {"torch": "2.14.1"}, "command": "make test-newest"}
    path.write_text(json.dumps(result | {"passed": 7, "failed": 60, "skipped": 1, "failures": failures}))
    text = compatibility.reported(path)
    assert "`make test-newest`, 2026-11-29: 7 passed, 60 failed, 1 skipped." in text
    assert "| torch | 2.14.1 |" in text
    assert text.count("- `tests/") == 50 and text.endswith("- and 10 more\n")


# Forms


@pytest.mark.parametrize("path", FORMS, ids=file_name)
def test_an_issue_form_is_one(path):
    form = parsed(path)
    assert {"name", "description", "labels", "body"} == form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    names = [field["id"] for field in fields]
    assert len(names) == len(set(names))
    assert any(field.get("validations", {}).get("required") for field in fields)
    for field in fields:
        assert field["type"] in {"input", "textarea", "dropdown", "checkboxes"} and field["attributes"]["label"]
        options = [
            option if isinstance(option, str) else option["label"] for option in field["attributes"].get("options", [])
        ]
        assert len(options) == len(set(options))
        assert bool(options) == (field["type"] in {"dropdown", "checkboxes"})


def test_the_other_templates_are_there():
    assert [path.stem for path in FORMS] == ["bug", "new-family", "new-method"]
    links = parsed(ROOT / ".github/ISSUE_TEMPLATE/config.yml")["contact_links"]
    assert all(link["url"].startswith("https://") and link["name"] and link["about"] for link in links)
    assert (ROOT / ".github/PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8").count("- [ ]") >= 3
    updates = parsed(ROOT / ".github/dependabot.yml")["updates"]
    assert [update["package-ecosystem"] for update in updates] == ["github-actions"]


# The container


def test_the_container_copies_only_what_is_not_ignored():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, flags=re.MULTILINE) for name in line.split()
    }
    assert "*" in lines and copied == sent
    assert all((ROOT / name).exists() for name in copied)


def test_the_container_ends_without_rights_of_root_and_offline():
    stage = (ROOT / "Dockerfile").read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (\d+)$", stage, flags=re.MULTILINE) == ["10001"]
    assert "HF_HUB_OFFLINE=1" in stage and "HEALTHCHECK" in stage
    assert re.search(r'^ENTRYPOINT \["foveate", "serve", ', stage, flags=re.MULTILINE)


# Versions


def repository(folder: Path, code: str, cited: str, heading: str, text: str = "- Something.") -> Path:
    """A repository of three files that say a version."""
    (folder / "src/foveate").mkdir(parents=True)
    (folder / "src/foveate/__init__.py").write_text(f'"""A package."""\n__version__ = "{code}"\n')
    (folder / "CITATION.cff").write_text(f'cff-version: 1.2.0\nversion: {cited}\ndate-released: "2026-01-02"\n')
    (folder / "CHANGELOG.md").write_text(
        f"# Changelog\n\n## [Unreleased]\n\n{heading}\n\n{text}\n\n## [0.0.1] - 2025-01-01\n\n- The old.\n"
    )
    return folder


def test_this_repository_says_one_version():
    assert script("release").problems(ROOT) == []


def test_a_release_needs_one_version_everywhere(tmp_path):
    release = script("release")
    good = repository(tmp_path / "good", "1.2.0", "1.2.0", "## [1.2.0] - 2026-01-02")
    assert release.problems(good, "v1.2.0") == []
    assert release.notes(good) == "- Something."
    assert release.problems(good, "1.2.0") == ["The tag is 1.2.0, and the code has version 1.2.0: its tag is v1.2.0."]


@pytest.mark.parametrize(
    ("code", "cited", "heading", "text", "says"),
    [
        ("1.3.0", "1.2.0", "## [1.2.0] - 2026-01-02", "- It.", "the newest section of CHANGELOG.md 1.2.0."),
        ("1.2.0", "1.1.0", "## [1.2.0] - 2026-01-02", "- It.", "CITATION.cff has 1.1.0 of 2026-01-02"),
        ("1.2.0", "1.2.0", "## [1.2.0] - 2026-01-03", "- It.", "CHANGELOG.md 1.2.0 of 2026-01-03"),
        ("1.2.0", "1.2.0", "## [1.2.0] - 2026-01-02", "", "CHANGELOG.md says nothing about 1.2.0."),
        ("1.2.0", "1.2.0", "## 1.2.0", "- It.", "the newest section of CHANGELOG.md 0.0.1."),
    ],
)
def test_what_does_not_agree_is_named(tmp_path, code, cited, heading, text, says):
    sentences = script("release").problems(repository(tmp_path, code, cited, heading, text), f"v{code}")
    assert any(says in sentence for sentence in sentences), sentences


def test_between_releases_the_code_may_be_ahead_but_not_be_tagged(tmp_path):
    release = script("release")
    root = repository(tmp_path, "1.3.0.dev0", "1.2.0", "## [1.2.0] - 2026-01-02")
    assert release.problems(root) == []
    assert release.problems(root, "v1.3.0.dev0") != []


def test_links_of_the_readme_are_absolute_on_the_package_index():
    links = script("absolute_links")
    text = "[a](docs/a.md) ![b](docs/b.png) [c](https://x.org/c) [d](#d) [![e](https://x.org/e.svg)](LICENSE)"
    assert links.absolute(text, "https://github.com/o/n/", "v1") == (
        "[a](https://github.com/o/n/blob/v1/docs/a.md) ![b](https://github.com/o/n/raw/v1/docs/b.png) "
        "[c](https://x.org/c) [d](#d) [![e](https://x.org/e.svg)](https://github.com/o/n/blob/v1/LICENSE)"
    )
    readme = links.absolute((ROOT / "README.md").read_text(encoding="utf-8"), "https://github.com/o/n", "v1")
    assert all("://" in target or target.startswith("#") for target in re.findall(r"\]\(([^)\s]+)\)", readme))

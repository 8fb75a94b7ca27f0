"""The scripts of benchmarks/ import only what the package has."""

import runpy
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))
assert SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_can_be_imported(script):
    assert callable(runpy.run_path(str(script), run_name=script.stem)["main"])

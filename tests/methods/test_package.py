"""`foveate.methods`: a package of classes that lists the methods when it is called."""

import importlib
import subprocess
import sys

import pytest

import foveate
from foveate import FoveateError, Plan
from foveate.core.registry import all_methods
from foveate.methods.entries import indexed


def test_calling_it_lists_the_methods():
    assert foveate.methods() == all_methods()
    assert set(foveate.methods()) >= {entry.name for entry in indexed()}
    assert list(foveate.methods("*PRUNE")) == ["divprune", "hiprune"]
    with pytest.raises(FoveateError, match="did you mean divprune"):
        foveate.methods("divprun")


@pytest.mark.parametrize("name", [entry.name for entry in indexed()])
def test_every_built_in_class_can_be_imported_by_its_name(name):
    cls = foveate.methods()[name]
    assert getattr(importlib.import_module("foveate.methods"), cls.__name__) is cls
    assert cls.__name__ in dir(foveate.methods)


def test_an_imported_class_makes_plans():
    from foveate.methods import DivPrune

    assert str(Plan.of(DivPrune(), "25%")) == "divprune:25%"


def test_wrong_names_are_answered_with_close_ones():
    for line in ("from foveate.methods import DivPrun", "from foveate.methods import divprune"):
        with pytest.raises(ImportError, match="did you mean DivPrune"):
            exec(line)
    with pytest.raises(ImportError, match="possible are AdaptVision, CDPruner, "):
        exec("from foveate.methods import Xyzzyx")
    with pytest.raises(AttributeError, match="did you mean DivPrune"):
        foveate.methods.Divprune  # noqa: B018
    assert not hasattr(foveate.methods, "Xyzzyx") and not hasattr(foveate.methods, "_private")


def test_importing_the_package_does_not_wait_for_torch():
    program = "import sys, foveate_cli\nfrom foveate.methods import entries\nprint('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert run.stdout.strip() == "False"

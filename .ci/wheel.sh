#!/bin/sh
# What is shipped, tried as a stranger would: the wheel in an environment that holds what it requires, at the versions of
# the lock, and nothing else; then the wheel that is built from the sdist in its place. Both outside the clone.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
home=$root/.venv/wheel
pip="$home/bin/python -m pip --disable-pip-version-check --quiet"

rm -rf build/wheel && mkdir -p build/wheel/elsewhere
.venv/bin/python -m hatchling build -d build/wheel
test -x "$home/bin/python" || "${PYTHON:-python3}" -m venv "$home"
$pip install --no-compile -c requirements/core.txt build/wheel/*.whl
$pip install --no-deps --force-reinstall build/wheel/*.whl # also where one of the same version is there already
$pip check
cp examples/receipt.png build/wheel/elsewhere
cd build/wheel/elsewhere

"$home/bin/python" - << 'END'
from importlib.util import find_spec
from pathlib import Path

import foveate

assert find_spec("torchvision") is None, "torchvision is here"
assert Path(foveate.__file__).is_relative_to(Path(__import__("sys").prefix)), foveate.__file__
END
"$home/bin/foveate" ask receipt.png "What is the total?" --plan divprune:50% --picture out.png
test -s out.png

# The sdist holds no weights, and what is built from it says so.
if tar tzf ../*.tar.gz | grep -E '\.(safetensors|bin|pt)$|/(embedded|benchmarks/results|results|golden)/'; then
  echo "the sdist holds weights or results"
  exit 1
fi
mkdir from-sdist
"$root/.venv/bin/python" -m pip --disable-pip-version-check --quiet wheel --no-deps --no-build-isolation -w from-sdist ../*.tar.gz
$pip install --no-deps --force-reinstall from-sdist/*.whl
if said=$("$home/bin/foveate" ask receipt.png "What is the total?" 2>&1); then
  echo "a model without weights answered: $said"
  exit 1
fi
echo "$said" | tr '\n' ' ' | grep -q "holds no weights" || { echo "$said"; exit 1; }
echo "the wheel answers; what is built from the sdist says that it holds no weights"

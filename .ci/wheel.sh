#!/bin/sh
# Tests the distributions as a user installs them: the wheel in an environment that contains only its requirements, at the
# locked versions, and then the wheel that is built from the sdist. Both run outside the repository.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
home=$root/.venv/wheel
pip="$home/bin/python -m pip --disable-pip-version-check --quiet"

rm -rf build/wheel && mkdir -p build/wheel/elsewhere
.venv/bin/python -m hatchling build -d build/wheel
test -x "$home/bin/python" || "${PYTHON:-python3}" -m venv "$home"
$pip install --no-compile -c requirements/core.txt build/wheel/*.whl
$pip install --no-deps --force-reinstall build/wheel/*.whl # also if the same version is already installed
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
"$home/bin/foveate" ask --example receipt "What is the total?"
"$home/bin/python" -c 'from foveate.shipped import recipe; assert recipe("recipe:tiny").is_file()'

# The sdist contains no weights, and a package that is built from it reports that.
if tar tzf ../*.tar.gz | grep -E '\.(safetensors|bin|pt)$|/(embedded|benchmarks/results|results|golden)/'; then
  echo "the sdist contains weights or results"
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
"$home/bin/foveate" ask --example | grep -q "example receipt"
echo "the wheel works; the package built from the sdist reports that it has no weights"

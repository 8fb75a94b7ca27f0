"""What `import foveate` offers: the public API alone."""

import subprocess
import sys

import foveate


def test_dir_is_the_public_api():
    assert dir(foveate) == sorted(foveate.__all__)
    assert all(getattr(foveate, name) is not None for name in foveate.__all__)
    assert {"ask", "load", "compress", "methods", "Plan", "__version__"} <= set(dir(foveate))


def test_dir_is_the_same_before_anything_is_used():
    program = "import foveate; print(dir(foveate) == sorted(foveate.__all__), foveate.methods.__name__)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert run.stdout.split() == ["True", "foveate.methods"]

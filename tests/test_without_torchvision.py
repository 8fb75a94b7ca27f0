"""foveate needs no torchvision: it imports, reads an image and answers where torchvision is not installed."""

import subprocess
import sys
import textwrap
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"

# Absent as a package that was never installed is absent: neither its module nor its metadata can be found.
ABSENT = """
import importlib.metadata
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] == "torchvision" else self.finder.find_spec(name, *rest)
    def find_distributions(self, *rest):
        for found in getattr(self.finder, "find_distributions", lambda *_: ())(*rest):
            if found.metadata["Name"] != "torchvision":
                yield found
    def invalidate_caches(self):
        getattr(self.finder, "invalidate_caches", lambda: None)()

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

try:
    importlib.metadata.version("torchvision")
except importlib.metadata.PackageNotFoundError:
    pass
else:
    sys.exit("torchvision is still found")
"""


def run_without_torchvision(code: str) -> str:
    """Standard output of a program in a process that has no torchvision."""
    done = subprocess.run(
        [sys.executable, "-c", ABSENT + textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchvision_is_really_absent_there():
    out = run_without_torchvision(
        """
        from transformers.utils import is_torchvision_available
        try:
            import torchvision
        except ModuleNotFoundError:
            print("absent", is_torchvision_available())
        """
    )
    assert out == "absent False\n"


def test_the_embedded_model_answers():
    out = run_without_torchvision(
        f"""
        import foveate
        answer = foveate.ask({str(EXAMPLES / "receipt.png")!r}, "What is the total?")
        print(type(foveate.load()[1].image_processor).__name__, "torchvision" in sys.modules, bool(answer.text))
        """
    )
    assert out == "LlavaUHDImageProcessor False True\n"

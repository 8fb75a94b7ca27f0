"""Recipe files: a recipe that can be written again, or one sentence."""

import tempfile
from pathlib import Path

from foveate.core.errors import FoveateError
from foveate.training.recipe_file import read_recipe
from tests.fuzz.targets import is_sentence
from tests.fuzz.traps import bad_recipes

_HELD = tempfile.TemporaryDirectory(prefix="foveate-fuzz-")
_FILE = Path(_HELD.name) / "recipe.yaml"

SEEDS = [
    *(text.encode("utf-8", "surrogatepass") for _, text in bad_recipes() if len(text) < 2**14),
    *(path.read_bytes() for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))),
]
WORDS = [
    b"model:", b"stages:", b"output:", b"new:", b"from:", b"plan:", b"loss:", b"data:", b"train:", b"steps:",
    b"rendered:",
    b"schedule:", b"&a ", b"*a", b"<<: ", b"!!python/object", b"!!binary", b"!!set", b"!!timestamp", b"!!float",
    b"!!int", b"- ",
    b"{", b"}", b"[", b"]", b"? ", b"| ", b"> ", b".nan", b".inf", b"2001-13-99", b"1:59", b"0x", b"---", b"...",
    b"%YAML 9.9",
]  # fmt: skip


def check(data: bytes) -> None:
    """See the module."""
    _FILE.write_bytes(data)
    try:
        recipe = read_recipe(_FILE)
    except FoveateError as error:
        is_sentence(error)
    else:
        assert recipe.stages and len(repr(recipe)) < 10**7

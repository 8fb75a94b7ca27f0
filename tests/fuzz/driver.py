"""Coverage-guided fuzzing of one target with atheris: `python tests/fuzz/driver.py NAME CORPUS [libFuzzer's options]`.

The corpus is a folder that grows and is gone on with; seeds are laid in it first. What ends in a fault is written
beside it, and the run ends with a code that is not 0.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

#: Longest input that is tried, in bytes; the few longer traps are given by `test_fuzz`.
LONGEST = 4096


def main(arguments: list[str]) -> None:
    """See the module."""
    try:
        import atheris
    except ImportError:
        sys.exit("coverage-guided fuzzing needs atheris (Linux and macOS): pip install 'foveate[fuzz]'")
    name, corpus = arguments[0], Path(arguments[1])
    # What is counted: our parsers and the Python of those they use. torch and transformers would only cost time.
    with atheris.instrument_imports(include=[
        "foveate.core.plan", "foveate.core.errors", "foveate.batch", "foveate.images", "foveate.serving.protocol",
        "foveate.serving.sources", "foveate.training.recipe", "foveate.training.dataset", "PIL", "yaml", "json", "ast",
        "urllib.parse", "httpx",
    ]):  # fmt: skip
        from PIL import Image

        from tests.fuzz.targets import NAMES, target

        if name not in NAMES:
            sys.exit(f"there is no target {name!r}; possible are {', '.join(NAMES)}")
        one = target(name)
        Image.init()
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in (seed for seed in one.seeds if len(seed) <= LONGEST):
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    dictionary = corpus.with_name(f"{name}.dict")
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in one.words)
    dictionary.write_text("".join(f'"{word}"\n' for word in escaped))
    found = corpus.with_name("found")
    found.mkdir(exist_ok=True)
    options = [f"-dict={dictionary}", f"-artifact_prefix={found}/{name}-", "-timeout=30", "-rss_limit_mb=4096",
               f"-max_len={LONGEST}",
               "-print_final_stats=1", *arguments[2:]]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], one.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])

"""Rejects unclear words in text and code, and names the word of the field that replaces each.

    python .ci/words.py [PATHS]    # default: the files of `CHECKED`

With PATHS, all text files among them are checked, also outside `CHECKED`. Code in backticks and quoted single words are
ignored, because names and values are part of the API. So are generated pages and the generated
blocks of pages: their words come from the code. The exit code is 1 if a word is found.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Files and folders that `make check` covers. Add a folder of src/ or tests/ as soon as it has none of the words.
CHECKED = (
    "*.md", "*.cff", "Makefile", "Dockerfile", ".ci/", ".github/", "benchmarks/", "docs/", "examples/",
    "recipes/", "src/", "tests/core/", "tests/methods/", "tests/models/",
)  # fmt: skip
#: Pages that are generated from the code.
GENERATED = (
    "docs/reference.md", "docs/reference/*", "docs/methods.md", "docs/methods/*", "docs/matrix.md", "docs/support.md",
    "docs/paper_index.md", "docs/flops.md", "docs/results/*",
)  # fmt: skip
SUFFIXES = (".md", ".py", ".sh", ".toml", ".cff", ".yaml", ".yml", "Makefile", "Dockerfile", "/run")

#: Patterns of words, each with its replacement. Constants in capitals are not matched.
WORDS = {
    r"[Rr]ooms?": "package or folder; of space: space",
    r"[Hh]ouse": "package or library",
    r"[Ss]eams?": "hook",
    r"[Tt]he way of": "data flow of",
    r"[Uu]ntouched": "full model, uncompressed or unchanged",
    r"[Ll]oyalty": "agreement with the full model",
    r"[Bb]eside": "next to, with, compared with or in addition to",
    r"[Tt]old": "passed to, configured with, or the name of the value",
    r"[Ss]een": "processed, trained on, or the name of the value",
    r"[Dd]ear": "expensive",
    r"(?:[Ww]hat|that|which) (?:is|are|was|were) left": "remaining",
    r"[Ww]hat stands": "the name of the thing",
    r"[Ww]hat (?:came|comes|became) of": "results of",
    r"held against": "compared with",
    r"take[ns]? off again": "removed",
    r"(?:[Ll]ook|[Ll]ooks|[Ll]ooked|[Ll]ooking) at": "attend to, use or inspect",
    r"[Ll]istens? to": "attend to",
    r"before-lm": "pre_llm",
    r"in-encoder": "encoder",
    r"(?:dart|todre|random|pool|vflowopt)-at": "the name that ends in -decoder",
    r"train-(?:pruner|draft)": "train-method NAME",
}
#: Files that may contain some of the words, with the patterns of WORDS and the reason.
ALLOWED: dict[str, tuple[tuple[str, ...], str]] = {
    ".ci/words.py": (tuple(WORDS), "the list itself"),
    "tests/test_repository.py": (tuple(WORDS), "tests of the list"),
    "docs/generator/small_networks.py": ((r"train-(?:pruner|draft)",), "translates the commands of old results"),
    "src/foveate/benchmark/results.py": ((r"[Uu]ntouched", r"[Ll]oyalty"), "translates the notes of old results"),
    "tests/test_docs.py": ((r"train-(?:pruner|draft)",), "translates the commands of old results"),
    "src/foveate/core/plan.py": (
        (r"before-lm", r"in-encoder", r"(?:dart|todre|random|pool|vflowopt)-at"),
        "reads old plans",
    ),
    "src/foveate/methods/kv_cache/scale_cache.py": ((r"[Ss]een",), "a key of written results"),
    "tests/core/test_files.py": ((r"[Rr]ooms?",), "a context manager of tests/full_disk.py"),
    "src/foveate/synthetic/fields.py": ((r"[Rr]ooms?",), "a field of rendered forms"),
    "src/foveate/synthetic/screens.py": ((r"[Hh]ouse",), "an icon of rendered screens"),
    "src/foveate/synthetic/questions.py": (
        (r"(?:[Ll]ook|[Ll]ooks|[Ll]ooked|[Ll]ooking) at",),
        "wordings of rendered questions",
    ),
    "src/foveate/synthetic/textpages.py": ((r"[Bb]eside",), "a key of the wordings"),
    "src/foveate/answering/selections.py": ((r"[Ss]een",), "a key of documents"),
    "src/foveate/integrations/lmms_eval/model.py": ((r"[Ss]een",), "an attribute that runs print"),
}

_PATTERNS = {word: re.compile(rf"(?<![\w-])(?:{word})(?![\w-])") for word in WORDS}
_BLOCK = re.compile(r"<!-- generated: .*?<!-- end -->", re.DOTALL)
_VALUE = re.compile(r"`[^`]*`|\"[\w-]+\"|'[\w-]+'")


def files(root: Path, paths: list[str]) -> list[str]:
    """Text files that git tracks or would add, among `paths` or, if there are none, in `CHECKED`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *paths]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return [
        path
        for path in output.split("\0")
        if path.endswith(SUFFIXES) and (root / path).is_file() and (paths or covered(path))
    ]


def covered(path: str) -> bool:
    """Whether `CHECKED` contains a path: folders end in a slash, patterns without one are of the root folder."""
    return any(
        path.startswith(entry) if entry.endswith("/") else "/" not in path and fnmatchcase(path, entry)
        for entry in CHECKED
    )


def problems(path: str, text: str) -> Iterator[str]:
    """One sentence per unclear word of a file."""
    if any(fnmatchcase(path, pattern) for pattern in GENERATED):
        return
    allowed, _ = ALLOWED.get(path, ((), ""))
    text = _BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
    for number, line in enumerate(text.splitlines(), start=1):
        plain = _VALUE.sub("``", line)
        for word, pattern in _PATTERNS.items():
            if word not in allowed and (match := pattern.search(plain)):
                yield f"{path}:{number}: {match[0]!r} is unclear; write: {WORDS[word]}."


def main(arguments: list[str]) -> int:
    """See the module."""
    sentences = [
        sentence
        for path in files(ROOT, arguments)
        for sentence in problems(path, (ROOT / path).read_text(encoding="utf-8"))
    ]
    print(*sentences, sep="\n", end="\n" if sentences else "")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Plans, recipes and lines of data that no honest user writes; images and requests are in `hostile`."""

from __future__ import annotations

import json
from collections.abc import Iterator


def bad_plans() -> Iterator[tuple[str, str]]:
    """Texts that are no plan."""
    yield "nothing", ""
    yield "blanks", " \n\t"
    yield "unknown", "nosuch:64"
    yield "no budget", "divprune"
    yield "nothing kept", "divprune:0"
    yield "less than nothing", "divprune:-1"
    yield "more than all", "divprune:101%"
    yield "NaN", "divprune:nan%"
    yield "infinity", "divprune:inf%"
    yield "more than any number", "divprune:1e999999999%"
    yield "9000 digits", "divprune:" + "9" * 9000
    yield "blanks that could be split in many ways", "a" + " " * 9000 + "("
    yield "blanks before layers", "a:" + " " * 9000 + "@x"
    yield "a million characters", "a" * 10**6
    yield "brackets", "((((((" * 1000
    yield "lists in lists", f"random(seed={'[' * 3000}{']' * 3000}):64"
    yield "signs", f"random(seed={'-' * 9000}1):64"
    yield "a long sum", f"random(seed={'1+' * 4000}1):64"
    yield "methods in methods", "pospad(selector=" * 300 + "divprune" + ")" * 300 + ":64"
    yield "a method in itself", "pospad(selector=pospad):64"
    yield "code", "divprune(__import__('os').system('true')):64"
    yield "code as a value", "random(seed=__import__('os').getpid()):64"
    yield "a format string", "random(seed={0.__class__}):64"
    yield "a wrong kind", "random(seed='x'):64"
    yield "an infinite share", "hiprune(alpha=1e999):64"
    yield "a share that is no number", "hiprune(alpha=nan):64"
    yield "an argument that does not exist", "hiprune(alpa=0.1):64"
    yield "two budgets", "divprune:64:64"
    yield "layers of another kind", "fastv:50%@two"
    yield "layers where there are none", "divprune:64@2"
    yield "a half step", "divprune:64 + "
    yield "NUL", "divprune\0:64"
    yield "half of a character", "\ud800:64"
    yield "right to left", "\u202edivprune:64"
    yield "other letters", "диврруне:64"


def bad_recipes() -> Iterator[tuple[str, str]]:
    """Texts that are no recipe."""
    yield "nothing", ""
    yield "null", "null"
    yield "a list", "[1, 2]"
    yield "a text", "recipe"
    yield "nothing but braces", "{}"
    yield "a tab", "\ta: 1"
    yield "an open list", "a: [1, 2"
    yield "NUL", "a: \0"
    yield "half of a character", "a: \ud800"
    yield "a program", "!!python/object/apply:os.system ['true']"
    yield "a class", "!!python/name:os.system"
    yield "an alias of itself", "&a [*a]"
    yield "a model of itself", "&a {model: *a, stages: [], output: x}"
    yield "an alias of nothing", "a: *b"
    laughs = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'ha'] * 9)}]" for n in range(12))
    yield "a billion laughs", laughs
    yield "a billion laughs as a model", laughs + "\nmodel: *a11\nstages: []\noutput: x"
    wide = "&w [" + "x, " * 15_000 + "]"
    yield "wide laughs", f"a: {wide}\nb: [" + "*w, " * 15_000 + "]"
    yield "lists in lists", "[" * 100_000
    yield "objects in objects", "{a: " * 50_000
    yield "inline lists in lists", "- " * 5_000
    yield "longer than any", "a: " + "x" * 10**6
    yield "a 13th month", "a: 2001-13-01"
    yield "5000 digits", "a: " + "9" * 5000
    yield "an empty number", "a: !!int ''"
    yield "a bool that is none", "a: !!bool x"
    yield "a time that is none", "a: !!timestamp x"
    yield "a merge with a number", "<<: 3"
    yield "a list as a key", "? [a]\n: b"
    stage = "{name: a, steps: 1, batch_size: 1, data: [{rendered: {}}], train: {heads: 1}}"
    whole = f"model: {{from: embedded}}\noutput: x\nstages: [{stage}]\n"
    for name, line in (
        ("NaN minutes", "save_minutes: .nan"), ("infinite minutes", "save_minutes: .inf"), ("no steps", "log_every: 0"),
        ("a huge seed", "seed: " + "9" * 400), ("a seed that is a list", "seed: [1]"),
        ("a key twice removed", "frob: 1"),
    ):  # fmt: skip
        yield name, whole + line


def bad_data() -> Iterator[tuple[str, str]]:
    """Files of conversations or questions that are none."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    yield "nothing", ""
    yield "blank lines", "\n\n \n"
    yield "an open object", "{"
    yield "an open list", "["
    yield "an empty list", "[]"
    yield "numbers", "1\n2"
    yield "NaN", "NaN"
    yield "NaN in a row", '{"image": NaN, "question": Infinity, "conversations": -Infinity}'
    yield "NUL", "\0"
    yield "lists in lists", "[" * 100_000
    yield "lists in lists in a row", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    yield "objects in objects", '{"a": ' * 50_000
    yield "5000 digits", '{"question": "?", "id": ' + "9" * 5000 + "}"
    yield "half of a character", '{"question": "\\ud800", "conversations": [{"from": "human", "value": "\\ud800"}]}'
    yield "a byte-order mark in the middle", '{"question": "?"}\n\ufeff{"question": "?"}\n{'
    yield "other line ends", '{"question": "?",\u2028"id": 1}\x85{'
    for name, image in (
        ("a missing image", "none.png"), ("the way out", "../../../../../../etc/passwd"), ("a device", "/dev/zero"),
        ("a folder", "."), ("a long name", "a" * 5000), ("a NUL in a name", "a\0b.png"),
        ("an address", "http://169.254.169.254/"),
        ("an address of a file", "file:///etc/passwd"), ("SVG", "drawing.svg"), ("a bomb", "bomb.png"),
        ("a loop", "loop.png"),
        ("a pickle", "pickle.png"), ("a pipe", "pipe.png"), ("an EPS", "program.eps"),
    ):  # fmt: skip
        yield name, json.dumps({"image": image, "conversations": turns})
        yield f"{name}, asked", json.dumps({"image": image, "question": "What?"})
    yield "no turns", json.dumps({"conversations": []})
    yield "a speaker that is a list", json.dumps({"conversations": [{"from": ["human"], "value": "?"}]})
    yield "turns that are text", json.dumps({"conversations": "Hi"})
    yield "a question that is a number", json.dumps({"question": 7})
    yield "a plan that does not exist", json.dumps({"question": "?", "plan": "nosuch:3"})
    yield "endless answers", json.dumps({"question": "?", "max_new_tokens": 1e999})
    yield "no tokens", json.dumps({"question": "?", "max_new_tokens": 0})
    yield "an id twice", '{"question": "?", "id": 1}\n{"question": "!", "id": 1}'
    yield "an id that is a list", json.dumps({"question": "?", "id": [1]})
    yield "an unknown field", json.dumps({"question": "?", "run": "rm -rf /"})

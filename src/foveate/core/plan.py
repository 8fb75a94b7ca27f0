"""Plans: methods with their budgets, as objects and as text.

    divprune:64                          64 tokens of every image stay
    hiprune(alpha=0.1):25%               a quarter of the tokens stays; 0.25 says the same
    fastv:50%@2                          half stay from decoder layer 2 on
    fastervlm:192 + fastv:50%@2          one after the other

A step is a name, arguments in parentheses, a budget after a colon and decoder layers after an @; steps are joined by +.
Blanks between the parts mean nothing. Arguments are Python literals; a bare word is a string.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import types
import typing
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from foveate.core.counting import share_of
from foveate.core.errors import FoveateError, Refusal
from foveate.core.files import write_json
from foveate.core.frames import FrameSampler
from foveate.core.in_decoder import DecoderMethod
from foveate.core.method import Method
from foveate.core.registry import RENAMED, all_methods, why_missing
from foveate.core.text_files import read_json

#: The file next to a model's weights that `foveate.load` picks up.
PLAN_FILE = "foveate_plan.json"

#: Longest text that is read as a plan, and how deep its brackets may stand in one another: plans come from strangers
#: too (requests, folders of models), and reading one must end soon.
LONGEST, DEEPEST = 10_000, 16

_RENAMED = re.compile(rf"(?<![\w-])({'|'.join(RENAMED)})(?![\w-])")

# No two quantifiers that match the same characters stand side by side: the time to read a text grows with its length.
_NAME = re.compile(r"[A-Za-z][\w+-]*")
_TAIL = re.compile(r"\s*(?::(?P<budget>[^@:]*))?(?:@(?P<layers>[\d,\s]*))?")


@dataclass(frozen=True)
class Budget:
    """How much stays: a number of tokens of every image, or a fraction of them. Exactly one is given.

    Args:
        tokens: 1 or more.
        fraction: Above 0, up to 1; a fraction of N tokens is round(fraction * N), at least one token.
    """

    tokens: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.fraction is None):
            raise FoveateError("a budget is a number of tokens or a fraction of them, one of the two.")
        if self.tokens is not None and not isinstance(self.tokens, Integral):
            raise FoveateError(f"a budget of tokens is a whole number, not {self.tokens!r}.")
        if self.fraction is not None and (isinstance(self.fraction, bool) or not isinstance(self.fraction, Real)):
            raise FoveateError(f"a budget that is a fraction is a number such as 0.25, not {self.fraction!r}.")
        if self.tokens is not None and (isinstance(self.tokens, bool) or self.tokens < 1):
            raise FoveateError(f"a budget of {self.tokens} tokens keeps nothing; the least is 1.")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise FoveateError(f"a budget of {100 * self.fraction:g}% is not between 0 (excluded) and 100%.")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget of `64`, `25%` or `0.25`.

        Raises:
            FoveateError: it is neither.
        """
        text = text.strip()
        try:
            if text.endswith("%"):
                return cls(fraction=float(Decimal(text[:-1].strip()) / 100))  # as written: 0.55% is 0.0055
            if "." in text and 0 < (fraction := Decimal(text)) <= 1:
                return cls(fraction=float(fraction))
            return cls(tokens=int(text))
        except (ValueError, ArithmeticError) as error:  # no number, or one that is too large for any
            if isinstance(error, FoveateError):
                raise
            raise FoveateError(
                f"{_shown(text)} is no budget; write a number of tokens (64) or a fraction of them (25%)."
            ) from None

    def of(self, count: int) -> int:
        """Tokens that stay of `count`."""
        if self.tokens is not None:
            return min(self.tokens, count)
        return max(1, min(count, share_of(float(self.fraction or 0), count)))

    def __str__(self) -> str:
        if self.tokens is not None:
            return str(self.tokens)
        return f"{(100 * Decimal(repr(float(self.fraction or 0)))).normalize():f}%"


M = TypeVar("M", bound=Method, covariant=True)


@dataclass(frozen=True)
class Step(Generic[M]):
    """One method of a plan.

    Args:
        method: A method object.
        budget: What stays; None leaves it to the method.
        layers: Decoder layers at which it acts, for methods inside the language model.
    """

    method: M
    budget: Budget | None = None
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise FoveateError(f"a step has a method object, not {self.method!r}; parse_plan reads texts.")
        name = self.method.name
        if not isinstance(self.budget, Budget | None):
            raise FoveateError(f"{name}: the budget of a step is a Budget, such as Budget(64), not {self.budget!r}.")
        if not isinstance(self.layers, tuple) or not all(isinstance(layer, int) for layer in self.layers):
            raise FoveateError(f"{name}: the layers of a step are whole numbers, such as (2,), not {self.layers!r}.")
        if self.layers and not self.method.takes_layers:
            raise FoveateError(f"{name} acts {self.method.site}, not at decoder layers; leave @ out.")
        if len(set(self.layers)) < len(self.layers):
            raise FoveateError(f"{self} names a layer twice; name every layer once.")

    def count(self, tokens: int) -> int | None:
        """Tokens that stay of `tokens`; None leaves it to the method."""
        return None if self.budget is None else self.budget.of(tokens)

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={_literal(value)}" for name, value in self.method.arguments.items())
        text = self.method.name + (f"({arguments})" if arguments else "")
        if self.budget is not None:
            text += f":{self.budget}"
        if self.layers:
            text += "@" + ",".join(map(str, self.layers))
        return text


@dataclass(frozen=True)
class Plan:
    """Methods with budgets, in the order in which tokens meet them. `str(plan)` parses to an equal plan."""

    steps: tuple[Step[Method], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.steps, tuple) or not all(isinstance(step, Step) for step in self.steps):
            raise FoveateError(f"a plan has a tuple of steps, not {self.steps!r}; Plan.of reads texts and lists.")
        for step in self.steps[1:]:
            if isinstance(step.method, FrameSampler):
                what = f"{step.method.name} chooses frames of a clip"
                raise FoveateError(Refusal("wrong-order", what, "it must come first in a plan, and alone of its kind"))

    @classmethod
    def of(cls, plan: Plan | Step | Method | str | Iterable[Any], budget: Any = None) -> Plan:
        """A plan from whatever a user has: text, a plan, a method with a `budget`, or a list of these.

        Args:
            plan: What to do.
            budget: For a plan of one step that has none: tokens (int), a fraction (float), or text such as "25%".

        Raises:
            FoveateError: the text is no plan, or it names no known method; or a budget is given for a plan that has
                one, that has several steps, or whose method takes none.
        """
        parsed = _budget(budget)
        if isinstance(plan, Plan):
            return plan if parsed is None else cls(_with_budget(plan.steps, parsed))
        if isinstance(plan, Step):
            return cls((plan,) if parsed is None else _with_budget((plan,), parsed))
        if isinstance(plan, str):
            return parse_plan(plan, budget=parsed)
        if isinstance(plan, Method):
            step = Step(plan)
            return cls((step,) if parsed is None else _with_budget((step,), parsed))
        if isinstance(plan, Iterable):
            parts = list(plan)
            if parsed is not None and len(parts) == 1:
                return cls.of(parts[0], parsed)
            steps = tuple(step for part in parts for step in cls.of(part).steps)
            if steps:
                return cls(steps if parsed is None else _with_budget(steps, parsed))
        raise FoveateError(f"{plan!r} is no plan; write one as text, such as 'divprune:64'.")

    @property
    def frame_step(self) -> Step[FrameSampler] | None:
        """The step that chooses frames of a clip, before the model; None where there is none."""
        first = self.steps[0] if self.steps else None
        return cast("Step[FrameSampler]", first) if first and isinstance(first.method, FrameSampler) else None

    @property
    def for_model(self) -> Plan | None:
        """The steps that a model follows, all but that which chooses frames; None where there are no others."""
        steps = self.steps if self.frame_step is None else self.steps[1:]
        return Plan(steps) if steps else None

    @property
    def early_steps(self) -> tuple[Step[Method], ...]:
        """The steps of a model before its language model."""
        steps = self.steps if self.frame_step is None else self.steps[1:]
        return tuple(step for step in steps if not step.method.takes_layers)

    @property
    def decoder_steps(self) -> tuple[Step[DecoderMethod], ...]:
        """The steps inside the language model."""
        return cast("tuple[Step[DecoderMethod], ...]", tuple(step for step in self.steps if step.method.takes_layers))

    def __str__(self) -> str:
        return " + ".join(map(str, self.steps))

    def save(self, folder: str | Path) -> Path:
        """Write the plan next to a model's weights, where `foveate.load` finds it.

        Weights of methods go with it: files that it names are copied to where methods find them by themselves, so that
        the folder can be moved.

        Raises:
            FoveateError: there is no such folder; the weights of a step cannot be read; or two steps of one method have
                different ones.
        """
        path = Path(folder) / PLAN_FILE
        if not path.parent.is_dir():
            raise FoveateError(f"there is no folder {str(folder)!r} to save a plan in.")
        if self.frame_step is not None:
            what = f"a plan that is saved is attached to the model, and {self.frame_step} chooses frames of a file"
            raise FoveateError(Refusal("chooses-frames", what, "save the other steps"))
        copied: dict[str, str] = {}
        steps = [dataclasses.replace(step, method=step.method.portable(path.parent, copied)) for step in self.steps]
        write_json(path, {"plan": str(Plan(tuple(steps)))})
        return path

    @classmethod
    def read(cls, folder: str | Path) -> Plan | None:
        """The plan saved in a folder, None where there is none.

        Raises:
            FoveateError: the file is not one that `save` wrote.
        """
        path = Path(folder) / PLAN_FILE
        if not path.is_file():
            return None
        try:
            return parse_plan(read_json(path)["plan"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FoveateError(f"{path} holds no plan: {error}") from error


def parse_plan(text: str, known: Mapping[str, type[Method]] | None = None, budget: Budget | None = None) -> Plan:
    """The plan that a text describes; see the module.

    Args:
        text: The plan.
        known: Methods by name; all registered ones by default.
        budget: That of the only step, where the text gives none.

    Raises:
        FoveateError: the text cannot be read, or names a method, an argument or a budget that does not exist; or there
            are two budgets, or one for several steps.
    """
    if not isinstance(text, str) or not text.strip():
        raise FoveateError("a plan is empty; write one such as 'divprune:64'.")
    if len(text) > LONGEST:
        raise FoveateError(f"a plan has at most {LONGEST:,} characters, and this text has {len(text):,}.")
    known = all_methods() if known is None else known
    parts = _split(text)
    if budget is None:
        return Plan(tuple(_step(part, known) for part in parts))
    if len(parts) == 1:
        return Plan(_with_budget((_step(text, known, budget),), budget))
    return Plan(_with_budget(tuple(_step(part, known) for part in parts), budget))


def current_names(text: str) -> str:
    """A text, such as that of a result, with today's names in place of those that methods had before."""
    return _RENAMED.sub(lambda match: RENAMED[match[0]], text)


def _split(text: str) -> list[str]:
    """The steps: pieces between plus signs that stand outside parentheses and after a blank."""
    parts, depth, start = [], 0, 0
    for place, char in _unquoted(text):
        depth += (char in "([{") - (char in ")]}")
        if depth > DEEPEST:
            raise FoveateError(f"brackets of a plan stand at most {DEEPEST} deep in one another.")
        if char == "+" and depth == 0 and (place == 0 or text[place - 1] in " )%0123456789\t\n"):
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def _unquoted(text: str) -> Iterator[tuple[int, str]]:
    """Characters outside of quoted texts, with their places. A quote within a bare word, as in o'clock, is a letter."""
    quote, escaped = "", False
    for place, char in enumerate(text):
        if quote:
            if char == quote and not escaped:
                quote = ""
            escaped = char == "\\" and not escaped
        elif char in "'\"" and text[:place].rstrip()[-1:] in ("=", "(", "[", "{", ","):
            quote = char
        else:
            yield place, char


def _with_budget(steps: tuple[Step, ...], budget: Budget) -> tuple[Step]:
    """The only step of a plan, with a budget that was given apart from the plan.

    Raises:
        FoveateError: there are several steps, or the step has a budget or takes none.
    """
    text = " + ".join(map(str, steps))
    if len(steps) != 1:
        raise FoveateError(
            f"a budget of {budget} for '{text}' could be that of any of its {len(steps)} steps; write each budget "
            "into the plan, as in 'fastervlm:192 + fastv:50%'."
        )
    (step,) = steps
    if step.budget is not None and step.budget != budget:
        raise FoveateError(f"'{text}' has a budget, and {budget} was given as well; give one of the two.")
    step.method.check_budget(budget)
    return (dataclasses.replace(step, budget=budget),)


def _step(text: str, known: Mapping[str, type[Method]], separate_budget: Budget | None = None) -> Step:
    typed, arguments, budget_text, layers_text = _parts(text)
    name = typed.lower()
    name = RENAMED.get(name, name)
    if name not in known:
        if reason := why_missing(name):
            raise FoveateError(reason)
        close = get_close_matches(name[:50], known, 3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise FoveateError(f"unknown method {_shown(typed)}; {hint}possible are {', '.join(known)}.")
    method = _build(known[name], arguments)
    budget = Budget.parse(budget_text) if budget_text is not None else None
    layers = _layers(layers_text, name) if layers_text is not None else ()
    step = Step(method, budget, layers)
    if separate_budget is None or budget is not None:
        method.check_budget(budget)
    return step


def _parts(text: str) -> tuple[str, str, str | None, str | None]:
    """Name, arguments, budget and layers of a step, as they are written."""
    text = text.strip()
    if match := _NAME.match(text):
        rest, arguments = text[match.end() :].lstrip(), ""
        if rest.startswith("(") and ")" in rest:
            end = rest.rindex(")")
            arguments, rest = rest[1:end], rest[end + 1 :]
        if tail := _TAIL.fullmatch(rest):
            return match[0], arguments, tail["budget"], tail["layers"]
    raise FoveateError(
        f"{_shown(text)} cannot be read as a step; write NAME, NAME:64, NAME(argument=value):25% or NAME:50%@2."
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:197] + "...")


def _layers(text: str, name: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise FoveateError(f"@{text[:50]} names no layers; write {name}:50%@2 or {name}:50%@8,16,24.") from None


def _build(cls: type[Method], arguments: str) -> Method:
    """The method with arguments such as `alpha=0.1, mode=fast`."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    values: dict[str, Any] = {}
    hints = _hints(cls)
    name = cls.name
    for part in filter(str.strip, _commas(arguments)):
        key, equals, value = part.partition("=")
        key = key.strip()
        if key in cls.renamed_arguments:
            raise FoveateError(f"{name}: the argument {key} is called {cls.renamed_arguments[key]}; write that.")
        if not equals or key not in fields:
            possible = ", ".join(fields) or "none"
            raise FoveateError(
                f"{name} has no argument {_shown(part.strip())}; possible are {possible} (as name=value)."
            )
        if key in values:
            raise FoveateError(f"{name}: {key} is given twice; give it once.")
        values[key] = _value(value.strip())
        if not _fits(values[key], hints[key]):
            raise FoveateError(f"{name}: {key} is {_kinds(hints[key])}, not {_shown(value.strip())}.")
    try:
        return cls(**values)
    except TypeError as error:
        raise FoveateError(f"{name}({_shown(arguments)[1:-1]}): {error}") from error


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that was read is of a field's type. Numbers are finite and fit 64 bits."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in inner)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(option, inner[0]) for option in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if hint is Path:
        return isinstance(value, str)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _kinds(hint: Any) -> str:
    """What a field takes, in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kinds(option) for option in inner)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return "a list of numbers"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", Path: "a path"}
    return words.get(hint, "none" if hint is type(None) else "something else")


def _value(text: str) -> Any:
    """A Python literal; `true`, `false` and `none` in any case; every other bare word is a string."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an odd escape in a text
            return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    except (RecursionError, MemoryError):  # thousands of signs before a number, which the brackets do not show
        raise FoveateError(f"{_shown(text)} is nested too deeply to be read.") from None


def _commas(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for place, char in _unquoted(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def _literal(value: Any) -> str:
    return repr(str(value)) if isinstance(value, Path) else repr(value)


def _budget(budget: Any) -> Budget | None:
    if budget is None or isinstance(budget, Budget):
        return budget
    if isinstance(budget, str):
        return Budget.parse(budget)
    if isinstance(budget, Integral):
        return Budget(tokens=budget if isinstance(budget, bool) else int(budget))
    if isinstance(budget, Real):
        return Budget(fraction=float(budget))
    raise FoveateError(f"{budget!r} is no budget; give tokens (64), a fraction (0.25) or text ('25%').")

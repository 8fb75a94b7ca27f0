"""Base class of methods whose model reads a smaller image and asks for more of it by a tool call."""

from __future__ import annotations

import copy
import json
import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from foveate.core.errors import FoveateError
from foveate.core.files import write_json
from foveate.core.method import BudgetRule, Method, Site
from foveate.core.plan import Plan
from foveate.core.text_files import read_json
from foveate.core.weights import file_of

#: File next to a model's weights with the prompts that it was trained on.
PROMPTS_FILE = "foveate_acquisition.json"

_TAGS = ("<tool_call>", "</tool_call>", "<answer>", "</answer>")
_CALL = re.compile(r"<tool_call>(.*)</tool_call>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)

#: Left, top, right and bottom edge in pixels.
PixelBox = tuple[int, int, int, int]


class ToolCallError(FoveateError):
    """A tool call of a model that cannot be followed; the message says in one sentence why."""


class ToolCall(NamedTuple):
    """A valid tool call.

    Args:
        name: Name of the tool.
        arguments: As the model wrote them.
        box: What of the original image the tool returns, in its pixels.
    """

    name: str
    arguments: dict[str, Any]
    box: PixelBox

    def as_json(self) -> dict[str, Any]:
        """The call as plain JSON values."""
        return {"name": self.name, "arguments": self.arguments, "box": list(self.box)}


@dataclass(frozen=True)
class Prompts:
    """Texts around images and questions, as a model was trained on them.

    White space at the ends of a text part is left out, as in all conversations of foveate.

    Args:
        system: System prompt, which describes the tool; "" for none.
        question: User's text after the image, with `{question}` in it.
        second: User's text of the second turn, with `{image}` where the second image is.
    """

    system: str
    question: str
    second: str

    def __post_init__(self) -> None:
        for name, part in (("question", "{question}"), ("second", "{image}")):
            if getattr(self, name).count(part) != 1:
                raise FoveateError(f"the prompt {name!r} of an acquisition must contain {part} once.")

    def asked(self, question: str) -> str:
        """User's text of the first turn."""
        return self.question.replace("{question}", question)

    def around_second(self) -> tuple[str, str]:
        """Texts before and after the second image, without white space at their ends."""
        before, _, after = self.second.partition("{image}")
        return before.strip(), after.strip()

    def save(self, folder: str | PathLike[str]) -> None:
        """Write them next to a model's weights, where plans find them.

        Raises:
            FoveateError: the file could not be written.
        """
        write_json(Path(folder) / PROMPTS_FILE, asdict(self))

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Prompts:
        """Read a file that `save` wrote.

        Raises:
            FoveateError: it is not there, or holds something else.
        """
        try:
            document = read_json(Path(path))
            names = [field.name for field in fields(cls)]
            if not isinstance(document, dict) or sorted(document) != sorted(names):
                raise ValueError(f"it must be an object with {', '.join(names)}")
            if not all(isinstance(value, str) for value in document.values()):
                raise ValueError("every value must be a text")
            return cls(**document)
        except (OSError, ValueError, RecursionError) as error:
            raise FoveateError(f"{path} holds no prompts of an acquisition: {str(error).rstrip('.')}.") from error


@dataclass(frozen=True)
class AcquisitionMethod(Method):
    """A method whose model reads the image at a lower resolution and may ask once for more of the original.

    The first turn shows the model the image with `1 / reduction` of its sides. Its text is an answer or a tool call. A
    valid call starts a second turn: what the tool returns is appended as another image, and the model answers. Both
    images stay in the context. The model must have been trained to do so; any other answers from the smaller image.

    Args:
        reduction: Factor by which both sides of the image are divided; sides are rounded down.
        least_side: A reduced image whose shorter side has fewer pixels is enlarged to it.
        prompts: JSON file of prompts (`Prompts`); "" takes the file next to the model's weights, and the defaults of
            the method where there is none.
    """

    site: ClassVar[Site] = Site.ACQUISITION
    mechanism: ClassVar = ("query",)
    modality: ClassVar = ("image",)
    trained: ClassVar[bool] = True
    static_count: ClassVar[bool] = False
    budget: ClassVar[BudgetRule] = "none"
    #: Name of the tool, and its description and parameters as a JSON schema.
    tool: ClassVar[str]
    description: ClassVar[str]
    parameters: ClassVar[Mapping[str, Any]]
    #: Prompts of a model that has none of its own.
    default_prompts: ClassVar[Prompts]

    reduction: int = 2
    least_side: int = 28
    prompts: str = ""

    #: Prompts next to the model. No field: a plan reads the same whatever model it is used with.
    _resolved: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", str(self.prompts))
        if self.reduction < 2:
            raise FoveateError(f"{self.name}: reduction must be 2 or more, not {self.reduction}.")
        if self.least_side < 1:
            raise FoveateError(f"{self.name}: least_side must be 1 or more, not {self.least_side}.")

    def resolve_weights(self, location: str | PathLike[str]) -> Self:
        """This method with the prompts next to a model; itself, if it names a file of prompts."""
        if self.prompts:
            return self
        try:
            path = file_of(str(location), PROMPTS_FILE) if str(location) else None
        except OSError:  # neither a folder nor the id of a model
            path = None
        resolved = copy.copy(self)
        object.__setattr__(resolved, "_resolved", str(path or ""))
        return resolved

    def read_prompts(self) -> Prompts:
        """The prompts that the model was trained on.

        Raises:
            FoveateError: the file cannot be read.
        """
        path = self.prompts or self._resolved
        return Prompts.read(path) if path else self.default_prompts

    def reduced_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height in pixels of the image of the first turn."""
        width, height = (max(1, side // self.reduction) for side in size)
        if min(width, height) < self.least_side:
            scale = max(self.least_side / width, self.least_side / height)
            width, height = int(width * scale), int(height * scale)
        return width, height

    def read_call(self, text: str, size: tuple[int, int]) -> ToolCall | None:
        """Read the tool call in what a model wrote in its first turn.

        Args:
            text: What it wrote.
            size: Width and height of the original image in pixels.

        Returns:
            The call; None for an answer.

        Raises:
            ToolCallError: there is a call that cannot be followed.
        """
        opened, closed, *answers = (text.count(tag) for tag in _TAGS)
        if not opened and not closed:
            return None
        match = _CALL.search(text)
        if (opened, closed) == (1, 0):
            raise ToolCallError("the model's tool call has no end; if it was cut off, allow more new tokens.")
        if (opened, closed) != (1, 1) or match is None:
            raise ToolCallError("the model's tool call is not enclosed in one <tool_call> and one </tool_call>.")
        if any(answers):
            raise ToolCallError("the model answers and calls a tool in one turn; one of the two is possible.")
        try:
            call = json.loads(match[1])
        except (ValueError, RecursionError):
            raise ToolCallError(f"the model's tool call is not JSON: {match[1].strip()[:100]!r}.") from None
        if not isinstance(call, dict) or set(call) != {"name", "arguments"} or not isinstance(call["arguments"], dict):
            raise ToolCallError('the model\'s tool call must be a JSON object with "name" and "arguments".')
        if call["name"] != self.tool:
            raise ToolCallError(f"the model calls the tool {str(call['name'])[:100]!r}; possible is {self.tool!r}.")
        wanted = set(self.parameters["required"])
        if set(call["arguments"]) != wanted:
            raise ToolCallError(f"the tool {self.tool} takes the arguments {', '.join(sorted(wanted))} and no others.")
        return ToolCall(self.tool, call["arguments"], self.box_of(call["arguments"], size))

    @abstractmethod
    def box_of(self, arguments: dict[str, Any], size: tuple[int, int]) -> PixelBox:
        """What of the original image a call returns, in its pixels.

        Args:
            arguments: Of the call; exactly those of `parameters`.
            size: Width and height of the original image in pixels.

        Raises:
            ToolCallError: they are impossible.
        """


def split_acquisition(
    plan: Plan | None, location: str | PathLike[str] = ""
) -> tuple[AcquisitionMethod | None, Plan | None]:
    """Divide a plan into an acquisition, if it begins with one, and the steps that follow, which can be attached.

    Args:
        plan: Of a request.
        location: Folder or Hub id of the model, next to which its prompts are.

    Raises:
        FoveateError: an acquisition is not the first step.
    """
    if plan is None:
        return None, None
    first, *others = plan.steps
    if misplaced := [step for step in others if isinstance(step.method, AcquisitionMethod)]:
        raise FoveateError(
            f"{misplaced[0]} decides which images the model reads: it must come first in a plan, and once."
        )
    if not isinstance(first.method, AcquisitionMethod):
        return None, plan
    return first.method.resolve_weights(location), replace(plan, steps=tuple(others)) if others else None


def answer_in(text: str) -> str:
    """The answer in what a model wrote: what is in its only `<answer>`, or all of it where there is none."""
    answers = _ANSWER.findall(text)
    return answers[0].strip() if len(answers) == 1 else text.strip()


def calls_again(text: str) -> bool:
    """Whether a text holds a tag of a tool call, which in the second turn cannot be followed."""
    return any(tag in text for tag in _TAGS[:2])


def system_prompt(tool: str, description: str, parameters: Mapping[str, Any]) -> str:
    """System prompt that describes one tool in the format of Qwen's chat templates."""
    schema = {"type": "function", "function": {"name": tool, "description": description, "parameters": parameters}}
    return (
        "Answer questions about images.\n\n# Tools\n\nYou can call one function for a question. Its signature is given "
        f"inside <tools></tools>:\n<tools>\n{json.dumps(schema)}\n</tools>\n\nA call is a JSON object with the name of "
        "the function and its arguments, inside <tool_call></tool_call>:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


#: User's text of the first turn, of methods whose model thinks before it answers or calls.
QUESTION = (
    "Think about the image and the question inside <think> and </think>. Then either call the function inside "
    "<tool_call> and </tool_call>, or write the answer inside <answer> and </answer>.\n{question}"
)

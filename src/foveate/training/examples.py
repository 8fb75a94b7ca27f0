"""A training example: images or clips and a conversation in LLaVA's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from PIL import Image

from foveate.clips import Clip, open_clip
from foveate.core.errors import FoveateError
from foveate.core.frames import FrameSampler
from foveate.core.plan import Step
from foveate.training.dense_labels import Character

if TYPE_CHECKING:
    from foveate.synthetic.clips.scene import Scene

PLACEHOLDER, CLIP_PLACEHOLDER = "<image>", "<video>"
#: Speakers in LLaVA's files, as roles of a chat template.
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}

#: A place in a clip: seconds, and pixels from the left and the top.
Place = tuple[float, float, float]

# `from` is a keyword, hence the functional form.
Turn = TypedDict("Turn", {"from": str, "value": str})


@dataclass(frozen=True)
class ClipFile:
    """A video file, whose frames are decoded when a batch needs them.

    Attributes:
        path: The file.
        sampler: Chooses the frames; None: those that `open_clip` reads without one.
    """

    path: Path
    sampler: Step[FrameSampler] | None = None


@dataclass
class Example:
    """An example: one row of a batch.

    Attributes:
        images: Images, or paths to them, in the order of the placeholders.
        conversations: Turns of `human` and `gpt`, with one `<image>` for every image and one `<video>` for every clip.
        characters: For every image its characters and their positions, or None if unknown.
        task: Name for reports.
        things: For every image other drawn things and their positions (`foveate.synthetic.Sample.things`), or None.
        clips: Clips, or files of them, in the order of the placeholders.
        places: For every answer about the only clip what shows it, as seconds and pixels (second, x, y): one place for
            all of it or one for each of its characters.
        named: Places that show the things that questions about it name.
        scene: What happens in the only clip, if it is rendered.
    """

    images: list[Image.Image | Path]
    conversations: list[Turn]
    characters: list[Sequence[Character]] | None = None
    task: str = ""
    things: list[Sequence[Character]] | None = None
    clips: list[Clip | ClipFile] = field(default_factory=list)
    places: Sequence[Sequence[Place]] = ()
    named: Mapping[str, Place] = field(default_factory=dict)
    scene: Scene | None = None

    @classmethod
    def of_question(
        cls,
        image: Image.Image | Path,
        question: str,
        answer: str,
        characters: Sequence[Character] | None = None,
        task: str = "",
        more: Sequence[tuple[str, str]] = (),
        things: Sequence[Character] = (),
    ) -> Example:
        """Build an example of one image and one question with its answer; `more` are further turns."""
        turns = _turns(PLACEHOLDER, [(question, answer), *more])
        return cls([image], turns, None if characters is None else [characters], task, [things])

    @classmethod
    def of_clip(
        cls,
        clip: Clip,
        question: str,
        answer: str,
        task: str = "",
        more: Sequence[tuple[str, str]] = (),
        places: Sequence[Sequence[Place]] = (),
        named: Mapping[str, Place] | None = None,
        scene: Scene | None = None,
    ) -> Example:
        """Build an example of one clip and one question with its answer; `more` are further turns."""
        turns = _turns(CLIP_PLACEHOLDER, [(question, answer), *more])
        return cls([], turns, task=task, clips=[clip], places=places, named=named or {}, scene=scene)

    def read_clips(self) -> list[Clip]:
        """Clips with their frames; those of files are decoded, by the first question where a sampler reads it.

        Raises:
            FoveateError: A file cannot be read, or its sampler cannot choose.
        """
        asked = next((turn["value"] for turn in self.conversations if turn["from"] == "human"), "")
        question = asked.replace(CLIP_PLACEHOLDER, "").replace(PLACEHOLDER, "").strip()
        return [
            open_clip(clip.path, sampler=clip.sampler, question=question) if isinstance(clip, ClipFile) else clip
            for clip in self.clips
        ]

    def instruction(self) -> str:
        """What the images or clips are asked about: the only question.

        Raises:
            FoveateError: There are several questions, of which each would read them differently.
        """
        asked = [turn["value"] for turn in self.conversations if turn["from"] == "human"]
        if len(asked) != 1:
            raise FoveateError(
                "a connector that reads the question learns from one question for each image or clip: set "
                f"`questions: 1`, or divide conversations such as one of {len(asked)} questions."
            )
        return asked[0]


def _turns(placeholder: str, asked: Sequence[tuple[str, str]]) -> list[Turn]:
    """Turns of questions and answers, the first question after a placeholder."""
    turns: list[Turn] = []
    for question, answer in asked:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    turns[0]["value"] = f"{placeholder}\n{turns[0]['value']}"
    return turns

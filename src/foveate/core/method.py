"""Base class of all methods: name, site, arguments, budget."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from foveate.core.errors import FoveateError, Refusal
from foveate.core.tokens import EncoderSpec, Need


class Site(StrEnum):
    """Where in the model a method acts."""

    FRAMES = "frames"
    ACQUISITION = "acquisition"
    IMAGE = "image"
    ENCODER = "encoder"
    CONNECTOR = "connector"
    PRE_LLM = "pre_llm"
    DECODER = "decoder"
    DECODING = "decoding"
    KV_CACHE = "kv_cache"


#: How a method chooses or makes tokens, in the classes in which surveys of the field sort token compression (arXiv
#: 2507.20198):
#:
#: - "transformation": tokens are pooled, shuffled or resampled, whatever they show;
#: - "similarity": similar tokens are merged or dropped;
#: - "attention": tokens that receive little attention, in the encoder or in the language model, are dropped or merged;
#: - "query": what the user asks, or learned queries, decide which tokens stay or what they become;
#: - "control": none of these.
Mechanism = Literal["transformation", "similarity", "attention", "query", "control"]
Modality = Literal["image", "video", "audio"]
#: "count": needs a budget; "optional": has its own rule, and a budget overrides it; "none": takes no budget.
BudgetRule = Literal["count", "optional", "none"]
#: Positions that the language model reads: those of the original sequence, or counted anew.
Positions = Literal["original", "contiguous"]


@dataclass(frozen=True)
class Method(ABC):
    """A method that reduces the number of visual tokens. The base class of each site adds what it must implement.

    A method is a frozen dataclass in a file of its own. Its fields are the paper's hyper-parameters with the paper's
    defaults, checked in `__post_init__`; the first paragraph of its docstring is shown in the gallery.
    """

    #: Name in plans; the registry refuses two equal ones.
    name: ClassVar[str]
    #: Title of the paper.
    title: ClassVar[str]
    #: "arXiv 2412.01818", or "" for a control.
    paper: ClassVar[str] = ""
    #: Of the paper: that of its arXiv number, unless a method says another; None for a control.
    year: ClassVar[int | None] = None
    #: Where it acts; the site's base class says it.
    site: ClassVar[Site]
    #: How it chooses or makes tokens, the main class first.
    mechanism: ClassVar[tuple[Mechanism, ...]]
    #: What it is made for.
    modality: ClassVar[tuple[Modality, ...]] = ("image", "video")
    #: Whether it needs weights that were trained for it.
    trained: ClassVar[bool] = False
    #: Whether the number of remaining tokens follows from sizes alone; servers need that.
    static_count: ClassVar[bool] = True
    #: Whether it takes a budget.
    budget: ClassVar[BudgetRule] = "count"
    #: Arguments that mean something with a budget alone, and without one alone.
    with_budget: ClassVar[tuple[str, ...]] = ()
    without_budget: ClassVar[tuple[str, ...]] = ()
    #: Arguments that were called otherwise before, for the error message: new names by old ones.
    renamed_arguments: ClassVar[Mapping[str, str]] = {}
    #: Positions of what stays. Multi-axis positions (M-RoPE) are the original ones, except of a `RasterMethod`.
    positions: ClassVar[Positions] = "contiguous"
    #: Whether it acts at layers of the language model, which a plan may name (`@2`).
    takes_layers: ClassVar[bool] = False
    #: Whether the encoder makes fewer tokens under it; it comes first in a plan then, and nothing measures all patches.
    shortens_encoder: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "paper" in vars(cls) and "year" not in vars(cls):
            cls.year = year_of(cls.paper)

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """Values that must be measured in the encoder for the method.

        Raises:
            FoveateError: the encoder cannot give them.
        """
        return ()

    def resolve_weights(self, location: str | PathLike[str]) -> Self:
        """This method with the weights next to a model (its folder or Hub id); itself if it needs none."""
        return self

    def portable(self, folder: Path, copied: dict[str, str]) -> Self:
        """This method without paths outside `folder`, where its files are copied to; itself if it names none.

        Args:
            folder: Of a model, with which the plan is saved.
            copied: Weights that are in `folder` already, by method; extended by this method's.

        Raises:
            FoveateError: a file cannot be read or written, or `folder` has other weights of this method.
        """
        return self

    @property
    def arguments(self) -> dict[str, object]:
        """The hyper-parameters that differ from their defaults."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.default is dataclasses.MISSING or getattr(self, f.name) != f.default
        }

    def check_budget(self, budget: object | None) -> None:
        """Refuse a budget where the method takes none, none where it needs one, and one that keeps nothing.

        Args:
            budget: A number of tokens, or a budget of another form, which has checked itself; None: there is none.

        Raises:
            FoveateError: as said.
        """
        if budget is None and self.budget == "count":
            what, possible = f"{self.name} needs a budget", f"write one, such as {self.name}:64 or {self.name}:25%"
            raise FoveateError(Refusal("needs-budget", what, possible))
        if budget is not None and self.budget == "none":
            raise FoveateError(f"{self.name} takes no budget: its own rule decides how many tokens stay.")
        if isinstance(budget, int) and budget < 1:
            raise FoveateError(f"{self.name}: a budget of {budget} tokens keeps nothing; the least is 1.")


def year_of(paper: str) -> int | None:
    """The year in an arXiv number such as "arXiv 2412.01818"; None where there is none."""
    number = re.search(r"(\d{2})(0[1-9]|1[0-2])\.\d{4,5}", paper)
    return 2000 + int(number[1]) if number else None

"""The exception for bad input, and refusals with stable codes."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: What each code of a refusal says, without the names in a sentence. Codes are stable: results hold them.
CODES = {
    # What a method needs of a model
    "needs-cls": "needs a [CLS] token, and the encoder has none",
    "needs-first-layer-attention": "needs the attention of the language model's first layer, which cannot be computed",
    "needs-one-token-per-patch": "needs every patch to become one token of the language model",
    "needs-equal-regions": "measures the encoder, and tokens of the connector are no equal rectangles of its patches",
    "needs-one-raster": "needs images that are one raster, which can be made smaller on the way to the encoder",
    "needs-raster-features": "needs features of an image that can be mapped before a projector or after a merger",
    "needs-decoder-layers": "needs a language model whose layers take shorter sequences one by one",
    "needs-mlp-neurons": "needs MLPs with neurons in every layer of the language model",
    "needs-full-attention": "needs a language model whose layers all attend to everything",
    "needs-plain-encoder": "needs an encoder built as those of CLIP and SigLIP",
    "needs-one-encoder-output": "needs an encoder of which one block is read, and several are",
    "needs-plain-patches": "needs exactly the patches of an image as its tokens",
    "needs-uncompressed-encoder": "needs an encoder that does not compress by itself",
    "needs-known-family": "needs a model of a family that foveate knows",
    "needs-whole-frames": "compares frames with each other, and needs all tokens of all of them",
    "needs-timestamps": "needs the time of every frame, which neither the call nor the prompt says",
    "needs-known-measurement": "needs something that no probe of a live model measures",
    "needs-later-block": "needs blocks of the encoder behind the last one that is read",
    "needs-two-turns": "reads an image a second time where the model asks for it, which takes two calls of the model",
    "needs-asking-model": "needs a model that was trained to ask for more of an image",
    "needs-nested-connector": "needs a connector that was trained to give several numbers of tokens",
    "needs-more-blocks": "needs more blocks to merge so many tokens",
    "needs-weights": "needs trained weights",
    "needs-text-features": "needs text_features from a contrastive text encoder",
    "needs-clips": "works on clips, which the model does not read",
    "needs-frames-apart": "needs an encoder with known blocks, in which every frame attends to all of itself alone",
    "needs-whole-clip": "needs all frames of a clip at once",
    "needs-fixed-rotation": "needs rotary positions whose frequencies do not depend on the length of the sequence",
    "no-such-layer": "acts at a layer that the model does not have",
    # What a plan needs
    "needs-budget": "needs a budget",
    "needs-fraction-for-tiles": "needs a budget in percent, since tiles are merged one by one",
    "argument-needs-budget": "has an argument that means something with a budget alone",
    "argument-excludes-budget": "has an argument that means something without a budget alone",
    "needs-every-patch": "measures every patch, and the step before it leaves fewer",
    "unused-text-features": "compares nothing with text_features",
    "wrong-order": "stands in the wrong place of a plan",
    "same-layer": "acts at a layer at which another step acts",
    "chooses-frames": "chooses frames of a file, which a live model never sees",
    "attached-already": "cannot be attached in addition to the plan that is attached already",
    "unknown-site": "acts where nothing can be attached",
    "no-stream": "cannot read a stream of frames",
    # What a server or a formula needs
    "count-not-from-sizes": "keeps a number of tokens that does not follow from the sizes of images",
    "site-not-served": "acts where the server attaches nothing",
    "needs-prompt": "reads the prompt, and the server keeps the tokens of an image for all prompts",
    "keeps-positions": "keeps the positions of the long sequence, and the server counts them anew",
    "several-positions": "gives a token several positions, which the server's layers do not take",
    "encoder-not-readable": "reads inside the encoder, which the server cannot",
    "encoder-not-served": "needs an encoder that the server reads in another way",
    # What a measurement needs
    "out-of-memory": "does not fit into the memory of the device",
    "saves-nothing": "saves nothing, even at the least budget",
    "is-control": "is a control, which plans are compared with",
}

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Refusal:
    """The reason why a method, a plan or a model is refused; `str` gives the sentence.

    Callers branch on `code`, never on words. Other packages may have codes of their own; those of this one are the keys
    of `CODES`.

    Args:
        code: Short stable identifier in kebab-case, such as "needs-cls".
        what: What is wrong, without a full stop.
        possible: What is possible, without a full stop; empty where nothing is.
    """

    code: str
    what: str
    possible: str = ""

    def __post_init__(self) -> None:
        if not _CODE.fullmatch(self.code):
            raise ValueError(f"the code of a refusal is in kebab-case, such as needs-cls, not {self.code!r}")

    def __str__(self) -> str:
        return f"{self.what}; {self.possible}." if self.possible else f"{self.what}."

    @property
    def meaning(self) -> str:
        """What the code says, without the names in the sentence; of codes of other packages the sentence."""
        return CODES.get(self.code, self.what)


class FoveateError(ValueError):
    """Bad input: the message says in one sentence what is wrong and what is possible.

    Everything that a user can cause by an argument, a file or a configuration raises this class (or a
    subclass of it), so that the command line can print the sentence and exit with code 2, and a server
    can answer with a client error, without guessing from the text.

    Args:
        reason: The sentence, or the refusal that it is the sentence of.

    Attributes:
        refusal: Why a method, a plan or a model is refused; None for other bad input.
    """

    refusal: Refusal | None = None

    def __init__(self, reason: str | Refusal = "") -> None:
        super().__init__(str(reason))
        if isinstance(reason, Refusal):
            self.refusal = reason

    @property
    def code(self) -> str:
        """Code of the refusal; empty for other bad input."""
        return "" if self.refusal is None else self.refusal.code

    def as_json(self) -> dict[str, str]:
        """Code and sentence, as results hold them."""
        return {"code": self.code, "reason": str(self)}


def check_text(text: str, what: str) -> None:
    """Refuse text that no encoding can write: half of a character, as JSON escapes and broken command lines make it.

    Raises:
        FoveateError: the text holds a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        broken = text[error.start]
        raise FoveateError(f"{what} holds half of a character ({broken!a}); write it in UTF-8.") from None

"""Answer questions about images: `ask` with a report of tokens and times, `answer_batch` for many conversations.

The account is taken from the run itself: hooks read the shapes and the clock while `generate` works, and are removed
when it ends. They see every model of `AutoModelForImageTextToText`; a ViT-UHD also shows its stages.

`answer_batch` answers many conversations at once and keeps no account. `ask_decomposed` asks about a clip in steps.
"""

from foveate.answering.acquisition import Turn
from foveate.answering.answer import PARTS, Answer, Tokens
from foveate.answering.asking import ask
from foveate.answering.conversations import answer_batch
from foveate.answering.decomposition import DecomposedAnswer, ask_decomposed
from foveate.answering.pooling import Pooling
from foveate.answering.stages import Stage

__all__ = [
    "PARTS",
    "Answer",
    "DecomposedAnswer",
    "Pooling",
    "Stage",
    "Tokens",
    "Turn",
    "answer_batch",
    "ask",
    "ask_decomposed",
]

"""M3: nested average pooling of the projected tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import Selection, VisualTokens, merge_tokens
from foveate.methods.shared.cells import cells


@dataclass(frozen=True)
class M3(PreLLMMethod):
    """Averages projected tokens over equal squares, at any length of a model that was trained with nested lengths.

    x'_c = mean of the k x k tokens of square c. For 24 x 24 tokens, the budgets 1, 9, 36, 144 and 576 are those that
    the released models are trained on (k = 24, 8, 4, 2 and 1), and coarse tokens are means of finer ones. Pooling comes
    after the projector, so that this is exactly what the connector `m3` gives with the same number of tokens, chosen
    per request. The sequence is renumbered, as in the authors' code.

    The authors' code truncates sqrt(N / budget), so that other budgets silently give another number of tokens. Here
    every budget is met exactly: where no squares give it, cells of equal size do, as in `pool`, which no weights were
    trained on. On a model that was not trained with nested lengths, this is plain average pooling, the control `pool`.
    Tiled images divide the budget over their crops in proportion to their tokens; the paper pools every tile alike.
    """

    name: ClassVar[str] = "m3"
    mechanism: ClassVar = ("transformation",)
    title: ClassVar[str] = "Matryoshka Multimodal Models"
    paper: ClassVar[str] = "arXiv 2405.17430"

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        return merge_tokens(tokens.features, *cells(tokens.crops[0], count))

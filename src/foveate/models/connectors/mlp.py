"""The two-layer connector of LLaVA: from the width of the vision tower to the width of the language model."""

from torch import Tensor, nn
from transformers.activations import ACT2FN

from foveate.core.errors import FoveateError


class MLPConnector(nn.Module):
    """`linear_2(act(linear_1(x)))`, applied to each visual token on its own; the number of tokens is kept.

    LLaVA-UHD v3 (arXiv 2511.21150) needs no more than this, because its vision tower has already merged the
    tokens.

    Args:
        vision_hidden_size: width `D` of the tokens that the vision tower returns.
        text_hidden_size: width `d` of the embeddings that the language model reads.
        activation: name of an activation of `transformers` ("gelu" is the exact GELU, which the paper's model
            uses).
        bias: whether both linear layers have a bias.

    Raises:
        FoveateError: if there is no such activation.
    """

    def __init__(
        self, vision_hidden_size: int, text_hidden_size: int, activation: str = "gelu", bias: bool = True
    ) -> None:
        super().__init__()
        if activation not in ACT2FN:
            raise FoveateError(f"there is no activation {activation!r}; possible are {', '.join(sorted(ACT2FN))}")
        self.linear_1 = nn.Linear(vision_hidden_size, text_hidden_size, bias=bias)
        self.act = ACT2FN[activation]
        self.linear_2 = nn.Linear(text_hidden_size, text_hidden_size, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map visual tokens `(..., D)` to embeddings `(..., d)`."""
        return self.linear_2(self.act(self.linear_1(tokens)))

"""FocusUI: a trained scorer of screen tokens for an instruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.core.files import stamp
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Grid, Need, Selection, VisualTokens, topk_indices
from foveate.core.trained import Trained, read_file

KIND = "foveate focusui scorer"


@dataclass(frozen=True)
class FocusUI(Trained, PreLLMMethod):
    """Keeps the tokens of a screen that a small trained scorer rates most relevant to the instruction.

    Tokens of the image and of the instruction, as the language model reads them, each pass a block of their own; with
    u_i and v_t the outputs after tanh and scaling to length 1, the score of token i is mean_t u_i . v_t (FocusUI, arXiv
    2601.03928). The paper replaces dropped tokens by markers: that is `pospad(selector=focusui(weights=...))`. A scorer
    fits one model; `foveate convert-scorer` takes the scorer, and the marker for `pospad`, out of the authors'
    checkpoints.

    Of equal scores the first token wins; the authors shuffle them with a seed made of the prompt (`shuffle`).

    Args:
        weights: A trained scorer, a file that `foveate train-method focusui` or `foveate convert-scorer` wrote; by
            default `focusui.safetensors` next to the model's weights.
        shuffle: Break ties between equal scores at random.
        seed: Of the shuffle.
    """

    weights: str = ""
    shuffle: bool = False
    seed: int = 0

    name: ClassVar[str] = "focusui"
    mechanism: ClassVar = ("query",)
    modality: ClassVar = ("image",)
    title: ClassVar[str] = "FocusUI: Efficient UI Grounding via Position-Preserving Visual Token Selection"
    paper: ClassVar[str] = "arXiv 2601.03928"
    files: ClassVar = ("focusui.safetensors",)
    handles_tiles: ClassVar[bool] = True
    positions: ClassVar = "original"

    def __post_init__(self) -> None:
        if self.seed and not self.shuffle:
            raise FoveateError("focusui: seed is of the chance between equal scores; give shuffle=True with it.")

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        """The instruction."""
        self.check_weights()
        return (Need("instruction"),)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        """See `PreLLMMethod.select`."""
        instruction = tokens.get(*self.needs(tokens.tower))
        scorer = _scorer(str(self.path), stamp(self.path), str(tokens.device))
        if scorer.size != tokens.features.shape[1]:
            raise FoveateError(
                f"focusui: the scorer in {self.path} was trained for embeddings of {scorer.size} numbers, and this "
                f"model's have {tokens.features.shape[1]}."
            )
        with torch.no_grad():
            scores = scorer(tokens.features.float(), instruction.float())
        if tokens.separators is not None:
            scores = scores.masked_fill(tokens.separators, -torch.inf)
        if not self.shuffle:
            return Selection(topk_indices(scores, count))
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + tokens.number) % 2**63)
        order = torch.randperm(len(scores), generator=generator).to(scores.device)
        return Selection(order[topk_indices(scores[order], count)].sort().values)


class Block(nn.Module):
    """Self-attention, x' = LayerNorm(x + attention(x)), then an MLP that is not added to x'.

    Args:
        size: D.
        heads: Of the attention; divides D.
        dropout: On the attention and what it returns, in training.
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(size, heads, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, size))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(n, D) to (n, D)."""
        attended, _ = self.attention(x, x, x, need_weights=False)
        return self.mlp(self.norm(x + F.dropout(attended, self.dropout, self.training)))


class Scorer(nn.Module):
    """How well every token of an image fits an instruction.

    Args:
        size: D, of the language model's embeddings.
        heads: Attention heads; the greatest divisor of D up to this is used.
        dropout: In training.
    """

    def __init__(self, size: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        heads = next(n for n in range(min(heads, size), 0, -1) if size % n == 0)
        self.size, self.heads, self.dropout = size, heads, dropout
        self.image, self.text = Block(size, heads, dropout), Block(size, heads, dropout)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Scores (V,), -1 to 1, of tokens (V, D) for an instruction (T, D)."""
        image, text = (F.normalize(block(x).tanh(), dim=-1) for block, x in ((self.image, image), (self.text, text)))
        return image @ text.mean(dim=0)  # the mean of products is the product with the mean

    def save(self, path: str | Path) -> None:
        """Write weights and sizes to a safetensors file."""
        about = {"kind": KIND, "size": str(self.size), "heads": str(self.heads), "dropout": str(self.dropout)}
        save_file({name: value.detach().contiguous().cpu() for name, value in self.state_dict().items()}, path, about)

    @classmethod
    def load(cls, path: str | Path) -> Scorer:
        """Read what `save` wrote.

        Raises:
            FoveateError: it is not there, or something else.
        """
        about, tensors = read_file(path, KIND, "focusui", "foveate convert-scorer")
        scorer = cls(int(about["size"]), int(about["heads"]), float(about["dropout"]))
        scorer.load_state_dict(tensors)
        return scorer.eval()


#: Names of the authors' tensors, behind "patch_scorer.", and those here.
RELEASED = {
    "vision_enhancer": "image",
    "text_enhancer": "text",
    "attn": "attention",
    "layer_norm": "norm",
    "mlp": "mlp",
}
_PREFIX, _HEADS = "patch_scorer.", 8


def released_scorer(tensors: Mapping[str, Tensor]) -> Scorer:
    """The scorer in a checkpoint of the authors, whose tensors are called `patch_scorer.*`; it has 8 heads.

    Args:
        tensors: Of the checkpoint, by name; others than the scorer's are passed over.

    Raises:
        FoveateError: there is no scorer among them, or one of another layout.
    """
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if _PREFIX in name:  # wrappers put something before it
            side, part, *rest = name.split(_PREFIX, 1)[1].split(".")
            if side in RELEASED and part in RELEASED:
                state[".".join([RELEASED[side], RELEASED[part], *rest])] = value.float()
    norm = state.get("image.norm.weight")
    if norm is None:
        raise FoveateError(f"there is no scorer of FocusUI here: no tensor is called {_PREFIX}vision_enhancer.*.")
    size = len(norm)
    if size % _HEADS:
        raise FoveateError(f"a released scorer has {_HEADS} heads, which do not divide its {size} features.")
    scorer = Scorer(size, _HEADS)
    try:
        scorer.load_state_dict(state)
    except RuntimeError as error:
        raise FoveateError(f"this is no scorer of FocusUI: {' '.join(str(error).split())}") from error
    return scorer.eval()


@lru_cache(maxsize=4)
def _scorer(path: str, changed: tuple[Any, ...], device: str) -> Scorer:
    return Scorer.load(path).to(device)


def box_overlap(grid: Grid, box: tuple[float, float, float, float]) -> Tensor:
    """The share of every cell's area that a box covers: (rows * columns,).

    Args:
        grid: Rows and columns.
        box: (left, top, right, bottom) as fractions of the image.
    """

    def covered(cells: int, low: float, high: float) -> Tensor:
        edges = torch.arange(cells + 1, dtype=torch.float64)
        return (edges[1:].clamp(max=high * cells) - edges[:-1].clamp(min=low * cells)).clamp(min=0)

    left, top_, right, bottom = box
    return torch.outer(covered(grid.rows, top_, bottom), covered(grid.columns, left, right)).flatten().float()


def ui_graph(pixels: Tensor, grid: Grid, threshold: float = 2.0, copies: int = 2) -> Tensor:
    """How much each cell stands out: 1 / max(1, ln(n + 1)), n the size of its even region: (rows * columns,).

    Neighbours left, right, above and below belong to one region where the Euclidean distance of their pixels is below
    the threshold.

    Args:
        pixels: (3, height, width), 0 to 1; height and width are multiples of rows and columns.
        grid: Rows and columns.
        threshold: Of the distance.
        copies: How often pixels count: twice in the authors' code, where an image is a clip of two equal frames.
    """
    rows, columns = grid
    channels, height, width = pixels.shape
    if height % rows or width % columns:
        raise FoveateError(f"an image of {width} x {height} pixels cannot be cut into {columns} x {rows} cells.")
    cells = pixels.float().reshape(channels, rows, height // rows, columns, width // columns)
    cells = cells.permute(1, 3, 0, 2, 4).flatten(2)
    right = (cells[:, 1:] - cells[:, :-1]).norm(dim=-1) * copies**0.5 < threshold
    below = (cells[1:] - cells[:-1]).norm(dim=-1) * copies**0.5 < threshold
    region = torch.arange(rows * columns).view(rows, columns)
    while True:  # the least number of a region spreads, and jumps to where its holder has got to
        least = region.clone()
        least[:, 1:] = torch.where(right, torch.minimum(least[:, 1:], region[:, :-1]), least[:, 1:])
        least[:, :-1] = torch.where(right, torch.minimum(least[:, :-1], region[:, 1:]), least[:, :-1])
        least[1:] = torch.where(below, torch.minimum(least[1:], region[:-1]), least[1:])
        least[:-1] = torch.where(below, torch.minimum(least[:-1], region[1:]), least[:-1])
        least = least.flatten()[least]
        if torch.equal(least, region):
            break
        region = least
    size = region.flatten().bincount(minlength=rows * columns)[region.flatten()].float()
    return 1 / (size + 1).log().clamp(min=1)


def screen_label(overlap: Tensor, graph: Tensor) -> Tensor:
    """Training target of the scorer: 2 clip(overlap + graph / 2, 0, 1) - 1, in -1 to 1."""
    return 2 * (overlap + 0.5 * graph).clamp(0, 1) - 1


def scorer_loss(scores: Tensor, label: Tensor) -> Tensor:
    """KL(softmax(label) || softmax(scores)) over the tokens of an image."""
    target = label.softmax(dim=-1)
    return (target * (target.log() - scores.log_softmax(dim=-1))).sum()

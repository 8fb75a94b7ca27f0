"""Draft models: a small network on a model's features that predicts the next tokens (EAGLE)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from foveate import compat
from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write, write_json
from foveate.methods.decoding.draft_config import DraftConfig
from foveate.methods.decoding.drafter import Drafter, Session, Target
from foveate.methods.decoding.tree import Shape, Tree

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class Draft(nn.Module, Drafter):
    """One decoder layer on the features of a model and the embeddings of the tokens after them (EAGLE).

    At position t it reads the model's feature $f_t$ and the embedding of token t + 1, and predicts $f_{t+1}$ and
    perhaps features after it; the model's own output layer turns them into tokens t + 2 and on. Images are shortened
    for the draft, which is where the drafts differ. Positions count what the draft itself reads, from 0 on, in one
    dimension for every family: our choice.

    Args:
        config: Sizes.
    """

    kind: ClassVar[str]
    config_class: ClassVar[type[DraftConfig]] = DraftConfig
    #: Features that it guesses at every position.
    guesses: int = 1

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.config = config
        layer = config.layer()
        width = config.hidden_size
        # Embeddings and features differ in size by orders; without a norm for each the sum overflows in half precision.
        self.norm_embedding, self.norm_feature = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fuse = nn.Linear(2 * width, width)
        self.rotary = LlamaRotaryEmbedding(layer)
        self.layer = LlamaDecoderLayer(layer, layer_idx=0)

    @classmethod
    def new(cls, config: Any) -> Any:
        """A draft with first weights of the configuration's seed; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(config.seed)
            return cls(config)

    @abstractmethod
    def shorten(self, fused: Tensor, features: Tensor, visual: Tensor, generator: torch.Generator) -> Tensor:
        """What the layer reads, (m, d), of positions with images.

        Args:
            fused: (p, d) of embeddings and features.
            features: (p, d).
            visual: (p,) bool; the last position is text.
            generator: For what is drawn.
        """

    def guess(self, hidden: Tensor) -> Tensor:
        """The next features (m, k, d) from the layer's output (m, d)."""
        return hidden[:, None]

    def read(self, features: Tensor, following: Tensor, visual: Tensor, generator: torch.Generator) -> Tensor:
        """What the layer reads, (m, d) with m at most p; see `Session.extend`. What is no image is read as it is."""
        dtype = self.fuse.weight.dtype
        features, following = features.to(dtype), following.to(dtype)
        fused = self.join(features, following)
        if not bool(visual.any()):
            return fused
        visual = visual.clone()
        visual[-1] = False  # what the next token is guessed from
        return self.shorten(fused, features, visual, generator)

    def join(self, features: Tensor, following: Tensor) -> Tensor:
        """Features and embeddings (p, d) as one, (p, d)."""
        return self.fuse(torch.cat([self.norm_embedding(following), self.norm_feature(features)], dim=-1))

    def attend(self, inputs: Tensor, cache: DynamicCache | None, positions: Tensor, visible: Tensor | None) -> Tensor:
        """The layer's output (m, d).

        Args:
            inputs: (m, d).
            cache: Of earlier positions.
            positions: (m,) of the new ones.
            visible: (m, K) bool, the cached and new positions that each attends to; None: causal.
        """
        length, past = len(inputs), 0 if cache is None else int(cache.get_seq_length())
        if visible is None:
            indices = torch.arange(past + length, device=inputs.device)
            visible = indices <= indices[past:, None]
        mask = torch.zeros_like(visible, dtype=inputs.dtype).masked_fill(~visible, torch.finfo(inputs.dtype).min)[
            None, None
        ]
        rotary = self.rotary(inputs[None], positions[None])
        output = self.layer(
            inputs[None], attention_mask=mask, position_embeddings=rotary, **compat.cache_argument(cache)
        )
        return (output[0] if isinstance(output, tuple) else output)[0]

    def forward(
        self, features: Tensor, following: Tensor, visual: Tensor, prompt: int, generator: torch.Generator
    ) -> Tensor:
        """Guessed features (m, k, d) of a whole conversation at once, see `Session.extend`.

        Args:
            features: (p, d).
            following: (p, d).
            visual: (p,).
            prompt: Positions that were read before anything was written; only they are shortened, and by them alone.
            generator: For what is drawn.
        """
        question = self.read(features[:prompt], following[:prompt], visual[:prompt], generator)
        answer = self.read(features[prompt:], following[prompt:], torch.zeros_like(visual[prompt:]), generator)
        read = torch.cat([question, answer])
        return self.guess(self.attend(read, None, torch.arange(len(read), device=read.device), None))

    def choosing_loss(
        self, under: Callable[[str], Tensor], features: Tensor, following: Tensor, visual: Tensor
    ) -> Tensor | float:
        """Loss of a part of the draft that makes choices, added to `loss`; 0 where there is none.

        Args:
            under: The loss of the conversation under a given choice, without gradient.
            features: (p, d) of the prompt.
            following: (p, d).
            visual: (p,).
        """
        return 0.0

    def check(self, model: Any) -> None:
        """See `Drafter.check`: features and vocabulary are of the sizes that the draft was made for."""
        other = type(self.config).of(model)
        for name in ("hidden_size", "vocab_size"):
            value, needed = getattr(self.config, name), getattr(other, name)
            if value != needed:
                raise FoveateError(
                    f"the draft is for a model with {name} {value}, not {needed}: train one for this model."
                )

    def session(self, target: Target) -> Session:
        """See `Drafter.session`."""
        return DraftSession(self, target)

    @abstractmethod
    def propose(self, known: DraftSession, shape: Shape) -> Tree:
        """See `Session.propose`."""

    @abstractmethod
    def loss(self, guessed: Tensor, features: Tensor, target: Target) -> tuple[Tensor, dict[str, float]]:
        """What training lowers, and its parts.

        Args:
            guessed: (n, k, d), guessed at positions t.
            features: (n, d) of the positions t + 1.
            target: The model's parts.
        """

    def save(self, folder: Path) -> None:
        """Write weights and configuration into a folder; each file is there completely or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with atomic_write(folder / WEIGHTS) as partial:
            save_file(weights, partial)
        write_json(folder / CONFIG, {"kind": self.kind} | asdict(self.config))


class DraftSession(Session):
    """The state of a draft for one conversation.

    Attributes:
        cache: Keys and values of all accepted positions.
        guessed: (1, k, d), the features predicted after the last position.
    """

    def __init__(self, draft: Draft, target: Target) -> None:
        self.draft, self.target = draft, target
        self.cache = DynamicCache()
        self.guessed: Tensor | None = None
        self.generator = torch.Generator().manual_seed(draft.config.seed)

    def extend(self, features: Tensor, following: Tensor, visual: Tensor) -> None:
        """See `Session.extend`."""
        read = self.draft.read(features, following, visual, self.generator)
        past = int(self.cache.get_seq_length())
        positions = torch.arange(past, past + len(read), device=read.device)
        self.guessed = self.draft.guess(self.draft.attend(read, self.cache, positions, None)[-1:])

    def propose(self, shape: Shape) -> Tree:
        """See `Session.propose`."""
        return self.draft.propose(self, shape)


def runs(visual: Tensor) -> list[tuple[bool, slice]]:
    """Runs of equal values of a mask (p,), in order."""
    edges = [0, *((visual[1:] != visual[:-1]).nonzero().flatten() + 1).tolist(), len(visual)]
    return [(bool(visual[start]), slice(start, end)) for start, end in pairwise(edges)]


def feature_loss(guessed: Tensor, features: Tensor) -> Tensor:
    """Smooth L1 between guessed and true features (n, d), mean over both axes."""
    return F.smooth_l1_loss(guessed.float(), features.float())


def answer_loss(guessed: Tensor, features: Tensor, target: Target) -> Tensor:
    """Cross-entropy of predicted features (n, d) against the model's own distribution for the true ones."""
    with torch.no_grad():
        probabilities = target.log_probabilities(features).exp()
    return -(probabilities * target.log_probabilities(guessed)).sum(dim=-1).mean()

"""Vision Remember: cross-attention of visual tokens to encoder features, between language model layers.

A compressed token stands for a region. Before chosen layers l it attends to the encoder's features of that region
alone, taken where the encoder still had more tokens, and adds what it finds:

    h <- h + W_o Attention(W_q norm(h), W_k f, W_v f),    f = [norm_j(x_j) + e]  for all levels j and places e in them

With the stages of ViT-UHD the levels are the tokens before each stage and those after the last: with two stages 16, 4
and 1 features for a token. W_o begins as zero, so that an inserted module changes nothing before it is trained.

"Vision Remember: Recovering Visual Information in Efficient LVLM with Vision Feature Resampling" (Feng et al., arXiv
2506.03928): multi-level features (three layers of a CLIP) and local cross-attention between decoder layers. Known to us
from abstract and summaries; there is no code. Our choices therefore: the zero, the layers (they must be named), one
learned vector for every place in the window, keys of all levels side by side (the paper joins them along the width,
which levels of different resolution do not allow). The bidirectional self-attention that the paper's second version
adds between visual tokens and a token of the text is not here: an image stays the same whatever is asked about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from foveate.core.errors import FoveateError

#: The argument of the language model that its layers are handed: regions (M, K, D), and where their tokens stand.
ARGUMENT = "vision_memory"


def regions(features: Tensor, grids: Tensor, side: int) -> Tensor:
    """Features (L * side^2, D) of all images, row-major each, as (L, side^2, D): those of every token's region.

    Args:
        features: Packed, of images with `side` times the rows and columns of their tokens.
        grids: (n, 2), rows and columns of every image's tokens.
        side: Features on the side of a region.
    """
    sizes = [(int(rows), int(columns)) for rows, columns in grids.tolist()]
    found = []
    parts = features.split([rows * columns * side * side for rows, columns in sizes])
    for own, (rows, columns) in zip(parts, sizes, strict=True):
        found.append(own.view(rows, side, columns, side, -1).transpose(1, 2).flatten(0, 1).flatten(1, 2))
    return torch.cat(found)


def levels_of(encoded: Any, stages: Sequence[int]) -> list[Tensor]:
    """Regions of every level: what enters each stage, then the final tokens; [(L, 4^s, D), ..., (L, 1, D)].

    Args:
        encoded: Output of a ViT-UHD with its hidden states.
        stages: The blocks after which its stages are.
    """
    before = [encoded.hidden_states[block] for block in stages]
    sides = [2 ** (len(stages) - number) for number in range(len(stages) + 1)]
    return [
        regions(features, encoded.grid_hws, side)
        for features, side in zip([*before, encoded.last_hidden_state], sides, strict=True)
    ]


class VisionRemember(nn.Module):
    """The module before one layer of the language model.

    Args:
        vision_hidden_size: width D of the encoder's features.
        text_hidden_size: width d of the language model.
        num_heads: heads of the attention, as in the encoder.
        num_levels: levels of features; level j has 4^(num_levels - 1 - j) of them for a token.
    """

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, num_heads: int, num_levels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sizes = [4**level for level in reversed(range(num_levels))]
        self.norms = nn.ModuleList(nn.LayerNorm(vision_hidden_size) for _ in self.sizes)
        self.places = nn.Parameter(torch.zeros(sum(self.sizes), vision_hidden_size))
        self.norm = nn.LayerNorm(text_hidden_size)
        self.query = nn.Linear(text_hidden_size, vision_hidden_size)
        self.key_value = nn.Linear(vision_hidden_size, 2 * vision_hidden_size)
        self.out = nn.Linear(vision_hidden_size, text_hidden_size)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Places near zero, and nothing comes out."""
        init.normal_(self.places, std=0.02)
        init.zeros_(self.out.weight)
        init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor, memory: Tensor) -> Tensor:
        """What visual tokens (M, d) find in their regions (M, K, D): (M, d), to be added."""
        parts = zip(self.norms, memory.split(self.sizes, dim=1), strict=True)
        features = torch.cat([norm(part) for norm, part in parts], dim=1) + self.places
        heads = (len(hidden), -1, self.num_heads, features.shape[-1] // self.num_heads)
        query = self.query(self.norm(hidden)).view(heads).transpose(1, 2)
        key, value = (half.reshape(heads).transpose(1, 2) for half in self.key_value(features).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(1))

    def before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A pre-hook of a layer: visual tokens remember, and the layer is called without the argument."""
        kwargs = dict(kwargs)
        memory_input = kwargs.pop(ARGUMENT, None)
        if memory_input is None:
            return args, kwargs
        memory, rows, columns = memory_input
        hidden = args[0] if args else kwargs["hidden_states"]
        visual = hidden[rows, columns]
        hidden = hidden.index_put((rows, columns), visual + self(visual, memory.to(visual)).to(visual))
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def without_memory(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A pre-hook of the other layers: they are called without the argument."""
    return args, {name: value for name, value in kwargs.items() if name != ARGUMENT}


def insert(text: Any, modules: nn.ModuleDict) -> None:
    """Hook modules into the layers of a language model that their names say.

    Raises:
        FoveateError: there is no such layer.
    """
    count = len(text.layers)
    wrong = [name for name in modules if not 1 <= int(name) < count]
    if wrong:
        raise FoveateError(f"Vision Remember stands before layers 1 to {count - 1} of this model, not {wrong[0]}.")
    for number, layer in enumerate(text.layers):
        hook: Any = modules[str(number)].before if str(number) in modules else without_memory
        layer.register_forward_pre_hook(hook, with_kwargs=True)


def build(config: Any) -> nn.ModuleDict:
    """The modules that a `LlavaUHDConfig` names, by layer.

    Raises:
        FoveateError: the vision tower has no stages before which features could be read.
    """
    vision = config.vision_config
    if not hasattr(vision, "num_stages"):
        raise FoveateError(
            f"Vision Remember reads features before the stages of ViT-UHD, which {vision.model_type} lacks."
        )
    sizes = (vision.hidden_size, config.text_config.hidden_size, vision.num_attention_heads, vision.num_stages + 1)
    return nn.ModuleDict({str(layer): VisionRemember(*sizes) for layer in config.vision_remember_layers})


def add_vision_remember(model: Any, layers: Sequence[int], seed: int = 0) -> None:
    """Insert new modules into a LLaVA-UHD, which answers as before until they are trained.

    Args:
        model: A `LlavaUHDForConditionalGeneration` without such modules.
        layers: Layers of the language model before which they stand, from 1 on.
        seed: Of their weights; the global random state is left alone.

    Raises:
        FoveateError: the model is of another kind, has such modules or has no such layers.
    """
    if model.config.model_type != "llava_uhd":
        raise FoveateError(f"Vision Remember is for llava-uhd models, not for {model.config.model_type}.")
    if model.config.vision_remember_layers:
        had = ", ".join(map(str, model.config.vision_remember_layers))
        raise FoveateError(f"this model has Vision Remember before layers {had} already.")
    count = model.config.text_config.num_hidden_layers
    if not layers or len(set(layers)) < len(layers) or not all(1 <= layer < count for layer in layers):
        raise FoveateError(
            f"Vision Remember stands before layers 1 to {count - 1} of this model, each once, not {layers}."
        )
    model.config.vision_remember_layers = sorted(layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules = build(model.config)
        for module in modules.modules():
            model._init_weights(module)
        for module in modules.values():
            module.reset_parameters()  # ty: ignore
    model.model.vision_remember = modules.to(model.device, model.dtype)
    insert(model.model.language_model, model.model.vision_remember)

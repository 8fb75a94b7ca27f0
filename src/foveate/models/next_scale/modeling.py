"""A small next-scale autoregressive image model, after VAR (Tian et al., NeurIPS 2024, arXiv 2404.02905).

A transformer predicts token maps from coarse to fine, all tokens of a map at once. What it reads of map k are the
features that the maps before it stand for, averaged down to the side of map k; a token sees its own map and all
maps before it. The class enters as the first token and through adaptive layer norms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import normal_, ones_, zeros_
from transformers.utils.generic import ModelOutput

from foveate.core.errors import FoveateError
from foveate.methods.kv_cache.scale_cache import Policy, ScaleCache
from foveate.models.next_scale.configuration import NextScaleConfig
from foveate.models.next_scale.quantiser import MultiScaleQuantiser
from foveate.models.next_scale.tokenizer import ImageTokenizer

#: From the number of a layer and its queries, keys and values (B, H, n, d) to what they attend to (B, H, n, d).
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass
class NextScaleOutput(ModelOutput):
    """What the transformer says of given token maps.

    Args:
        loss: Mean cross entropy of a token in nats.
        logits: (B, tokens, V).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


@dataclass
class NextScaleSample(ModelOutput):
    """Generated pictures.

    Args:
        pixel_values: (B, 3, H, W) in [-1, 1].
        token_ids: (B, tokens), all maps one after another.
        cache: What the transformer remembered, with its record of bytes; None without a cache.
    """

    pixel_values: Tensor | None = None
    token_ids: Tensor | None = None
    cache: ScaleCache | None = None


def block_causal_mask(scales: Sequence[int]) -> Tensor:
    """(tokens, tokens) bool: a token (row) sees tokens (columns) of its own map and of coarser ones."""
    place = torch.cat([torch.full((side * side,), number) for number, side in enumerate(scales)])
    return place[:, None] >= place[None, :]


class Block(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by the class."""

    def __init__(self, config: NextScaleConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps, elementwise_affine=False)
        self.up = nn.Linear(width, config.mlp_ratio * width)
        self.down = nn.Linear(config.mlp_ratio * width, width)
        # The class's part is computed once for all blocks; a block adds its own (VAR's shared AdaLN).
        self.modulation = nn.Parameter(torch.empty(6, width))

    def forward(self, hidden: Tensor, shared: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Hidden states (B, n, D) through the block; `shared` (B, 6, D) is of the class."""
        gate1, gate2, scale1, scale2, shift1, shift2 = (shared + self.modulation).unsqueeze(2).unbind(1)
        qkv = self.qkv(self.norm1(hidden) * (1 + scale1) + shift1)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = attend(q, k, v).transpose(1, 2).flatten(2)
        hidden = hidden + gate1 * self.out(attended)
        inner = F.gelu(self.up(self.norm2(hidden) * (1 + scale2) + shift2), approximate="tanh")
        return hidden + gate2 * self.down(inner)


class NextScaleForImageGeneration(PreTrainedModel):
    """Tokenizer and transformer; `generate` draws pictures of classes."""

    config: NextScaleConfig
    config_class = NextScaleConfig
    base_model_prefix = "next_scale"
    main_input_name = "class_labels"
    _no_split_modules = ["Block"]
    _supports_sdpa = True

    def __init__(self, config: NextScaleConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.tokenizer = ImageTokenizer(config)
        self.classes = nn.Embedding(config.num_classes + 1, width)
        self.features = nn.Linear(config.code_size, width)
        self.positions = nn.Embedding(config.tokens, width)
        self.levels = nn.Embedding(len(config.scales), width)
        self.shared = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, config.codebook_size)
        #: What keeps the cache of `generate` small; None keeps everything. `compress_cache` sets it.
        self.cache_policy: Policy | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Conv2d):
            normal_(module.weight, std=(module.weight[0].numel()) ** -0.5)
            if module.bias is not None:
                zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            normal_(module.weight, std=std)
            zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            normal_(module.weight, std=std)
        elif isinstance(module, nn.GroupNorm):
            ones_(module.weight)
            zeros_(module.bias)
        elif isinstance(module, Block):
            normal_(module.modulation, std=std)
        elif isinstance(module, MultiScaleQuantiser):
            normal_(module.codebook, std=1.0)

    # What the transformer reads

    def _embed(self, so_far: Tensor, first: Tensor, place: int) -> Tensor:
        """What is read of map `place` (B, n, D), after maps that stand for the features `so_far` (B, C, S, S)."""
        start, end = self.config.bounds[place]
        if place == 0:
            side = self.config.scales[0]
            read = first[:, None].expand(-1, side * side, -1)
        else:
            small = self.tokenizer.quantiser.down(so_far, self.config.scales[place])
            read = self.features(small.flatten(2).transpose(1, 2))
        return read + self.positions.weight[start:end] + self.levels.weight[place]

    def _transform(self, hidden: Tensor, first: Tensor, attend: Attend) -> Tensor:
        """Logits (B, n, V) of what is read (B, n, D), for classes embedded as (B, D)."""
        condition = F.silu(first)
        shared = self.shared(condition).unflatten(1, (6, -1))
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, shared, lambda q, k, v, number=number: attend(number, q, k, v))
        scale, shift = self.final_modulation(condition).unsqueeze(1).chunk(2, dim=2)
        return self.head(self.norm(hidden) * (1 + scale) + shift)

    def _masked(self, maps: int) -> Attend:
        """Attention over the first maps at once, without a cache."""
        mask = block_causal_mask(self.config.scales[:maps]).to(self.device)
        return lambda _, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def _check_labels(self, labels: Tensor, largest: int) -> Tensor:
        labels = torch.as_tensor(labels, device=self.device)
        if labels.dim() != 1 or not len(labels) or labels.is_floating_point():
            raise FoveateError(f"class_labels must be a list of whole numbers, not a tensor of {tuple(labels.shape)}.")
        if int(labels.min()) < 0 or int(labels.max()) > largest:
            raise FoveateError(f"classes are 0 to {largest}; got {int(labels.min())} to {int(labels.max())}.")
        return labels.long()

    def _check_ids(self, ids: Tensor, rows: int) -> Tensor:
        if ids.shape != (rows, self.config.tokens):
            raise FoveateError(f"token_ids must be {(rows, self.config.tokens)}, got {tuple(ids.shape)}.")
        if int(ids.min()) < 0 or int(ids.max()) >= self.config.codebook_size:
            raise FoveateError(f"token_ids must lie in 0 to {self.config.codebook_size - 1}.")
        return ids.to(self.device)

    # What users call

    def forward(self, class_labels: Tensor, token_ids: Tensor) -> NextScaleOutput:
        """All maps at once, with the block-causal mask: what training uses.

        Args:
            class_labels: (B,) 0 to num_classes; the largest stands for no class.
            token_ids: (B, tokens) the true tokens.

        Raises:
            FoveateError: shapes or numbers are out of range.
        """
        labels = self._check_labels(class_labels, self.config.num_classes)
        ids = self._check_ids(token_ids, len(labels))
        first = self.classes(labels)
        quantiser = self.tokenizer.quantiser
        with torch.no_grad():  # the tokenizer is trained by itself
            side = self.config.scales[-1]
            so_far = first.new_zeros(len(ids), self.config.code_size, side, side)
            sums = [so_far]
            for place, own in enumerate(self.tokenizer.split(ids)[:-1]):
                so_far = so_far + quantiser.drawn(own, place)
                sums.append(so_far)
        hidden = torch.cat([self._embed(sums[place], first, place) for place in range(len(sums))], dim=1)
        logits = self._transform(hidden, first, self._masked(len(sums)))
        return NextScaleOutput(loss=F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten()), logits=logits)

    @torch.no_grad()
    def generate(
        self,
        class_labels: Tensor | Sequence[int],
        *,
        guidance: float = 1.5,
        temperature: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        use_cache: bool = True,
        observers: Sequence[Callable[..., None]] = (),
    ) -> NextScaleSample:
        """Draw pictures, map by map.

        Logits are (1 + t) conditional - t unconditional with t rising from 0 at the first map to `guidance` at the
        last (VAR, section "implementation").

        Args:
            class_labels: (B,) classes.
            guidance: Strength of classifier-free guidance; 0 runs without the unconditional half.
            temperature: Above 0; divides the logits.
            top_k: Sample among so many best codes; 0 among all.
            seed: Of the chance, which is this call's own; a map's chance does not depend on what was drawn before.
            use_cache: False computes all maps again at every step; the same picture, for checks.
            observers: Called by the cache after each layer of each map; see `ScaleCache`.

        Raises:
            FoveateError: an argument is out of range.
        """
        labels = self._check_labels(torch.as_tensor(class_labels), self.config.num_classes - 1)
        if temperature <= 0:
            raise FoveateError(f"temperature is {temperature}; it must be above 0.")
        if guidance < 0:
            raise FoveateError(f"guidance is {guidance}; it must be 0 or more.")
        if not 0 <= top_k <= self.config.codebook_size:
            raise FoveateError(f"top_k is {top_k}; possible are 0 (all) to {self.config.codebook_size}.")
        last = max(len(self.config.scales) - 1, 1)

        def choose(place: int, logits: Tensor) -> Tensor:
            if guidance:
                strength = guidance * place / last
                conditional, unconditional = logits.float().chunk(2)
                logits = (1 + strength) * conditional - strength * unconditional
            logits = logits.float() / temperature
            if top_k:
                least = logits.topk(top_k, dim=2).values[..., -1:]
                logits = logits.masked_fill(logits < least, -torch.inf)
            chance = torch.Generator().manual_seed(seed * 1_000 + place)
            # The largest of logits + Gumbel noise is a sample of their softmax.
            noise = torch.rand(logits.shape, generator=chance).clamp_min(1e-20).log().neg().log().neg()
            return (logits + noise.to(logits.device)).argmax(dim=2)

        nothing = torch.full_like(labels, self.config.num_classes)
        rows = torch.cat([labels, nothing]) if guidance else labels
        ids, cache = self._walk(rows, len(labels), choose, use_cache, observers)
        return NextScaleSample(pixel_values=self.tokenizer.decode(ids), token_ids=torch.cat(ids, dim=1), cache=cache)

    @torch.no_grad()
    def score(self, class_labels: Tensor, token_ids: Tensor) -> tuple[Tensor, ScaleCache | None]:
        """Logits (B, tokens, V) of given maps, read one by one through the cache, as `generate` reads its own.

        Args:
            class_labels: (B,) classes.
            token_ids: (B, tokens).

        Returns:
            The logits, and the cache with its record of bytes.
        """
        labels = self._check_labels(class_labels, self.config.num_classes)
        given = self.tokenizer.split(self._check_ids(token_ids, len(labels)))
        said: list[Tensor] = []

        def choose(place: int, logits: Tensor) -> Tensor:
            said.append(logits)
            return given[place]

        _, cache = self._walk(labels, len(labels), choose, True, ())
        return torch.cat(said, dim=1), cache

    def _walk(
        self,
        labels: Tensor,
        count: int,
        choose: Callable[[int, Tensor], Tensor],
        use_cache: bool,
        observers: Sequence[Callable[..., None]],
    ) -> tuple[list[Tensor], ScaleCache | None]:
        """Map by map: read, predict, choose. Rows beyond `count` are the unconditional half of the first ones."""
        config, quantiser = self.config, self.tokenizer.quantiser
        first = self.classes(labels)
        side = config.scales[-1]
        so_far = first.new_zeros(count, config.code_size, side, side)
        cache = None
        if use_cache:
            cache = ScaleCache(
                config.scales, config.num_hidden_layers, config.num_attention_heads, self.cache_policy, observers
            )
        ids: list[Tensor] = []
        read: list[Tensor] = []
        for place in range(len(config.scales)):
            twice = so_far.repeat(len(labels) // count, 1, 1, 1)
            read.append(self._embed(twice, first, place))
            if cache is not None:
                cache.begin(place)
                logits = self._transform(read.pop(), first, cache.attend)
            else:
                start, end = config.bounds[place]
                logits = self._transform(torch.cat(read, dim=1), first, self._masked(place + 1))[:, start:end]
            ids.append(choose(place, logits))
            so_far = so_far + quantiser.drawn(ids[-1], place)
        return ids, cache

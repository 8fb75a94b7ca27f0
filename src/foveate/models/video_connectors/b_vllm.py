"""B-VLLM: a few mixtures of frames, chosen by the question, and a few tokens of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel
from transformers import initialization as init

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.configured import whole_number
from foveate.models.video_connectors.connector import ClipShape, ConnectorOptions, Instruction, VideoConnector

#: Names of LAVIS's Q-Former, and those of `transformers`.
_QFORMER = {
    r"encoder\.layer\.(\d+\.(?:cross)?attention)\.self\.": r"encoder.layer.\1.attention.",
    r"embeddings\.LayerNorm\.": "embeddings.layernorm.",
    r"embeddings\.": "embeddings.",
    r"encoder\.": "encoder.",
}


@dataclass(frozen=True)
class BVLLMOptions(ConnectorOptions):
    """Options of `BVLLM`; the defaults are those of the paper, with BERT-base.

    Args:
        frame_queries: Mixtures of frames.
        patch_queries: Tokens of a mixture.
        tokens: Most tokens of a clip.
        threshold: Mixtures more similar than this to an earlier one are averaged into it.
        follow_chains: Average a mixture into the one that its own target is averaged into; the authors' code drops it.
        temperature: Of the softmax over frames.
        noise: When Gumbel noise is added to it: "training" alone, "always", as in the authors' code, or "never".
        seed: Of the noise outside of training.
        normalize: Normalize patches before they are mixed, as with a pretrained Q-Former.
        vocabulary: Words of the tokenizer of the Q-Formers.
        width: Of the Q-Formers.
        layers: Of the Q-Formers; every second one reads frames or patches.
        heads: Of the Q-Formers.
        hidden: Of their MLPs.
    """

    frame_queries: int = 16
    patch_queries: int = 32
    tokens: int = 576
    threshold: float = 0.75
    follow_chains: bool = False
    temperature: float = 0.5
    noise: Literal["training", "always", "never"] = "training"
    seed: int = 0
    normalize: bool = True
    vocabulary: int = 30523
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072

    def __post_init__(self) -> None:
        for name in ("frame_queries", "patch_queries", "tokens", "vocabulary", "width", "layers", "heads", "hidden"):
            whole_number(name, getattr(self, name))
        whole_number("seed", self.seed, least=0)
        if not 0 < self.threshold <= 1:
            raise FoveateError(f"threshold must be above 0 and at most 1, not {self.threshold}.")
        if self.temperature <= 0:
            raise FoveateError(f"temperature must be above 0, not {self.temperature}.")
        if self.noise not in ("training", "always", "never"):
            raise FoveateError(f"noise must be training, always or never, not {self.noise!r}.")
        if self.tokens < self.patch_queries:
            raise FoveateError(f"tokens must be at least the {self.patch_queries} of one mixture, not {self.tokens}.")
        for name in ("follow_chains", "normalize"):
            if not isinstance(getattr(self, name), bool):
                raise FoveateError(f"{name} must be true or false, not {getattr(self, name)!r}.")

    def tokens_of_mixture(self, mixtures: int) -> int:
        """Tokens of each of so many mixtures within the budget."""
        return min(self.patch_queries, max(1, int(self.tokens // self.patch_queries / mixtures * self.patch_queries)))


class BVLLM(VideoConnector[BVLLMOptions]):
    """Mixes the frames of a clip as the question asks, merges similar mixtures, and makes 32 tokens of each.

        s = softmax((P Q1(queries, words, frames) . frames^T / sqrt(C) + noise) / tau)         (16, T)
        mixtures = s patches, those with similar rows of s averaged                            (k, N, C)
        tokens = W V Q2(queries, words, mixture)                                               (k 32, d)

    B-VLLM: A Vision Large Language Model with Balanced Spatio-Temporal Tokens (Lu et al., arXiv 2412.09919). Q1 reads
    the mean of the patches of every frame, Q2 the patches of every mixture. Both are BERT with cross-attention in every
    second layer, which is the Q-Former of InstructBLIP. Where k mixtures have more than `tokens`, tokens of each are
    merged in pairs (ToMe); with 16 mixtures of 32 they never have. An image is the mean of the 16 mixtures of itself.

    The authors' towers may give a [CLS] token, which Q1 then reads in place of the mean of the patches; here the mean
    is read always, as by their code for towers without. A mixture that is similar to an earlier one is averaged into it
    and dropped, even if others are averaged into itself, which are lost: `follow_chains` averages these too. The
    authors draw noise at inference; here it is off there (`noise`).
    """

    name: ClassVar[str] = "b_vllm"
    title: ClassVar[str] = "B-VLLM: A Vision Large Language Model with Balanced Spatio-Temporal Tokens"
    paper: ClassVar[str] = "arXiv 2412.09919"
    spatial: ClassVar[bool] = False
    options_class: ClassVar = BVLLMOptions
    released_types: ClassVar[tuple[str, ...]] = ("bvlm_qwen2",)
    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        **{
            rf"^model\.vlm_att_encoder_{part}\.bert\.{theirs}": f"{part}_qformer.{ours}"
            for part in ("temporal", "spatial")
            for theirs, ours in _QFORMER.items()
        },
        r"^model\.vlm_att_query_temporal": "frame_queries",
        r"^model\.vlm_att_query_spatial": "patch_queries",
        r"^model\.vlm_att_ln_temporal\.": "patch_norm.",
        r"^model\.vlm_att_projector_temporal\.": "frame_projection.",
        r"^model\.vlm_att_projector_spatial\.": "patch_projection.",
        r"^model\.vlm_att_val_projector_spatial\.": "projector.",
    }

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        chosen = self.options
        if chosen.width % chosen.heads:
            raise FoveateError(f"the {chosen.heads} heads of b_vllm do not divide the width {chosen.width}.")

        def qformer() -> InstructBlipQFormerModel:
            return InstructBlipQFormerModel(
                InstructBlipQFormerConfig(
                    vocab_size=chosen.vocabulary,
                    hidden_size=chosen.width,
                    num_hidden_layers=chosen.layers,
                    num_attention_heads=chosen.heads,
                    intermediate_size=chosen.hidden,
                    encoder_hidden_size=vision_hidden_size,
                    cross_attention_frequency=2,
                )
            )

        self.temporal_qformer, self.spatial_qformer = qformer(), qformer()
        self.frame_queries = nn.Parameter(torch.zeros(1, chosen.patch_queries, chosen.width))
        self.patch_queries = nn.Parameter(torch.zeros(1, chosen.patch_queries, chosen.width))
        self.patch_norm: nn.Module = nn.LayerNorm(vision_hidden_size) if chosen.normalize else nn.Identity()
        self.frame_projection = nn.Linear(chosen.width, vision_hidden_size)
        self.patch_projection = nn.Linear(chosen.width, vision_hidden_size)
        self.projector = nn.Linear(vision_hidden_size, text_hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """See `ConfiguredModule.reset_parameters`."""
        init.normal_(self.frame_queries, std=0.02)
        init.normal_(self.patch_queries, std=0.02)

    @classmethod
    def released_options(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """See `ConfiguredModule.released_options`.

        Raises:
            FoveateError: The network that reads the question is another one.
        """
        kind = str(config.get("bert_type", "qformer"))
        if "qformer" not in kind or "layer" in kind:
            raise FoveateError(f"bert_type of a released b_vllm must be qformer or qformer_pretrain, not {kind!r}.")
        queries = config.get("num_query") or 32
        return {"patch_queries": queries, "normalize": "pretrain" in kind, "noise": "always"}

    @property
    def reads_text(self) -> bool:
        """See `VideoConnector.reads_text`."""
        return True

    @property
    def static_count(self) -> bool:
        """See `VideoConnector.static_count`."""
        return False

    @property
    def static_cost(self) -> bool:
        """See `VideoConnector.static_cost`."""
        return False

    def shape(self, frames: int, grid: Grid, budget: int | None) -> ClipShape:
        """See `VideoConnector.shape`: one row."""
        options = self.options
        counts = (1,) if frames == 1 else range(1, options.frame_queries + 1)
        return ClipShape(1, 1, max(count * options.tokens_of_mixture(count) for count in counts))

    def connect(
        self, features: Tensor, grid: Grid, shape: ClipShape, timestamps: Tensor | None, text: Instruction | None
    ) -> Tensor:
        """See `VideoConnector.connect`."""
        assert text is not None
        words = text.ids
        if words.numel() and int(words.max()) >= self.options.vocabulary:
            raise FoveateError(
                f"the vocabulary of b_vllm has {self.options.vocabulary} words, and the instruction has word "
                f"{int(words.max())}: use the tokenizer of its Q-Former."
            )
        shares = self.shares(features, words)
        mixtures = torch.einsum("kt,tnc->knc", shares, self.patch_norm(features))
        if len(features) == 1:
            mixtures = mixtures.mean(dim=0, keepdim=True)
        else:
            mixtures = merge_similar(mixtures, shares, self.options.threshold, self.options.follow_chains)
        read = self._read(self.spatial_qformer, self.patch_queries, words, mixtures)
        kept = reduce_tokens(read, self.options.tokens_of_mixture(len(mixtures)))
        return self.projector(self.patch_projection(kept)).flatten(0, 1)

    def shares(self, features: Tensor, words: Tensor) -> Tensor:
        """Shares `(queries, T)` of the frames in every mixture; rows sum to 1."""
        frames = features.mean(dim=1)
        queries = self.frame_queries[:, : self.options.frame_queries]
        read = self.frame_projection(self._read(self.temporal_qformer, queries, words, frames[None])[0])
        logits = (read @ frames.T).float() / math.sqrt(frames.shape[-1])
        noise = self.options.noise
        if noise == "always" or (noise == "training" and self.training):
            generator = None
            if not self.training:
                generator = torch.Generator(logits.device).manual_seed(self.options.seed)
            logits = logits - torch.empty_like(logits).exponential_(generator=generator).log()
        return (logits / self.options.temperature).softmax(-1).to(features.dtype)

    def _read(self, qformer: InstructBlipQFormerModel, queries: Tensor, words: Tensor, context: Tensor) -> Tensor:
        """Outputs `(B, queries, width)` of queries that read words, and `(B, S, C)`."""
        batch, count = len(context), queries.shape[1]
        mask = torch.ones(batch, count + len(words), dtype=torch.int64, device=context.device)
        output: Any = qformer(
            input_ids=words.expand(batch, -1),
            attention_mask=mask,
            query_embeds=queries.expand(batch, -1, -1),
            encoder_hidden_states=context,
            return_dict=True,
        )
        return output.last_hidden_state[:, :count]


def merge_similar(mixtures: Tensor, shares: Tensor, threshold: float, follow_chains: bool = False) -> Tensor:
    """Average mixtures `(K, N, C)` whose shares `(K, T)` are similar: `(k, N, C)` in their order.

    A row whose most similar earlier row has `(1 + cos) / 2` above the threshold is averaged into that one.

    Args:
        mixtures: The mixtures.
        shares: Their rows.
        threshold: As said.
        follow_chains: Average into the row that the target is averaged into; otherwise rows whose target is dropped
            are lost.
    """
    rows = F.normalize(shares.detach().float(), dim=-1)
    similar = ((rows @ rows.T + 1) / 2).tril(-1)
    best, target = similar.max(dim=-1)
    places = torch.arange(len(rows), device=rows.device)
    target = torch.where(best > threshold, target, places)
    if follow_chains:
        for _ in range(len(rows).bit_length()):
            target = target[target]
    kept = target == places
    counts = target.bincount(minlength=len(rows))[kept].to(mixtures.dtype)
    total = torch.zeros_like(mixtures).index_add(0, target, mixtures)[kept]
    return total / counts[:, None, None]


def reduce_tokens(x: Tensor, count: int) -> Tensor:
    """Merge tokens `(B, n, C)` in pairs until `count` are left: by halves, then what is over."""
    while x.shape[1] // 2 > count:
        x = _merge_pairs(x, x.shape[1] // 2)
    return x if x.shape[1] <= count else _merge_pairs(x, x.shape[1] - count)


def _merge_pairs(x: Tensor, count: int) -> Tensor:
    """Average `count` of the even tokens into their most similar odd ones (ToMe); the other even ones come first."""
    normalized = F.normalize(x.detach(), dim=-1)
    even, odd = x[:, ::2], x[:, 1::2]
    best, target = (normalized[:, ::2] @ normalized[:, 1::2].mT).max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    merged, kept = order[:, :count, None], order[:, count:, None]
    target = target.unsqueeze(-1).take_along_dim(merged, dim=1)
    total = odd.scatter_add(1, target.expand(-1, -1, x.shape[-1]), even.take_along_dim(merged, dim=1))
    size = torch.ones_like(odd[..., :1]).scatter_add(1, target, torch.ones_like(target, dtype=x.dtype))
    return torch.cat([even.take_along_dim(kept, dim=1), total / size], dim=1)
